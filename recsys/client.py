"""A client of the service (`recsys serve`), with typed answers; needs the extra `client`.

    with Client("http://127.0.0.1:8000") as client:
        answer = client.recommend(Ask(user_id="ann", k=5, filter={"categories": {"any": ["Tools"]}}))
        print([item.item_id for item in answer.items])

Whatever goes wrong is a `ServiceError`; docs/serving.md says what the fields mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.errors import RecsysError

SECONDS = 5.0


class ServiceError(RecsysError):
    """What the service refused, or why it did not answer: then `status` is None.

    `errors` names each field that could not be used; `request_id` finds the request in the service's log.
    """

    def __init__(
        self,
        detail: str,
        status: int | None = None,
        request_id: str | None = None,
        errors: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.detail, self.status, self.request_id, self.errors = detail, status, request_id, list(errors)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What `/v1/recommend` takes; None and empty ask nothing."""

    history: Sequence[str] | None = None
    user_id: str | None = None
    session_id: str | None = None
    k: int = 10
    exclude_seen: bool | None = None
    exclude: Sequence[str] = ()
    reasoning_steps: int | None = None
    rank: bool | None = None
    filter: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    boosts: Sequence[Mapping[str, Any]] = ()
    diversity: Mapping[str, Any] | None = None
    after: str | None = None
    why: int = 0
    fields: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Event:
    """One interaction; `timestamp` is microseconds since 1970-01-01 UTC, None for now; `request_id` names the answer
    that it followed.
    """

    user_id: str
    item_id: str
    timestamp: int | None = None
    event_id: str | None = None
    event_type: str | None = None
    value: float | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """An item and its texts; of a deleted one the id alone asks for it back."""

    item_id: str
    title: str | None = None
    categories: Sequence[str] = ()
    fields: Mapping[str, str] = field(default_factory=dict)


class Read(BaseModel):
    """Base of what the service answers; what a later service adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Item(Read):
    """What is shown of an item."""

    item_id: str
    title: str | None
    categories: list[str]


class ScoredItem(Item):
    """One line of a ranking."""

    score: float


class NearItem(Item):
    """An item of the history that a recommended one is near to."""

    cosine: float


class RecommendedItem(ScoredItem):
    """One line of an answer."""

    fields: dict[str, Any] | None
    why: list[NearItem]


class Milliseconds(Read):
    """Time in each stage."""

    state: float
    encode: float
    search: float
    rank: float


class Recommendations(Read):
    """The answer of `/v1/recommend`."""

    request_id: str
    model_version: str
    variant: str
    items: list[RecommendedItem]
    next: str | None
    source: str
    no_history: str | None
    unknown_items: list[str]
    history_length: int
    history_used: int
    state: str | None
    encoding: str | None
    stages: list[str]
    unranked: str | None
    rank_events: int
    rank_keys: str | None
    milliseconds: Milliseconds


class BatchRecommendations(Read):
    """The answer of `/v1/recommend/batch`."""

    request_id: str
    answers: list[Recommendations]


class EventsStored(Read):
    """The answer of `/v1/events`."""

    request_id: str
    stored: int
    duplicates: int
    unknown_items: list[str]


class SimilarItems(Read):
    """The answer of `/v1/similar`."""

    request_id: str
    model_version: str
    item_id: str
    items: list[ScoredItem]


class ItemsStored(Read):
    """The answer of POST `/v1/items`."""

    request_id: str
    model_version: str
    stored: int
    replaced: int
    restored: int


class ItemDetails(Item):
    """All that is known of an item."""

    retired: bool
    fields: dict[str, Any]


class RankerVersion(Read):
    """The second stage of a bundle."""

    name: str
    candidates: int
    max_len: int
    shortest: int
    weight: float | None


class Model(Read):
    """One bundle that answers."""

    variant: str
    source: str
    share: float
    shadow: bool
    since: str
    previous: str | None
    refused: str | None
    bundle: str
    model: str
    items: int
    new_items: int
    item_fields: dict[str, str]
    max_len: int
    seen: str
    reasoning_steps: int
    ranker: RankerVersion | None
    no_history: str
    exported: str | None
    index: dict[str, Any]
    metrics: dict[str, Any]


class Models(Read):
    """The answer of `/v1/models`."""

    models: list[Model]


Answer = TypeVar("Answer", bound=Read)


class Client:
    """Calls one service; threads may share it. No call is repeated: events without `event_id` would count twice.

    `headers` go with every request; `transport` replaces the network, as httpx has it.
    """

    def __init__(
        self,
        url: str,
        *,
        seconds: float = SECONDS,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=seconds, headers=headers, transport=transport)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of connections."""
        self._http.close()

    def recommend(self, ask: Ask) -> Recommendations:
        """The next items for a history, a user, or both."""
        return self._call(Recommendations, "POST", "/v1/recommend", _given(ask))

    def recommend_all(self, asks: Sequence[Ask]) -> list[Recommendations]:
        """The answers to several, in their order; histories are encoded at once."""
        body = {"requests": [_given(ask) for ask in asks]}
        return self._call(BatchRecommendations, "POST", "/v1/recommend/batch", body).answers

    def pages(self, ask: Ask) -> Iterator[Recommendations]:
        """The answer, and the pages after it as they are asked for."""
        body = _given(ask)
        while True:
            page = self._call(Recommendations, "POST", "/v1/recommend", body)
            yield page
            if page.next is None:
                return
            body["after"] = page.next

    def store_events(self, events: Sequence[Event]) -> EventsStored:
        """Appends to users' histories: all or none."""
        return self._call(EventsStored, "POST", "/v1/events", [_given(event) for event in events])

    def similar(self, item_id: str, k: int = 10) -> list[ScoredItem]:
        """Items near one item."""
        return self._call(SimilarItems, "GET", f"/v1/similar/{quote(item_id, safe='')}?k={k}").items

    def store_items(self, items: Sequence[NewItem]) -> ItemsStored:
        """Makes items recommendable by their texts, or deleted ones again: all or none."""
        return self._call(ItemsStored, "POST", "/v1/items", [_given(item) for item in items])

    def item(self, item_id: str) -> ItemDetails:
        """All that is known of an item."""
        return self._call(ItemDetails, "GET", f"/v1/items/{quote(item_id, safe='')}")

    def delete_item(self, item_id: str) -> None:
        """Takes an item out of all answers."""
        self._answered("DELETE", f"/v1/items/{quote(item_id, safe='')}", None)

    def models(self) -> list[Model]:
        """The bundles that answer."""
        return self._call(Models, "GET", "/v1/models").models

    def _call(self, kind: type[Answer], method: str, path: str, body: object = None) -> Answer:
        response = self._answered(method, path, body)
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(
                f"{response.url}: answers what this version of recsys does not understand ({error.error_count()} "
                f"fields, first {error.errors()[0]['loc']}); use the client of the service's version.",
                response.status_code,
                response.headers.get("X-Request-ID"),
            ) from None

    def _answered(self, method: str, path: str, body: object) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._http.base_url}: does not answer ({type(error).__name__}: {error})") from error
        if response.is_success:
            return response
        raise _refusal(response)


def _given(content: Ask | Event | NewItem) -> dict[str, Any]:
    """What differs from the default, which the service knows itself."""
    values = {entry.name: (getattr(content, entry.name), entry.default) for entry in fields(content)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _refusal(response: httpx.Response) -> ServiceError:
    """The problem that came; what stands between may answer something else."""
    is_problem = response.headers.get("content-type", "").startswith("application/problem+json")
    problem = response.json() if is_problem else {}
    return ServiceError(
        problem.get("detail", f"{response.url}: answered {response.status_code} {response.reason_phrase}"),
        response.status_code,
        problem.get("request_id"),
        problem.get("errors", ()),
    )
