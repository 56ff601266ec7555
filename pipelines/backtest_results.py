"""What a backtest found: figures by period, over all periods, and paired differences between policies."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import polars as pl

from pipelines.replay import Replay
from pipelines.replay_period import CASES, CUTOFF
from recsys.comparison import Difference, PairedCases, corrected
from recsys.metrics import case_metrics
from recsys.periods import Period
from recsys.steps import read_manifest

NDCG, HITS = f"ndcg@{CUTOFF}", f"hit_rate@{CUTOFF}"
PERIOD_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of a policy or floor in one period (`period` and `start`), or in all after the first.

    `new_item_share`: cases whose target the model in charge was not taught, which is a miss.
    """

    name: str
    cases: int
    ndcg: float
    hit_rate: float
    new_item_share: float
    training_seconds: float
    period: int | None = None
    start: str | None = None


@dataclass(frozen=True, kw_only=True)
class Versus:
    """B beside A: every metric, the first one's p-value corrected for all pairs; `period` None: all after the first."""

    a: str
    b: str
    differences: Sequence[Difference]
    period: int | None = None

    @property
    def headline(self) -> Difference:
        """NDCG."""
        return self.differences[0]

    def sentence(self) -> str:
        """What it means."""
        return self.headline.sentence(self.a, self.b)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"decided": self.headline.decided, "sentence": self.sentence()}


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """Everything about a finished replay."""

    settings: Mapping[str, Any]
    seen: str
    policies: Sequence[str]
    floors: Sequence[str]
    periods: Sequence[Figures]
    overall: Sequence[Figures]
    versus: Sequence[Versus]
    versus_by_period: Sequence[Versus]

    @property
    def num_periods(self) -> int:
        """The first one included."""
        return len({row.period for row in self.periods})

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and `backtest.json`."""
        return asdict(self) | {
            name: [entry.as_dict() for entry in entries]
            for name, entries in (("versus", self.versus), ("versus_by_period", self.versus_by_period))
        }

    def sentences(self) -> list[str]:
        """One a pair."""
        return [entry.sentence() for entry in self.versus]


def summed_up(replay: Replay) -> Backtest:
    """From the folders of all periods.

    In the first period all policies are the same model, so it says nothing of them, and only its row is kept.
    """
    names = (*replay.config.followed, *replay.floors)
    manifests = [read_manifest(replay.folder(period), "backtest")["counts"] for period in replay.periods]
    cases = numbered(replay)
    rows = [
        figures(name, cases.filter(pl.col("period") == period.number), [counts], period, counts["start"])
        for period, counts in zip(replay.periods, manifests, strict=True)
        for name in names
    ]
    later = cases.filter(pl.col("period") > 0)
    overall = [figures(name, later, manifests[1:]) for name in names]
    pairs = list(combinations(replay.config.followed, 2))
    if replay.floors:
        best = max(overall[len(replay.config.followed) :], key=lambda entry: entry.ndcg).name
        pairs += [(best, policy) for policy in replay.config.followed]
    draws, seed = replay.config.draws, replay.config.seed
    found = corrected([differences(later, a, b, draws, seed) for a, b in pairs]) if pairs else []
    base, *others = replay.config.followed
    return Backtest(
        settings=replay.settings,
        seen=replay.seen,
        policies=replay.config.followed,
        floors=replay.floors,
        periods=rows,
        overall=overall,
        versus=[Versus(a=a, b=b, differences=entries) for (a, b), entries in zip(pairs, found, strict=True)],
        versus_by_period=[
            Versus(a=base, b=other, differences=differences(part, base, other, PERIOD_DRAWS, seed)[:1], period=number)
            for (number,), part in later.group_by("period", maintain_order=True)
            for other in others
        ],
    )


def numbered(replay: Replay) -> pl.DataFrame:
    """Cases of all periods: users and targets by number, the period, and a rank for every policy and floor."""
    cases = pl.concat([
        pl.read_parquet(replay.folder(period) / CASES).with_columns(period=pl.lit(period.number))
        for period in replay.periods
    ])
    return cases.with_columns(
        user_idx=pl.col("user_id").rank("dense").cast(pl.Int32),
        target=pl.col("item_id").rank("dense").cast(pl.Int32),
    ).drop("user_id", "item_id")


def figures(
    name: str,
    cases: pl.DataFrame,
    manifests: Sequence[Mapping[str, Any]],
    period: Period | None = None,
    start: str | None = None,
) -> Figures:
    """Means over cases, sums over the counts of the periods that they lie in."""
    values = case_metrics(cases[name].to_numpy(), (CUTOFF,))
    return Figures(
        name=name,
        cases=len(cases),
        ndcg=float(values[NDCG].mean()),
        hit_rate=float(values[HITS].mean()),
        new_item_share=sum(counts["new_items"][name] for counts in manifests) / len(cases),
        training_seconds=round(sum(counts["training_seconds"][name] for counts in manifests), 3),
        period=None if period is None else period.number,
        start=start,
    )


def differences(cases: pl.DataFrame, a: str, b: str, draws: int, seed: int) -> list[Difference]:
    """Paired by case, users resampled; not yet corrected."""
    first, second = (cases.select("user_idx", "position", "target", rank=pl.col(name)) for name in (a, b))
    return PairedCases.of(first, second, (CUTOFF,), draws, seed).differences("all")
