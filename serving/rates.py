"""How often one caller may ask: counted in this process, or in Redis for all replicas where the state is there."""

import math
import time

from limits import RateLimitItem, parse_many
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from recsys.errors import ConfigError
from serving.breaker import Breaker
from serving.state import StateError


class Rates:
    """Limits such as `100/second; 5000/minute`, each over a sliding window.

    While Redis does not answer, each process counts for itself.
    """

    def __init__(self, text: str, redis: str | None, wait_seconds: float, pause_seconds: float) -> None:
        self._limits = _parsed(text)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = None if redis is None else SlidingWindowCounterRateLimiter(_redis(redis, wait_seconds))
        self._breaker = Breaker("counting rates in Redis", pause_seconds)

    async def seconds_to_wait(self, caller: str) -> int:
        """Counts one request; 0 where it may pass, else in how many seconds another may."""
        if self._shared is None:
            return await self._counted(self._own, caller)
        try:
            with self._breaker.trying():
                return await self._counted(self._shared, caller)
        except StateError:
            return await self._counted(self._own, caller)

    async def _counted(self, counters: SlidingWindowCounterRateLimiter, caller: str) -> int:
        try:
            for limit in self._limits:
                if not await counters.hit(limit, caller):
                    window = await counters.get_window_stats(limit, caller)
                    return max(1, math.ceil(window.reset_time - time.time()))
        except StorageError as error:
            raise StateError(f"rates cannot be counted: {error.storage_error}") from error
        return 0


def _parsed(text: str) -> list[RateLimitItem]:
    try:
        return parse_many(text)
    except ValueError:
        raise ConfigError(
            f"RECSYS_RATE_LIMIT={text!r} cannot be used; give for example 100/second, or 100/second; 5000/minute."
        ) from None


def _redis(url: str, wait_seconds: float) -> Storage:
    from redis.asyncio.retry import Retry  # counting in this process needs no client
    from redis.backoff import NoBackoff

    from serving.redis_state import PREFIX

    scheme = "async+redis+" if url.startswith("unix:") else "async+"
    return RedisStorage(
        f"{scheme}{url}",
        wrap_exceptions=True,
        implementation="redispy",
        key_prefix=f"{PREFIX}:rates",
        socket_timeout=wait_seconds,
        socket_connect_timeout=wait_seconds,
        retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]  # goes on to the client
    )
