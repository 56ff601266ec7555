"""What another policy would have earned, from what one policy showed: off-policy estimates, users as units.

Value is reward a request. With weight w of a row (how much likelier the other policy is to show it there), its reward
r, the reward q that a model predicts of it and the reward e that the model expects of what the other policy would show
in its place, Q requests and n_k rows at position k:

    ips         sum w r / Q                          unbiased where the log could have shown all that the policy shows
    snips       sum_k n_k/Q (sum w r / sum w)_k      slightly biased, less spread (Swaminathan & Joachims, 2015)
    clipped     sum min(w, c) r / Q                  biased downwards, less spread (Bottou et al., 2013)
    dm          sum e / Q                            as good as the model of rewards
    dr          sum [e + w (r - q)] / Q              unbiased as ips, less spread (Dudik, Langford & Li, 2011)
    switch-dr   the same with w = 0 where w > c      (Wang, Agarwal & Dudik, 2017)

Weights of lists follow from an assumption on how people read them: `recsys.slate_policy`.
Dimensions: N rows, Q requests, G units of users, C sums, R draws, K positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recsys.errors import DataError
from recsys.metrics import FloatArray, IntArray
from recsys.resampling import LEVEL, Resamples

LOGGED = "logged"
"""Stands in the place of an estimator for what was earned."""
ENOUGH = 100
"""Rows: an effective sample of fewer is little."""
LITTLE = 0.01
"""An effective sample of less than this share of the rows is little."""
MUCH = 0.1
"""Share of all weight that one user should not have."""
FAR = 3.0
"""Standard errors by which the mean weight must differ from 1 to be said."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """Rows [N] that one policy showed: whose, in which request and place of the list, and what came of them.

    `weights`: how much likelier the other policy is to show them. `predicted` and `expected` rewards (q and e above)
    are None without a model of rewards.
    """

    users: IntArray
    requests: IntArray
    positions: IntArray
    rewards: FloatArray
    weights: FloatArray
    predicted: FloatArray | None = None
    expected: FloatArray | None = None

    def __post_init__(self) -> None:
        if not len(self.rewards):
            raise DataError("off-policy: the log has no rows; nothing can be estimated.")
        for name in ("rewards", "weights", "predicted", "expected"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values))[0])
                raise DataError(f"off-policy: {name} of row {row} is {values[row]}; every row needs a finite number.")
        if (self.weights < 0).any():
            raise DataError(f"off-policy: the smallest weight is {self.weights.min()}; none may be below 0.")

    @property
    def shares(self) -> FloatArray:
        """1 / rows of the same request, [N]: they sum to the number of requests."""
        _, own, counts = np.unique(self.requests, return_inverse=True, return_counts=True)
        return 1 / counts[own]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Reward a request of the other policy and how much more that is than what was earned, with 95 % intervals."""

    estimator: str
    value: float
    interval: tuple[float, float]
    standard_error: float
    difference: float
    difference_interval: tuple[float, float]

    @property
    def decided(self) -> bool:
        """Whether the interval of the difference leaves 0 out."""
        return self.difference_interval[0] > 0 or self.difference_interval[1] < 0


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of the log speaks of the other policy.

    `effective`: as many rows of equal weight would say as much (Kish). `mean_weight` is 1, but for chance, where the
    log could have shown all that the policy shows. `largest_user`: share of all weight that one user has.
    """

    rows: int
    requests: int
    users: int
    matched: int
    effective: float
    mean_weight: float
    mean_weight_error: float
    largest_weight: float
    largest_user: float
    above: float
    clip: float

    @property
    def few(self) -> bool:
        """Whether hardly any row decides."""
        return self.effective < max(ENOUGH, LITTLE * self.rows)

    @property
    def off(self) -> bool:
        """Whether the mean weight is not 1, by more than chance."""
        return abs(self.mean_weight - 1) > max(FAR * self.mean_weight_error, 1e-9)

    @property
    def enough(self) -> bool:
        """Whether the estimates may be believed: neither of the two, nor one user who decides."""
        return not (self.few or self.off or self.largest_user > MUCH)

    def warnings(self) -> list[str]:
        """What should keep one from believing the estimates; empty where nothing does."""
        found = []
        if not self.matched:
            return [
                "No overlap: the policy would show none of what was shown, in its place; only dm says anything of it, "
                "and that is the model of rewards alone."
            ]
        if self.few:
            found.append(
                f"Little overlap: {self.rows:,} rows say as much as {self.effective:,.0f} that the policy itself had "
                "shown; intervals are too narrow where so few decide."
            )
        if self.off and self.mean_weight < 1:
            found.append(
                f"The log covers {self.mean_weight:.0%} of what the policy would show (weights average "
                f"{self.mean_weight:.2f}, and 1 is right): the rest had no chance to be shown, or its propensities are "
                "too high. ips and dr count it as if it earned nothing beyond what the model expects."
            )
        if self.off and self.mean_weight > 1:
            found.append(
                f"Weights average {self.mean_weight:.2f}, and 1 is right: logged propensities are too low, or not "
                "those of the policy that acted."
            )
        if self.largest_user > MUCH:
            found.append(f"One user has {self.largest_user:.0%} of all weight.")
        if self.above > 0:
            found.append(
                f"{self.above:.1%} of all weight lies above {self.clip:g}, where clipped cuts it and switch-dr trusts "
                "the model of rewards."
            )
        return found


Totals = Callable[[FloatArray], FloatArray]
"""From sums [R, C] to values [R]."""


@dataclass(frozen=True)
class Estimator:
    """Sums [G, C] by unit, and the value that follows from their totals."""

    name: str
    sums: FloatArray
    values: Totals

    @property
    def value(self) -> float:
        """The estimate."""
        return float(self.values(self.sums.sum(axis=0, keepdims=True))[0])

    def drawn(self, resamples: Resamples) -> FloatArray:
        """The estimate from every draw, [R]."""
        return self.values(resamples.totals(self.sums))


def estimators(log: Logged, clip: float, unit: IntArray | None = None) -> list[Estimator]:
    """What was earned, then all that the log allows: those with a model of rewards where it has predictions.

    Their sums are those of each `unit` [N], numbered from 0; without it those of the whole log.
    """
    own = np.zeros(len(log.rewards), dtype=np.int64) if unit is None else unit
    weights, rewards, requests = log.weights, log.rewards, _summed(own, log.shares)

    def mean(name: str, values: FloatArray) -> Estimator:
        return Estimator(name, np.stack([_summed(own, values), requests], axis=1), _ratio)

    found = [
        mean(LOGGED, rewards),
        mean("ips", weights * rewards),
        _self_normalised(log, own, requests),
        mean("clipped", np.minimum(weights, clip) * rewards),
    ]
    if log.predicted is None or log.expected is None:
        return found
    residuals = rewards - log.predicted
    trusted = np.where(weights <= clip, weights, 0.0)
    return [
        *found,
        mean("dm", log.expected),
        mean("dr", log.expected + weights * residuals),
        mean("switch-dr", log.expected + trusted * residuals),
    ]


def estimate(log: Logged, clip: float = 10.0, draws: int = 2000, seed: int = 0) -> list[Estimate]:
    """What was earned (`logged`), then each estimator; percentile bootstrap intervals on the same draws of users."""
    resamples = Resamples.of_users(log.users, draws, seed)
    found = [(entry.name, entry.value, entry.drawn(resamples)) for entry in estimators(log, clip, resamples.unit)]
    _, own, own_draws = found[0]
    return [
        Estimate(
            estimator=name,
            value=value,
            interval=_percentiles(values),
            standard_error=float(np.std(values, ddof=1)),
            difference=value - own,
            difference_interval=_percentiles(values - own_draws),
        )
        for name, value, values in found
    ]


def overlap(log: Logged, clip: float = 10.0) -> Overlap:
    """Of the weights; standard error of their mean with users as units."""
    weights, total = log.weights, log.weights.sum()
    _, own = np.unique(log.users, return_inverse=True)
    by_user, sizes = np.bincount(own, weights), np.bincount(own)
    mean = total / len(weights)
    error = np.sqrt(((by_user - mean * sizes) ** 2).sum()) / len(weights)
    return Overlap(
        rows=len(weights),
        requests=len(np.unique(log.requests)),
        users=len(by_user),
        matched=int(np.count_nonzero(weights)),
        effective=float(total**2 / (weights**2).sum()) if total else 0.0,
        mean_weight=float(mean),
        mean_weight_error=float(error),
        largest_weight=float(weights.max()),
        largest_user=float(by_user.max() / total) if total else 0.0,
        above=float(np.maximum(0, weights - clip).sum() / total) if total else 0.0,
        clip=clip,
    )


def _summed(unit: IntArray, values: FloatArray) -> FloatArray:
    """[N] by row -> [G]."""
    return np.bincount(unit, values).astype(np.float64)


def _ratio(sums: FloatArray) -> FloatArray:
    """[R, 2] -> [R], values over requests."""
    return sums[:, 0] / sums[:, 1]


def _self_normalised(log: Logged, unit: IntArray, requests: FloatArray) -> Estimator:
    """By position: rewards, weights and rows; and requests. A position without any weight adds nothing."""
    places, place = np.unique(log.positions, return_inverse=True)
    cell, cells = unit * len(places) + place, len(requests) * len(places)
    parts = [
        np.bincount(cell, values, minlength=cells).reshape(len(requests), len(places))
        for values in (log.weights * log.rewards, log.weights, None)
    ]

    def values(sums: FloatArray) -> FloatArray:
        earned, weights, rows = (sums[:, part * len(places) : (part + 1) * len(places)] for part in range(3))
        means = np.divide(earned, weights, out=np.zeros_like(earned), where=weights > 0)
        return (rows * means).sum(axis=1) / sums[:, -1]

    return Estimator("snips", np.concatenate([*parts, requests[:, None]], axis=1), values)


def _percentiles(values: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
