"""Encodings of histories, kept by what the history is: the same events give the same vector, whoever asks.

    asked      a b c d e
    kept       a b c          one longer by `e` and `d`: two steps of the model in place of a whole encoding

A bundle never changes, so an entry never grows wrong: a user's new event simply asks for another history, as does a
window that has slid. Only where an item's text is written anew, all entries go.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal

from recsys.sequences import IntArray
from serving.encoder import Encoder, Encoding

Origin = Literal["cached", "step", "full"]
MOST_STEPS = 8
"""Beyond so many further events a whole encoding is not slower than steps."""
ENTRY_BYTES = 400
"""Of the bookkeeping around an entry's arrays."""


@dataclass(frozen=True)
class CacheSize:
    """What the cache holds now."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class _Entry:
    encoding: Encoding
    bytes: int
    until: float


class Encodings:
    """Encodes histories, going on from kept ones where it can; safe to share between threads.

    An entry goes `seconds` after its last use, or when all together take more than `max_bytes` (0 keeps none), the
    longest unused first; and when a longer history has gone on from it, for its user will not ask for it again.
    """

    def __init__(
        self, encoder: Encoder, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._encoder = encoder
        self._max_bytes, self._seconds, self._clock = max_bytes, seconds, clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0
        self._generation = 0
        self._lock = Lock()

    def of(self, rows: IntArray) -> tuple[Encoding, Origin]:
        """The encoding of item rows, oldest first, and how it came about."""
        return self.of_all([rows])[0]

    def of_all(self, histories: Sequence[IntArray]) -> list[tuple[Encoding, Origin]]:
        """The same of several; those of which nothing is kept are encoded at once."""
        generation = self._generation
        found = [self._longest_known(rows.tobytes(), rows.itemsize) for rows in histories]
        new = {rows.tobytes(): rows for rows, (_, encoding) in zip(histories, found, strict=True) if encoding is None}
        full = dict(zip(new, self._encoder.encode_all(list(new.values())), strict=True)) if new else {}
        for content, encoding in full.items():
            self._keep(content, encoding, generation)
        return [
            (full[rows.tobytes()], "full") if before is None else self._gone_on(rows, length, before, generation)
            for rows, (length, before) in zip(histories, found, strict=True)
        ]

    def _gone_on(self, rows: IntArray, length: int, encoding: Encoding, generation: int) -> tuple[Encoding, Origin]:
        """From an encoding of the first `length` events to that of all."""
        if length == len(rows):
            return encoding, "cached"
        for row in rows[length:].tolist():
            encoding = self._encoder.go_on(encoding, row)
        content = rows.tobytes()
        self._keep(content, encoding, generation, instead_of=content[: length * rows.itemsize])
        return encoding, "step"

    def size(self) -> CacheSize:
        """Entries and their bytes."""
        with self._lock:
            self._forget_unused()
            return CacheSize(len(self._entries), self._bytes)

    def clear(self) -> None:
        """Forgets all, and what is being encoded now: an item that is part of histories means something else."""
        with self._lock:
            self._generation += 1
            self._entries.clear()
            self._bytes = 0

    def _longest_known(self, content: bytes, size: int) -> tuple[int, Encoding | None]:
        """Of how many of the events (`size` bytes each) an encoding is kept, at most a few fewer than all; and that."""
        length = len(content) // size
        shortest = max(1, length - MOST_STEPS) if self._encoder.goes_on else length
        with self._lock:
            self._forget_unused()
            for events in range(length, shortest - 1, -1):
                key = content[: events * size]
                if entry := self._entries.pop(key, None):
                    self._entries[key] = replace(entry, until=self._clock() + self._seconds)
                    return events, entry.encoding
        return 0, None

    def _keep(self, key: bytes, encoding: Encoding, generation: int, instead_of: bytes = b"") -> None:
        needed = encoding.nbytes + len(key) + ENTRY_BYTES
        if needed > self._max_bytes:
            return
        with self._lock:
            if generation != self._generation:
                return
            self._drop(instead_of)
            self._drop(key)
            self._entries[key] = _Entry(encoding, needed, self._clock() + self._seconds)
            self._bytes += needed
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _forget_unused(self) -> None:
        """Entries stand in order of their last use, and so of their end."""
        while self._entries and next(iter(self._entries.values())).until <= self._clock():
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        self._bytes -= entry.bytes if entry else 0
