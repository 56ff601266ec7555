"""Attention keys of users' events, kept between requests and appended to (docs/decisions/two-stage.md).

    kept      rows  a b c d . .      keys  A B C D . .
    asked     b c d e                its `a` was forgotten, `e` is new: the last four of  a b c d e .

An entry is compared with the history that is asked for, event by event, so it need not know versions: what agrees is
used, and where nothing does, keys are gathered anew. One bundle has one such cache; keys never meet another's queries.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

import numpy as np

from recsys.index import FloatArray, RowArray
from recsys.stored_ranker import StoredRanker, UserKeys
from serving.encodings import ENTRY_BYTES, CacheSize

KeyOrigin = Literal["kept", "appended", "gathered"]
ROOM = 1.25
"""Arrays are made so much longer than the events in them, for those to come."""
STARTS_TRIED = 8
"""Of the places at which a history may have been cut since."""


@dataclass
class _Entry:
    """Cells of `rows` [N] and `keys` [N, S] before `filled` never change again: others may be reading them."""

    rows: RowArray
    keys: FloatArray
    filled: int
    until: float
    lock: Lock = field(default_factory=Lock)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.keys.nbytes + ENTRY_BYTES


class Keys:
    """Keys of users' histories; safe to share between threads.

    An entry goes `seconds` after its last use, or when all together take more than `max_bytes` (0 keeps none), the
    longest unused first.
    """

    def __init__(
        self, ranker: StoredRanker, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ranker = ranker
        self._max_bytes, self._seconds, self._clock = max_bytes, seconds, clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def of(self, user_id: str | None, rows: RowArray) -> tuple[UserKeys, KeyOrigin]:
        """Keys of item rows, oldest first, and how they came about; those of nobody (None) are not kept."""
        if user_id is None or not self._max_bytes:
            return self._ranker.gathered(rows), "gathered"
        entry = self._used(user_id)
        if entry is not None and (found := self._from(entry, rows)) is not None:
            return found
        entry = self._entry(rows)
        self._keep(user_id, entry)
        return self._part(entry, 0, len(rows)), "gathered"

    def events_of(self, user_id: str) -> int:
        """How many of a user's events have kept keys."""
        with self._lock:
            self._forget_unused()
            entry = self._entries.get(user_id)
            return 0 if entry is None else entry.filled

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def size(self) -> CacheSize:
        """Users and the bytes of their keys."""
        with self._lock:
            self._forget_unused()
            return CacheSize(len(self._entries), self._bytes)

    def _from(self, entry: _Entry, rows: RowArray) -> tuple[UserKeys, KeyOrigin] | None:
        """The history as part of an entry, which new events are appended to where they agree and there is room."""
        with entry.lock:
            start = _start(entry.rows[: entry.filled], rows)
            if start is None or start + self._ranker.places(len(rows)) > len(entry.rows):
                return None
            stop, filled = start + len(rows), entry.filled
            if stop > filled:
                new = rows[filled - start :]
                entry.rows[filled:stop] = new
                entry.keys[filled:stop] = self._ranker.keys[new]
                entry.filled = stop
        return self._part(entry, start, len(rows)), "appended" if stop > filled else "kept"

    def _part(self, entry: _Entry, start: int, length: int) -> UserKeys:
        return UserKeys(entry.rows[start:], entry.keys[start:], length)

    def _entry(self, rows: RowArray) -> _Entry:
        room = np.zeros(int(ROOM * self._ranker.places(len(rows))), dtype=np.int64)
        room[: len(rows)] = rows
        return _Entry(room, self._ranker.keys[room], len(rows), 0.0)

    def _used(self, user_id: str) -> _Entry | None:
        with self._lock:
            self._forget_unused()
            entry = self._entries.get(user_id)
            if entry is not None:
                entry.until = self._clock() + self._seconds
                self._entries.move_to_end(user_id)
            return entry

    def _keep(self, user_id: str, entry: _Entry) -> None:
        with self._lock:
            self._drop(user_id)
            if entry.nbytes > self._max_bytes:
                return
            entry.until = self._clock() + self._seconds
            self._entries[user_id] = entry
            self._bytes += entry.nbytes
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _forget_unused(self) -> None:
        """Entries stand in order of their last use, and so of their end."""
        while self._entries and next(iter(self._entries.values())).until <= self._clock():
            self._drop(next(iter(self._entries)))

    def _drop(self, user_id: str) -> None:
        entry = self._entries.pop(user_id, None)
        self._bytes -= entry.nbytes if entry else 0


def _start(known: RowArray, asked: RowArray) -> int | None:
    """Where in `known` the history `asked` begins, if they agree from there on; its end may go beyond."""
    for start in np.flatnonzero(known == asked[0])[:STARTS_TRIED].tolist():
        both = min(len(known) - start, len(asked))
        if np.array_equal(known[start : start + both], asked[:both]):
            return start
    return None
