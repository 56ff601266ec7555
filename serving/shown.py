"""One answer as it went out, and the chance by which it was this one."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.queries import Answer, Query
from serving.service import Service
from serving.swap import Variant


@dataclass(frozen=True)
class Assigned:
    """The variant that a request got, its bundle for this request to its end, and the chance of this variant.

    `shadows` are to answer the same. `began`, in microseconds since 1970 UTC, and `deletions`, those of users that were
    known then, tell later whether somebody was deleted since.
    """

    variant: Variant
    service: Service
    propensity: float
    shadows: Sequence[str]
    began: int
    deletions: int


@dataclass(frozen=True, kw_only=True)
class Shown:
    """`timestamp` is microseconds since 1970 UTC; `wishes`: what was asked for beside a history, as JSON."""

    request_id: str
    timestamp: int
    user_id: str | None
    session_id: str | None
    variant: str
    propensity: float
    model_version: str
    query: Query
    answer: Answer
    item_ids: Sequence[str]
    wishes: str | None
    assigned: Assigned
