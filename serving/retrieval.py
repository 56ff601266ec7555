"""The first stage: the best items of those that an answer may hold, by inner product or by popularity."""

from dataclasses import dataclass

import numpy as np

from recsys.catalog import PADDING
from recsys.index import FloatArray, ItemIndex, RowArray, of_length_one, use_one_thread
from serving.boosts import Boosted
from serving.filters import Passing
from serving.new_items import NewVectors

NO_BOOSTS = Boosted()


@dataclass(frozen=True)
class Wanted:
    """What an answer may hold: all but `excluded` rows and those that do not pass (None: all do); and its boosts."""

    excluded: RowArray
    passing: Passing | None = None
    boosted: Boosted = NO_BOOSTS


@dataclass(frozen=True)
class Shelf:
    """A bundle's items and those that came since, at one moment."""

    index: ItemIndex
    new: NewVectors

    def nearest(self, vector: FloatArray, k: int, wanted: Wanted) -> tuple[RowArray, FloatArray]:
        """Rows and inner products of the `k` items that will score best, highest product first; `vector` [1, D]."""
        if not wanted.boosted.boosts:
            return self._search(vector, k, wanted.excluded, wanted.passing)
        every = Passing.all(self.new.first, len(self.new.vectors))
        within = every if wanted.passing is None else wanted.passing
        return wanted.boosted.best(lambda part: self._search(vector, k, wanted.excluded, part), k, within)

    def _search(
        self, vector: FloatArray, k: int, excluded: RowArray, passing: Passing | None
    ) -> tuple[RowArray, FloatArray]:
        use_one_thread()
        known = excluded[excluded < self.new.first]
        if passing is None:
            (rows,), (scores,) = self.index.search(vector, k, known)
            return self.new.merged(vector, rows, scores, k, excluded)
        rows, scores = self.index.search_within(vector, k, passing.known, known)
        return self.new.merged(vector, rows, scores, k, excluded, passing.later)

    def vectors(self, rows: RowArray) -> FloatArray:
        """[len(rows), D]."""
        found = np.empty((len(rows), self.index.width), dtype=np.float32)
        known = rows < self.new.first
        found[known] = self.index.vectors(rows[known])
        found[~known] = self.new.vectors[rows[~known] - self.new.first]
        return found

    def directions(self, rows: RowArray) -> FloatArray:
        """The same, scaled to length 1."""
        return of_length_one(self.vectors(rows))


class Popular:
    """Items by popularity, for users without history; new items have none."""

    def __init__(self, scores: FloatArray) -> None:
        self._scores = scores
        order = np.argsort(-scores, kind="stable")
        self._rows = order[order != PADDING]

    def best(self, k: int, wanted: Wanted) -> tuple[RowArray, FloatArray]:
        """Rows and popularity of the `k` that will score best, most popular first."""
        if not wanted.boosted.boosts:
            return self._of(k, wanted.excluded, wanted.passing)
        within = Passing.all(len(self._scores), 0) if wanted.passing is None else wanted.passing
        return wanted.boosted.best(lambda part: self._of(k, wanted.excluded, part), k, within)

    def _of(self, k: int, excluded: RowArray, passing: Passing | None) -> tuple[RowArray, FloatArray]:
        rows = self._rows if passing is None else self._rows[passing.known.mask[self._rows]]
        rows = rows[: k + len(excluded)]
        rows = rows[~np.isin(rows, excluded)][:k]
        return rows, self._scores[rows]


def cosine_index(index: ItemIndex) -> ItemIndex:
    """The same items, scaled to length 1."""
    unit = of_length_one(index.vectors(np.arange(1, index.num_items + 1)))
    return ItemIndex.build(np.concatenate([np.zeros_like(unit[:1]), unit]))
