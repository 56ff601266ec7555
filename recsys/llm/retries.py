"""When to ask again: full jitter (Brooker, 2015), and what a server says in Retry-After."""

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from recsys.errors import ConfigError

PASSING = frozenset({408, 409, 429})
"""Statuses of the client's side after which the same request may succeed."""

MOST_DOUBLINGS = 60
"""After these every cap is reached."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Seconds before retry n = 0, 1, ...: uniform between 0 and min(cap, base 2^n)."""

    base: float = 0.5
    cap: float = 60.0
    retries: int = 6

    def __post_init__(self) -> None:
        if self.retries < 0 or self.base <= 0 or self.cap < self.base:
            raise ConfigError(
                f"Backoff: retries={self.retries}, base={self.base}, cap={self.cap}; give retries of at least 0 and "
                "0 < base <= cap."
            )

    def seconds(self, retry: int, chance: float) -> float:
        """For a random number `chance` in [0, 1)."""
        return chance * min(self.cap, self.base * 2.0 ** min(retry, MOST_DOUBLINGS))


def may_pass(status: int) -> bool:
    """Whether a request that got this status is worth another attempt."""
    return status in PASSING or status >= 500


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks to wait, given as seconds or as a date; None where it says neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
