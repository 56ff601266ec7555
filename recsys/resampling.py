"""Bootstrap and permutation over users: one set of draws for every metric and segment of a comparison.

Cases of one user are not independent, so users are what is drawn. Beyond some thousand users, random groups of them
stand in for single ones: intervals and p-values rest on the spread between groups, and cost no more as logs grow.
Dimensions: N cases, G units (users or groups of users), M metrics, R draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.metrics import FloatArray, IntArray

MOST_UNITS = 2000
LEVEL = 0.05
DRAWS_PER_CHUNK = 1 << 21
"""Numbers of a chunk of draws in memory."""


@dataclass(frozen=True)
class Resamples:
    """`unit` [N] of each case, how often each unit is drawn [R, G], and whether it swaps its models [R, G]."""

    unit: IntArray
    weights: npt.NDArray[np.int16]
    signs: npt.NDArray[np.int8]

    @classmethod
    def of_users(cls, users: IntArray, draws: int, seed: int) -> "Resamples":
        """For cases of these users [N]."""
        rng = np.random.default_rng(seed)
        distinct, unit = np.unique(users, return_inverse=True)
        groups = len(distinct)
        if groups > MOST_UNITS:
            unit, groups = (rng.permutation(groups) % MOST_UNITS)[unit], MOST_UNITS
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(np.int16)
        signs = rng.integers(0, 2, size=(draws, groups), dtype=np.int8) * 2 - 1
        return cls(unit.astype(np.int64), weights, signs.astype(np.int8))

    @property
    def units(self) -> int:
        """G."""
        return self.weights.shape[1]

    def sums(self, values: FloatArray, rows: IntArray | slice = slice(None)) -> FloatArray:
        """Of the values [n] of some cases by unit, [G]."""
        return np.bincount(self.unit[rows], values, minlength=self.units).astype(np.float64)

    def interval(self, sums: FloatArray, sizes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """95 % percentile intervals [M] of sum / size; sums [G, M], sizes [G]. Draws without a case do not count."""
        means = []
        for weights in _chunks(self.weights):
            totals = weights @ sizes
            means.append((weights @ sums)[totals > 0] / totals[totals > 0, None])
        low, high = np.quantile(np.concatenate(means), [LEVEL / 2, 1 - LEVEL / 2], axis=0)
        return low, high

    def totals(self, sums: FloatArray) -> FloatArray:
        """Of sums [G, C] in every draw, [R, C]."""
        return np.concatenate([weights @ sums for weights in _chunks(self.weights)])

    def p_values(self, sums: FloatArray) -> FloatArray:
        """Two-sided p-values [M] under swapping A and B for whole units: P(|sum of +-sums| >= |sum|)."""
        observed = np.abs(sums.sum(axis=0))
        as_extreme = sum(
            (np.abs(signs @ sums) >= observed * (1 - 1e-9) - 1e-12).sum(axis=0) for signs in _chunks(self.signs)
        )
        return (1 + as_extreme) / (1 + len(self.signs))


def standard_errors(sums: FloatArray, sizes: FloatArray) -> FloatArray:
    """Of the ratio sum / size [M], by its linear part: the spread of units around the mean."""
    total, units = sizes.sum(), np.count_nonzero(sizes)
    residuals = sums - sums.sum(axis=0) / total * sizes[:, None]
    return np.sqrt((residuals**2).sum(axis=0) * units / max(1, units - 1)) / total


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Adjusted p-values (Holm, 1979): below a level for none that is true more often than that, over all of them."""
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    steps = given[order] * np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def _chunks(draws: npt.NDArray[np.int16] | npt.NDArray[np.int8]) -> Iterator[FloatArray]:
    size = max(1, DRAWS_PER_CHUNK // draws.shape[1])
    for first in range(0, len(draws), size):
        yield draws[first : first + size].astype(np.float64)
