"""Scores raised or lowered where a filter holds; the answer is that of the whole catalogue, ranked anew.

boost A holds     yes     no
boost B holds   yes  no  yes  no       each part is searched for its own best: inside one, a boost moves all
                 1    2   3    4       scores alike and changes no order, so nothing outside these can win
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.index import FloatArray, RowArray
from serving.filters import Filter, Passing

Best = Callable[[Passing], tuple[RowArray, FloatArray]]
"""The best of what passes, with their scores."""


@dataclass(frozen=True, kw_only=True)
class Boost:
    """Of every item that passes `filter`: its score times `multiply`, a score below zero divided by it, plus `add`.

    So a factor above 1 raises every score, whatever its sign.
    """

    filter: Filter
    multiply: float = 1.0
    add: float = 0.0

    def applied(self, scores: FloatArray) -> FloatArray:
        """The scores of items that pass."""
        factor, more = np.float32(self.multiply), np.float32(self.add)
        return np.where(scores >= 0, scores * factor, scores / factor) + more


@dataclass(frozen=True)
class Boosted:
    """Boosts in order, and what passes the filter of each."""

    boosts: Sequence[Boost] = ()
    passing: Sequence[Passing] = ()

    def applied(self, rows: RowArray, scores: FloatArray) -> FloatArray:
        """Scores of `rows`, one boost after the other."""
        for boost, passing in zip(self.boosts, self.passing, strict=True):
            scores = np.where(passing.holds(rows), boost.applied(scores), scores)
        return scores

    def ranked(self, rows: RowArray, scores: FloatArray) -> tuple[RowArray, FloatArray]:
        """Rows by their new scores, best first, with these; of equal ones the lower row first, whatever the cut."""
        scores = self.applied(rows, scores)
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order]

    def best(self, of: Best, k: int, within: Passing) -> tuple[RowArray, FloatArray]:
        """The `k` that will score best of what is `within`, with their old scores, best of these first."""
        parts = [within]
        for passing in self.passing:
            parts = [half for part in parts for half in (part & passing, part.without(passing)) if half.any]
        found = [of(part) for part in parts or [within]]
        rows, scores = np.concatenate([rows for rows, _ in found]), np.concatenate([scores for _, scores in found])
        best = np.lexsort((rows, -self.applied(rows, scores)))[:k]
        best = best[np.lexsort((rows[best], -scores[best]))]
        return rows[best], scores[best]
