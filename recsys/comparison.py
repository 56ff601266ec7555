"""Paired decisions between models from their ranks on the same cases.

Users are what is resampled (`recsys.resampling`): each adds up its differences and brings its number of cases, and a
mean difference is the ratio of the two sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.evaluation import segment_rows
from recsys.metrics import FloatArray, IntArray, case_metrics
from recsys.resampling import LEVEL, Resamples, holm, standard_errors

CASE_KEY = ("user_idx", "position", "target")
MIN_USERS = 20
DETECTABLE = 1.959964 + 0.841621
"""Standard errors that an effect must be long for a test at 5 % to find it four times in five."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """B minus A of one metric: means, 95 % bootstrap interval and permutation p-value.

    `adjusted` is the p-value after Holm's correction among the comparisons it was made with.
    """

    metric: str
    segment: str
    cases: int
    users: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float
    adjusted: float

    @property
    def decided(self) -> bool:
        """Whether interval and corrected test agree that the difference is not zero."""
        return self.users >= MIN_USERS and (self.low > 0 or self.high < 0) and self.adjusted < LEVEL

    @property
    def detectable(self) -> float:
        """The smallest difference that so many users would show four times in five."""
        return DETECTABLE * self.standard_error

    @property
    def users_needed(self) -> int | None:
        """How many users would show the measured difference four times in five; None where there is none to show."""
        return int(np.ceil(self.users * (self.detectable / self.difference) ** 2)) if self.difference else None

    def sentence(self, a: str, b: str) -> str:
        """What the figures mean; the interval is that of the winner's lead, without a winner of B minus A."""
        where = "" if self.segment == "all" else f" for {self.segment}"
        lead = (self.low, self.high) if self.difference >= 0 or not self.decided else (-self.high, -self.low)
        interval = f"95 % interval {lead[0]:+.4f} to {lead[1]:+.4f}, p = {self.adjusted:.4f}"
        if self.users < MIN_USERS:
            return f"Not enough data{where}: {self.users} users cannot tell {b} from {a} on {self.metric}."
        if not self.decided:
            return (
                f"No winner{where}: {b} and {a} cannot be told apart on {self.metric} ({interval}; a difference of "
                f"{self.detectable:.4f} would be seen four times in five)."
            )
        better, worse = (b, a) if self.difference > 0 else (a, b)
        share = abs(self.difference) / max(1e-12, min(self.mean_a, self.mean_b))
        return (
            f"{better} is better than {worse} on {self.metric}{where} by {abs(self.difference):.4f} "
            f"({share:.1%} of the lower; {interval})."
        )


@dataclass(frozen=True)
class PairedCases:
    """Cases with the ranks of both models, their metrics by case, and the draws they are compared by."""

    cases: pl.DataFrame
    values_a: dict[str, FloatArray]
    values_b: dict[str, FloatArray]
    users: IntArray
    resamples: Resamples

    @classmethod
    def of(
        cls, cases_a: pl.DataFrame, cases_b: pl.DataFrame, cutoffs: Sequence[int], draws: int, seed: int
    ) -> "PairedCases":
        """Both must hold the same cases."""
        cases = pair_cases(cases_a, cases_b)
        values_a, values_b = (
            case_metrics(cases[name].to_numpy().astype(np.int64), cutoffs) for name in ("rank", "rank_b")
        )
        _, users = np.unique(cases["user_idx"].to_numpy(), return_inverse=True)
        return cls(cases, values_a, values_b, users, Resamples.of_users(users, draws, seed))

    def differences(self, segment: str, rows: IntArray | slice = slice(None)) -> list[Difference]:
        """Every metric over some of the cases, on the same resamples; not yet corrected."""
        sizes = self.resamples.sums(np.ones(len(self.users))[rows], rows)
        sums = np.stack(
            [self.resamples.sums((self.values_b[name] - self.values_a[name])[rows], rows) for name in self.values_a],
            axis=1,
        )
        low, high = self.resamples.interval(sums, sizes)
        errors, p_values = standard_errors(sums, sizes), self.resamples.p_values(sums)
        users = int(np.count_nonzero(np.bincount(self.users[rows])))
        return [
            Difference(
                metric=name,
                segment=segment,
                cases=int(sizes.sum()),
                users=users,
                mean_a=float(self.values_a[name][rows].mean()),
                mean_b=float(self.values_b[name][rows].mean()),
                difference=float(sums[:, column].sum() / sizes.sum()),
                low=float(low[column]),
                high=float(high[column]),
                standard_error=float(errors[column]),
                p_value=float(p_values[column]),
                adjusted=float(p_values[column]),
            )
            for column, name in enumerate(self.values_a)
        ]


def compare_cases(
    cases_a: pl.DataFrame, cases_b: pl.DataFrame, cutoffs: Sequence[int], draws: int, seed: int
) -> list[Difference]:
    """Every metric at every cutoff, over all cases and per segment of `recsys.evaluation.segment_rows`; corrected."""
    paired = PairedCases.of(cases_a, cases_b, cutoffs, draws, seed)
    found = paired.differences("all")
    for segment, rows in segment_rows(paired.cases):
        found += paired.differences(segment, rows)
    return corrected([found])[0]


def corrected(comparisons: Sequence[Sequence[Difference]]) -> list[list[Difference]]:
    """Several models against one: the first difference of each decides, and these are corrected among themselves;
    all others, which say where and in what else, among themselves too."""
    first = holm([differences[0].p_value for differences in comparisons])
    others = holm([entry.p_value for differences in comparisons for entry in differences[1:]])
    rest = iter(others)
    return [
        [replace(differences[0], adjusted=float(own))]
        + [replace(entry, adjusted=float(next(rest))) for entry in differences[1:]]
        for differences, own in zip(comparisons, first, strict=True)
    ]


def pair_cases(cases_a: pl.DataFrame, cases_b: pl.DataFrame) -> pl.DataFrame:
    """The cases with `rank` of A and `rank_b` of B; both must hold the same cases."""
    paired = cases_a.join(cases_b.select(*CASE_KEY, rank_b="rank"), on=CASE_KEY, how="inner", maintain_order="left")
    if not len(cases_a) == len(cases_b) == len(paired):
        raise DataError(
            f"compare: A has {len(cases_a)} cases and B {len(cases_b)}, of which {len(paired)} are the same; "
            "evaluate both on the same prepared data and part."
        )
    return paired
