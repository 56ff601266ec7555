"""What an online experiment says: is the split as intended, and how much more does one variant earn than another?

Users are the units. A figure of a variant is a ratio of two sums over its users (outcomes to requests, or to users);
its error follows from the linear part. CUPED (Deng, Xu, Kohavi & Walker, 2013) takes out of a difference what users
did before they saw a variant. Dimensions: U users, A variants, P covariates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recsys import sequential
from recsys.metrics import FloatArray, IntArray
from recsys.resampling import LEVEL

MIN_USERS = 50
"""Of each variant: with fewer, no interval is to be trusted."""
MISMATCH = 0.01
"""p-value of the split, at any look, below which its users are not comparable."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Users of each variant and how many there should be; p-values of one look (chi-square) and of any number."""

    variants: tuple[str, ...]
    users: tuple[int, ...]
    due: tuple[float, ...]
    p_value: float
    always_p_value: float

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it, however often it was asked."""
        return self.always_p_value >= MISMATCH

    def sentence(self) -> str:
        """What the counts say."""
        found = ", ".join(
            f"{name} {users:,} users ({due:,.0f} due)"
            for name, users, due in zip(self.variants, self.users, self.due, strict=True)
        )
        figures = f"{found}; p = {self.p_value:.4g}, at any look {self.always_p_value:.4g}"
        if self.holds:
            return f"The split is as intended: {figures}."
        return (
            f"Sample ratio mismatch: {figures}. Users were lost or added on one side, so the variants' users are not "
            "alike and no difference between them may be believed; find the cause first."
        )


def check_split(names: Sequence[str], variants: IntArray, shares: FloatArray) -> Split:
    """Of users [U] in order of arrival and the shares [U, A] that the variants had then."""
    users, due = np.bincount(variants, minlength=len(names)), shares.sum(axis=0)
    statistic = ((users - due) ** 2 / due).sum()
    return Split(
        variants=tuple(names),
        users=tuple(int(count) for count in users),
        due=tuple(float(count) for count in due),
        p_value=float(stats.chi2.sf(statistic, len(names) - 1)),
        always_p_value=float(sequential.split_p_values(variants, shares)[-1]),
    )


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How much more a variant earns than the base of one metric, with intervals for one look and for any number.

    `saved`: by how much CUPED made the variance smaller. `adjusted` is the p-value of any number of looks (of one,
    where `once`) after Holm's correction among the effects it was found with.
    """

    metric: str
    base: str
    variant: str
    users: tuple[int, int]
    mean_base: float
    mean_variant: float
    difference: float
    standard_error: float
    interval: tuple[float, float]
    p_value: float
    always_interval: tuple[float, float]
    always_p_value: float
    saved: float
    once: bool
    adjusted: float

    @property
    def enough(self) -> bool:
        """Whether both variants have enough users."""
        return min(self.users) >= MIN_USERS

    @property
    def deciding_interval(self) -> tuple[float, float]:
        """That of one look where only one is taken, else that of any number."""
        return self.interval if self.once else self.always_interval

    @property
    def decided(self) -> bool:
        """Whether interval and corrected p-value agree that the difference is not zero."""
        low, high = self.deciding_interval
        return self.enough and (low > 0 or high < 0) and self.adjusted < LEVEL

    def sentence(self) -> str:
        """What the figures mean."""
        low, high = self.deciding_interval
        looks = "one look" if self.once else "valid at every look"
        figures = f"95 % interval {low:+.4f} to {high:+.4f}, {looks}, p = {self.adjusted:.4f}"
        if not self.enough:
            fewest = min(self.users)
            return f"Not enough data: {fewest} users cannot tell {self.variant} from {self.base} on {self.metric}."
        if not self.decided:
            return f"No winner yet: {self.variant} and {self.base} cannot be told apart on {self.metric} ({figures})."
        better, worse = (self.variant, self.base) if self.difference > 0 else (self.base, self.variant)
        return f"{better} is better than {worse} on {self.metric} by {abs(self.difference):.4f} ({figures})."


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of every user [U] as parts of a ratio: what it earned, and over what (requests, or 1 for the user)."""

    name: str
    earned: FloatArray
    sizes: FloatArray


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an experiment is judged: `planned` users at which intervals shall be narrowest; `once`: only one look."""

    planned: int = 10_000
    once: bool = False


def effect(
    measured: Measured, variants: IntArray, names: tuple[str, str], covariates: FloatArray, plan: Plan
) -> Effect:
    """Of variant 1 over variant 0 of each user [U]; `covariates` [U, P] were known before users saw any."""
    earned, sizes = measured.earned, measured.sizes
    sides = [np.flatnonzero(variants == side) for side in (0, 1)]
    means = [float(earned[side].sum() / sizes[side].sum()) if len(side) else 0.0 for side in sides]
    plain = _linear(earned, sizes, sides, means)
    adjusted, shift = _without_covariates(plain, sides, covariates)
    error, plain_error = (_standard_error(values, sides) for values in (adjusted, plain))
    difference, users = means[1] - means[0] - shift, len(variants)
    wide = sequential.radius(error, max(1, users), plan.planned)
    always = sequential.p_value(difference, error, max(1, users), plan.planned)
    once = float(2 * stats.norm.sf(abs(difference) / error)) if error else float(difference == 0)
    narrow = float(stats.norm.isf(LEVEL / 2)) * error
    return Effect(
        metric=measured.name,
        base=names[0],
        variant=names[1],
        users=(len(sides[0]), len(sides[1])),
        mean_base=means[0],
        mean_variant=means[1],
        difference=difference,
        standard_error=error,
        interval=(difference - narrow, difference + narrow),
        p_value=once,
        always_interval=(difference - wide, difference + wide),
        always_p_value=always,
        saved=1 - error**2 / plain_error**2 if plain_error else 0.0,
        once=plan.once,
        adjusted=once if plan.once else always,
    )


def _linear(earned: FloatArray, sizes: FloatArray, sides: Sequence[IntArray], means: Sequence[float]) -> FloatArray:
    """[U], values whose means differ as the ratios do, and whose spread is theirs (delta method)."""
    values = np.zeros(len(earned))
    for side, mean in zip(sides, means, strict=True):
        if len(side):
            values[side] = mean + (earned[side] - mean * sizes[side]) / sizes[side].mean()
    return values


def _without_covariates(
    values: FloatArray, sides: Sequence[IntArray], covariates: FloatArray
) -> tuple[FloatArray, float]:
    """Values less what covariates explain within the variants, and how much of the difference of means that was."""
    kept = covariates[:, covariates.std(axis=0) > 0] if len(covariates) else covariates
    if not kept.shape[1] or min(map(len, sides)) < 2:
        return values, 0.0
    within_x, within_y = kept.copy(), values.copy()
    for side in sides:
        within_x[side] -= kept[side].mean(axis=0)
        within_y[side] -= values[side].mean()
    slopes = np.linalg.lstsq(within_x, within_y, rcond=None)[0]
    explained = (kept - kept.mean(axis=0)) @ slopes
    return values - explained, float(explained[sides[1]].mean() - explained[sides[0]].mean())


def _standard_error(values: FloatArray, sides: Sequence[IntArray]) -> float:
    """Of the difference of two means of independent users."""
    return float(np.sqrt(sum(values[side].var(ddof=1) / len(side) for side in sides if len(side) > 1)))
