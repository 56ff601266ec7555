"""Paired decisions between two models from their ranks on the same cases.

Cases of one user are not independent, so users are what is resampled: each user adds up its differences and
brings its number of cases, and a mean difference is the ratio of the two sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import DataError
from recsys.evaluation import segments
from recsys.metrics import case_metrics

FloatArray = npt.NDArray[np.float64]

CASE_KEY = ("user_idx", "position", "target")
DRAWS_PER_CHUNK = 1 << 22
MIN_USERS = 20
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """B minus A of one metric: means, 95 % bootstrap interval and permutation p-value."""

    metric: str
    segment: str
    cases: int
    users: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def decided(self) -> bool:
        """Whether interval and test agree that the difference is not zero."""
        return self.users >= MIN_USERS and (self.low > 0 or self.high < 0) and self.p_value < LEVEL

    def sentence(self, a: str, b: str) -> str:
        """What the figures mean."""
        where = "" if self.segment == "all" else f" for {self.segment}"
        interval = f"95 % interval {self.low:+.4f} to {self.high:+.4f}, p = {self.p_value:.4f}"
        if self.users < MIN_USERS:
            return f"Not enough data{where}: {self.users} users cannot tell {b} from {a} on {self.metric}."
        if not self.decided:
            return f"No winner{where}: {b} and {a} cannot be told apart on {self.metric} ({interval})."
        better, worse = (b, a) if self.difference > 0 else (a, b)
        share = abs(self.difference) / max(1e-12, min(self.mean_a, self.mean_b))
        return (
            f"{better} is better than {worse} on {self.metric}{where} by {abs(self.difference):.4f} "
            f"({share:.1%} of the lower; {interval})."
        )


def compare_cases(
    cases_a: pl.DataFrame, cases_b: pl.DataFrame, cutoffs: Sequence[int], draws: int, seed: int
) -> list[Difference]:
    """Every metric at every cutoff, over all cases and per segment of `recsys.evaluation.segments`."""
    paired = pair_cases(cases_a, cases_b)
    parts = {"all": paired, **segments(paired)}
    return [
        difference
        for segment, part in parts.items()
        for difference in compare_segment(part, segment, cutoffs, draws, np.random.default_rng(seed))
    ]


def pair_cases(cases_a: pl.DataFrame, cases_b: pl.DataFrame) -> pl.DataFrame:
    """The cases with `rank` of A and `rank_b` of B; both must hold the same cases."""
    paired = cases_a.join(cases_b.select(*CASE_KEY, rank_b="rank"), on=CASE_KEY, how="inner")
    if not len(cases_a) == len(cases_b) == len(paired):
        raise DataError(
            f"compare: A has {len(cases_a)} cases and B {len(cases_b)}, of which {len(paired)} are the same; "
            "evaluate both on the same prepared data and part."
        )
    return paired


def compare_segment(
    cases: pl.DataFrame, segment: str, cutoffs: Sequence[int], draws: int, rng: np.random.Generator
) -> list[Difference]:
    """All metrics of one segment, on the same resamples."""
    values_a = case_metrics(cases["rank"].to_numpy().astype(np.int64), cutoffs)
    values_b = case_metrics(cases["rank_b"].to_numpy().astype(np.int64), cutoffs)
    _, users = np.unique(cases["user_idx"].to_numpy(), return_inverse=True)
    sizes = np.bincount(users).astype(np.float64)
    differences = [values_b[name] - values_a[name] for name in values_a]
    sums = np.stack([np.bincount(users, values) for values in differences], axis=1).astype(np.float64)
    low, high = bootstrap_interval(sums, sizes, draws, rng)
    p_values = permutation_p_values(sums, draws, rng)
    return [
        Difference(
            metric=name,
            segment=segment,
            cases=len(cases),
            users=len(sizes),
            mean_a=float(values_a[name].mean()),
            mean_b=float(values_b[name].mean()),
            difference=float(sums[:, column].sum() / sizes.sum()),
            low=float(low[column]),
            high=float(high[column]),
            p_value=float(p_values[column]),
        )
        for column, name in enumerate(values_a)
    ]


def bootstrap_interval(
    sums: FloatArray, sizes: FloatArray, draws: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """95 % percentile interval of sum / size over resampled users; sums [U, M], sizes [U], result [M] each."""
    users = len(sizes)
    means = []
    for count in chunked(draws, users):
        weights = rng.multinomial(users, np.full(users, 1 / users), size=count).astype(np.float64)
        means.append((weights @ sums) / (weights @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(means), [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    return low, high


def permutation_p_values(sums: FloatArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Two-sided p-values [M] under swapping A and B for whole users: P(|sum of +-sums| >= |sum|)."""
    observed = np.abs(sums.sum(axis=0))
    as_extreme = np.zeros(sums.shape[1])
    for count in chunked(draws, len(sums)):
        signs = rng.choice(np.array([-1.0, 1.0]), size=(count, len(sums)))
        as_extreme += (np.abs(signs @ sums) >= observed - 1e-12).sum(axis=0)
    return (1 + as_extreme) / (1 + draws)


def chunked(draws: int, users: int) -> list[int]:
    """Sizes that add up to `draws`, each small enough to hold `users` weights a draw in memory."""
    size = max(1, DRAWS_PER_CHUNK // max(1, users))
    return [min(size, draws - first) for first in range(0, draws, size)]
