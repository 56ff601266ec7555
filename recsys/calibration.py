"""From what a detector says to how likely an event is noise: isotonic regression on windows with injected noise.

The share of injected events, `rate`, is what the log is assumed to hold; noise that was there before counts as clean,
so precision is rather understated. Dimensions: E events with a score and a label.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from recsys.errors import DataError


@dataclass(frozen=True)
class Calibration:
    """Steps of a rising function: a score from `scores[i]` up to the next has probability `values[i]`."""

    scores: Float[np.ndarray, " S"]
    values: Float[np.ndarray, " S"]

    def __call__(self, scores: Float[np.ndarray, "*E"]) -> Float[np.ndarray, "*E"]:
        """Probability of being noise; below the lowest step that of the lowest."""
        step = np.searchsorted(self.scores, scores, side="right") - 1
        return self.values[np.maximum(step, 0)]


@dataclass(frozen=True, kw_only=True)
class Operating:
    """What acting on scores from `threshold` on did to injected noise; infinite where nothing was precise enough.

    `precision`: share of noise among the events acted on. `recall`: share of the noise that was acted on.
    `false_corrections`: share of the clean events that were.
    """

    threshold: float
    precision: float
    recall: float
    false_corrections: float


def isotonic(scores: Float[np.ndarray, " E"], noisy: Bool[np.ndarray, " E"]) -> Calibration:
    """Least squares among rising functions, by pooling adjacent violators (Ayer et al., 1955)."""
    if not noisy.any() or noisy.all():
        raise DataError(
            f"calibration: {int(noisy.sum())} of {len(noisy)} events carry injected noise; both kinds are needed. "
            "Bring longer histories, or raise the noise rate."
        )
    distinct, inverse = np.unique(scores, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, noisy) / weights
    pools: list[list[float]] = []
    for start, (mean, weight) in enumerate(zip(means.tolist(), weights.tolist(), strict=True)):
        pools.append([mean, weight, start])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            mean, weight, _ = pools.pop()
            below = pools[-1]
            below[0] = (below[0] * below[1] + mean * weight) / (below[1] + weight)
            below[1] += weight
    values, _, starts = zip(*pools, strict=True)
    return Calibration(distinct[np.array(starts, dtype=np.int64)], np.array(values))


def operating_point(
    scores: Float[np.ndarray, " E"], noisy: Bool[np.ndarray, " E"], precision: float, fewest: int = 20
) -> Operating:
    """The lowest threshold from which at least this share of the events is noise, judged on `fewest` events or more."""
    order = np.argsort(-scores, kind="stable")
    ordered, found = scores[order], np.cumsum(noisy[order])
    taken = np.arange(1, len(order) + 1)
    whole = np.append(ordered[1:] != ordered[:-1], True)  # equal scores are acted on together
    good = np.flatnonzero(whole & (taken >= fewest) & (found >= precision * taken))
    if not len(good):
        return Operating(threshold=np.inf, precision=1.0, recall=0.0, false_corrections=0.0)
    last = good[-1]
    return Operating(
        threshold=float(ordered[last]),
        precision=float(found[last] / taken[last]),
        recall=float(found[last] / noisy.sum()),
        false_corrections=float((taken[last] - found[last]) / (~noisy).sum()),
    )
