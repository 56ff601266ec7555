"""A store that does not answer is left alone for a while, so that requests need not wait for it one by one."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from serving.state import Event, StateError, UserState

LOG = logging.getLogger("uvicorn.error")
FAILURES = 3
"""In a row, after which calls are refused without being tried."""


class Breaker:
    """Lets calls through until `FAILURES` of them fail in a row, then for `pause_seconds` none, then one to see."""

    def __init__(self, name: str, pause_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._pause_seconds, self._clock = pause_seconds, clock
        self._failures, self._refused_until = 0, -math.inf
        self._lock = Lock()

    @contextmanager
    def trying(self) -> Iterator[None]:
        """A `StateError` at once where the store is left alone; notes whether the block raises one."""
        self._pass()
        try:
            yield
        except StateError as error:
            with self._lock:
                self._failures += 1
                self._refused_until = self._clock() + self._pause_seconds
                if self._failures == FAILURES:
                    LOG.error("%s: %d failures in a row, the last: %s", self._name, FAILURES, error)
            raise
        with self._lock:
            if self._failures >= FAILURES:
                LOG.info("%s: well again", self._name)
            self._failures = 0

    def _pass(self) -> None:
        with self._lock:
            if self._failures < FAILURES:
                return
            if self._clock() < self._refused_until:
                raise StateError(f"{self._name}: left alone after failures in a row")
            self._refused_until = self._clock() + self._pause_seconds  # this one tries, the others go on waiting


class GuardedState:
    """A state behind breakers: the same answers, and `StateError`s sooner. Slow writing does not stop reading."""

    def __init__(self, state: UserState, pause_seconds: float) -> None:
        self._state = state
        self._reading, self._writing = (Breaker(f"{what} user state", pause_seconds) for what in ("reading", "writing"))

    @property
    def deletions(self) -> int:
        """How often any process had deleted users when this one asked last."""
        return self._state.deletions

    def append(self, events: Sequence[Event]) -> int:
        """Stores all events or none; how many were new."""
        with self._writing.trying():
            return self._state.append(events)

    def history(self, user_id: str) -> list[str]:
        """Item ids of the kept events, oldest first."""
        with self._reading.trying():
            return self._state.history(user_id)

    def events(self, user_id: str) -> list[Event]:
        """The kept events, oldest first."""
        with self._reading.trying():
            return self._state.events(user_id)

    def delete(self, user_id: str) -> int:
        """Forgets the user; how many events there were."""
        with self._writing.trying():
            return self._state.delete(user_id)

    def check(self) -> None:
        """A `StateError` where the store does not answer, or has not and is left alone."""
        with self._reading.trying():
            self._state.check()

    def close(self) -> None:
        """Lets go of files and connections."""
        self._state.close()
