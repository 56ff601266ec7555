"""A circuit breaker: a server that fails again and again is left alone for a while."""

import threading

from recsys.llm.clock import Clock


class CircuitBreaker:
    """Closed until `failures` attempts in a row have failed; then open for `seconds`; then half open.

    Half open, one attempt goes through while all others wait: its success closes the breaker, its failure opens it
    anew. Whoever wants to ask waits in `enter` and tells afterwards how it went.
    """

    def __init__(self, failures: int, seconds: float, clock: Clock) -> None:
        self.failures, self.seconds, self.clock = failures, seconds, clock
        self.times_opened = 0
        self._in_a_row = 0
        self._open_until: float | None = None
        self._probing = False
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        """Whether every attempt goes through."""
        return self._open_until is None

    def enter(self) -> None:
        """Returns when an attempt may be made."""
        while (wait := self._wait()) > 0:
            self.clock.sleep(wait)

    def _wait(self) -> float:
        """Seconds to wait before another look; 0: go ahead."""
        with self._changed:
            while self._probing:
                self._changed.wait()
            if self._open_until is None:
                return 0.0
            left = self._open_until - self.clock.elapsed()
            self._probing = left <= 0
            return max(0.0, left)

    def succeeded(self) -> None:
        """The server answered."""
        with self._changed:
            self._in_a_row, self._open_until, self._probing = 0, None, False
            self._changed.notify_all()

    def failed(self) -> None:
        """The attempt failed."""
        with self._changed:
            self._in_a_row += 1
            if self._probing or (self._in_a_row >= self.failures and self._open_until is None):
                self._open_until = self.clock.elapsed() + self.seconds
                self.times_opened += 1
            self._probing = False
            self._changed.notify_all()
