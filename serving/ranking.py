"""The second stage of an answer: the retriever's items in the order of the bundle's ranker. Numpy only."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys.index import FloatArray, RowArray
from recsys.stored_ranker import StoredRanker
from serving.encodings import CacheSize
from serving.keys import KeyOrigin, Keys

Unranked = Literal["not asked", "short history", "only new items"]
"""Why the retriever's order stands, where the bundle has a ranker."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Best first, with final scores; `events` were read, and their `keys` came about so."""

    rows: RowArray
    scores: FloatArray
    events: int
    keys: KeyOrigin


class SecondStage:
    """A bundle's ranker and the keys of its users; safe to share between threads."""

    def __init__(self, ranker: StoredRanker, cache_bytes: int, cache_seconds: float) -> None:
        self.ranker = ranker
        self._keys = Keys(ranker, cache_bytes, cache_seconds)

    @property
    def candidates(self) -> int:
        """How many of the retriever's items are ranked."""
        return self.ranker.card.candidates

    def cache_size(self) -> CacheSize:
        """Of the keys that are kept."""
        return self._keys.size()

    def kept_events(self, user_id: str) -> int:
        """How many of a user's events have kept keys."""
        return self._keys.events_of(user_id)

    def drop_kept(self) -> None:
        """All users' keys."""
        self._keys.clear()

    def read(self, history: RowArray) -> RowArray | None:
        """Events of a history that ranking reads: the latest of items that the ranker knows; None where too few."""
        known = history[history < self.ranker.num_rows][-self.ranker.card.max_len :]
        return known if len(known) >= self.ranker.card.shortest else None

    def ranked(self, user_id: str | None, events: RowArray, found: RowArray, scores: FloatArray) -> Ranked | None:
        """`found` [C], with the retriever's scores, after `events`; None where the ranker knows none of them.

        An item that came after the bundle has no row in the ranker: it keeps its place in the list, the others are
        ordered around it, and it shows the score of the one above (of the first ranked one where none is).
        """
        known = found < self.ranker.num_rows
        if not known.any():
            return None
        keys, origin = self._keys.of(user_id, events)
        own = self._final(self.ranker.scores(keys, found[known]), scores[known])
        order = np.argsort(-own, kind="stable")
        rows = found.copy()
        rows[known] = found[known][order]
        above = np.maximum(np.cumsum(known) - 1, 0)
        return Ranked(rows=rows, scores=own[order][above], events=len(events), keys=origin)

    def _final(self, own: FloatArray, retrieved: FloatArray) -> FloatArray:
        weight = self.ranker.card.weight
        return own if weight is None else (retrieved + np.float32(weight) * own).astype(np.float32)
