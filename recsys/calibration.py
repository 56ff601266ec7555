"""From what a detector says to how likely an event is noise, by noise put in by ourselves.

Which events of a log are noise nobody knows, so there is nothing to learn from but scores of noise put in and scores of
the log as it is. If a share `rate` of the log is noise, and it scores like noise put in, then at score s

    P(noise | s) = rate f_in(s) / f_log(s)

with the densities of both. Their ratio is the odds of an isotonic regression that tells the two apart (positive and
unlabelled events: Elkan & Noto, KDD 2008). Dimensions: I events put in, E events of the log.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from recsys.errors import DataError


@dataclass(frozen=True)
class Steps:
    """A rising function: from `scores[i]` up to the next it is `values[i]`, and below the lowest as there."""

    scores: Float[np.ndarray, " S"]
    values: Float[np.ndarray, " S"]

    def __call__(self, scores: Float[np.ndarray, "*E"]) -> Float[np.ndarray, "*E"]:
        """Its values."""
        step = np.searchsorted(self.scores, scores, side="right") - 1
        return self.values[np.maximum(step, 0)]


@dataclass(frozen=True, kw_only=True)
class Operating:
    """What acting on probabilities from `threshold` on is expected to do; infinite where nothing is precise enough.

    `precision`: share of noise among the events acted on. `recall`: share of the noise that is acted on.
    `false_corrections`: share of all events that are acted on and no noise.
    """

    threshold: float
    precision: float
    recall: float
    false_corrections: float

    @classmethod
    def none(cls) -> "Operating":
        """Nothing is acted on."""
        return cls(threshold=np.inf, precision=1.0, recall=0.0, false_corrections=0.0)


def isotonic(scores: Float[np.ndarray, " E"], labels: Bool[np.ndarray, " E"]) -> Steps:
    """Least squares among rising functions, by pooling adjacent violators (Ayer et al., 1955)."""
    distinct, inverse = np.unique(scores, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, labels) / weights
    pools: list[list[float]] = []
    for start, (mean, weight) in enumerate(zip(means.tolist(), weights.tolist(), strict=True)):
        pools.append([mean, weight, start])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            mean, weight, _ = pools.pop()
            below = pools[-1]
            below[0] = (below[0] * below[1] + mean * weight) / (below[1] + weight)
            below[1] += weight
    values, _, starts = zip(*pools, strict=True)
    return Steps(distinct[np.array(starts, dtype=np.int64)], np.array(values))


def noise_probability(put_in: Float[np.ndarray, " I"], log: Float[np.ndarray, " E"], prior: float) -> Steps:
    """P(noise | score): `prior` times the odds of being put in, at most 1.

    `prior` is the noise rate times the events of the whole log for each one put in, so that the same holds of a part
    of the windows.
    """
    if not len(put_in) or not len(log):
        raise DataError(
            f"calibration: {len(put_in)} events were put into {len(log)}; both are needed. Bring longer histories, or "
            "raise the noise rate."
        )
    labels = np.repeat([True, False], [len(put_in), len(log)])
    told = isotonic(np.concatenate([put_in, log]).astype(np.float64), labels)
    odds = told.values / np.maximum(1 - told.values, 1e-12)
    return Steps(told.scores, np.minimum(prior * odds, 1))


def operating_point(
    put_in: Float[np.ndarray, " I"], log: Float[np.ndarray, " E"], rate: float, precision: float, fewest: int = 20
) -> Operating:
    """The lowest threshold on probabilities that is precise enough and touches `fewest` events of the log or more."""
    levels = np.unique(log)[::-1]
    touched = len(log) - np.searchsorted(np.sort(log), levels, side="left")
    recall = 1 - np.searchsorted(np.sort(put_in), levels, side="left") / len(put_in)
    noise = np.minimum(rate * recall * len(log), touched)
    good = np.flatnonzero((noise >= precision * touched) & (touched >= fewest) & (recall > 0))
    if not len(good):
        return Operating.none()
    last = good[-1]
    return Operating(
        threshold=float(levels[last]),
        precision=float(noise[last] / touched[last]),
        recall=float(recall[last]),
        false_corrections=float((touched[last] - noise[last]) / len(log)),
    )
