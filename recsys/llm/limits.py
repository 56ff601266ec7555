"""How fast a server may be asked: token buckets for requests and tokens a minute, and a pause that it asked for."""

import threading

from recsys.llm.clock import Clock

SECONDS_OF_BURST = 1.0


class TokenBucket:
    """Fills at `per_minute`, holds what comes in one second, and may be overdrawn: who overdraws it waits.

    Within any T seconds no more than `per_minute` (T + 1) / 60 is handed out, besides the last amount asked for.
    Calls take turns in the order in which they ask.
    """

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.rate, self.clock = per_minute / 60, clock
        self.capacity = self.rate * SECONDS_OF_BURST
        self._level, self._at = self.capacity, clock.elapsed()
        self._lock = threading.Lock()

    def take(self, amount: float) -> float:
        """Seconds to wait before `amount` may be used."""
        with self._lock:
            now = self.clock.elapsed()
            self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
            self._at = now
            wait = max(0.0, (min(amount, self.capacity) - self._level) / self.rate)
            self._level -= amount
            return wait

    def give_back(self, amount: float) -> None:
        """What was taken and not used."""
        with self._lock:
            self._level += amount


class Limits:
    """Waits until a request of so many tokens may be sent; None is no limit."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Clock) -> None:
        self.clock = clock
        self._requests = TokenBucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = TokenBucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._paused_until = clock.elapsed()

    def wait(self, tokens: int) -> None:
        """Takes one request and `tokens`, and sleeps as long as that asks for."""
        asked = ((self._requests, 1.0), (self._tokens, float(tokens)))
        wait = max([0.0, *(bucket.take(amount) for bucket, amount in asked if bucket is not None)])
        if wait > 0:
            self.clock.sleep(wait)
        while (left := self._paused_until - self.clock.elapsed()) > 0:
            self.clock.sleep(left)

    def give_back(self, tokens: int) -> None:
        """Tokens that were taken and not used."""
        if self._tokens is not None:
            self._tokens.give_back(float(tokens))

    def pause(self, seconds: float) -> None:
        """Nobody asks for so long: what Retry-After is to all threads."""
        self._paused_until = max(self._paused_until, self.clock.elapsed() + seconds)
