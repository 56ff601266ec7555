"""`recsys experiment LOG… --base NAME`: which variant of an online experiment is better, and may that be believed?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from pipelines.exposed import Period, answers_since, impressions_of, read_until, shares_at
from recsys.errors import ConfigError, DataError
from recsys.experiment import Effect, Measured, Plan, Split, check_split, effect
from recsys.exposures import DAY, Attribution, end_of
from recsys.metrics import FloatArray, IntArray
from recsys.resampling import holm

Metric = Literal["outcomes a user", "users with an outcome", "outcomes a request", "value a user"]
SEVERAL = "users who saw several variants"
MIXED = 0.01
"""Share of users in several variants above which nothing is decided: busy users are those who are moved, and lost."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Settings of `recsys experiment`.

    Every user is watched for `horizon` microseconds from the first answer on, all equally long; what a user did in the
    `before` microseconds ahead of any answer that a variant could differ in is what CUPED takes out.
    """

    logs: tuple[Path, ...]
    base: str
    metric: Metric = "outcomes a user"
    attribution: Attribution = field(default_factory=Attribution)
    period: Period = field(default_factory=Period)
    horizon: int = DAY
    before: int = 7 * DAY
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        if self.plan.planned < 1:
            raise ConfigError(f"experiment: planned users {self.plan.planned} must be at least 1.")


@dataclass(frozen=True)
class Watched:
    """Users [U] in order of their first answer: variants by number, metrics, and covariates [U, P]."""

    names: tuple[str, ...]
    variants: IntArray
    metrics: Sequence[Measured]
    covariates: FloatArray

    def effects(self, base: str, other: str, plan: Plan, first: int | None = None) -> list[Effect]:
        """Of every metric, of `other` over `base`; of the `first` users alone where that is given."""
        sides = {self.names.index(base): 0, self.names.index(other): 1}
        rows = np.flatnonzero(np.isin(self.variants[:first], list(sides)))
        side = np.array([sides[number] for number in self.variants[rows].tolist()], dtype=np.int64)
        return [
            effect(
                replace(metric, earned=metric.earned[rows], sizes=metric.sizes[rows]),
                side,
                (base, other),
                self.covariates[rows],
                plan,
            )
            for metric in self.metrics
        ]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The split, and of every other variant the effects (the metric that decides first); who was left out."""

    base: str
    split: Split
    effects: Mapping[str, Sequence[Effect]]
    left_out: Mapping[str, int]
    watched: Watched
    plan: Plan

    @property
    def mixed(self) -> float:
        """Of users whose time is over, the share that saw several variants within it."""
        return self.left_out[SEVERAL] / max(1, self.left_out[SEVERAL] + len(self.watched.variants))

    @property
    def comparable(self) -> bool:
        """Whether the variants' users are alike: the split is as intended, and hardly anyone changed sides."""
        return self.split.holds and self.mixed <= MIXED

    @property
    def winners(self) -> list[str]:
        """Variants better than the base, where their users are comparable."""
        decided = {name: effects[0] for name, effects in self.effects.items() if effects[0].decided}
        return [name for name, entry in decided.items() if entry.difference > 0 and self.comparable]

    def sentences(self) -> list[str]:
        """The split first: where users are not comparable, no difference is told."""
        deciding = [effects[0].sentence() for effects in self.effects.values()] if self.comparable else []
        left = [f"Left out: {count:,} {why}." for why, count in self.left_out.items() if count]
        if self.mixed > MIXED:
            left.append(
                f"{self.mixed:.1%} of users saw several variants within their time: those who come often do, so users "
                "who are left are not alike and no difference between variants may be believed. If weights were "
                "changed meanwhile, judge only answers from before (--until) or after (--since)."
            )
        return [self.split.sentence(), *deciding, *left]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "base": self.base,
            "winners": self.winners,
            "split": asdict(self.split) | {"holds": self.split.holds},
            "mixed": self.mixed,
            "effects": {
                name: [asdict(entry) | {"decided": entry.decided} for entry in effects]
                for name, effects in self.effects.items()
            },
            "left_out": dict(self.left_out),
            "sentences": self.sentences(),
        }


def run_experiment(config: ExperimentConfig) -> Experiment:
    """Joins the logs, checks the split, and compares every variant with the base."""
    logged, outcomes = read_until(config.logs, config.period.until)
    exposures = answers_since(config.period.since, logged)
    names = tuple(exposures["variant"].unique().sort().to_list())
    if config.base not in names or len(names) < 2:
        raise ConfigError(
            f"experiment: --base {config.base}: the log has the variants {', '.join(names)}; two or more."
        )
    end = end_of(exposures)
    users = arrived(exposures, names, config.horizon).join(
        touched(logged, exposures), on="user_id", how="left", maintain_order="left"
    )
    reasons = {
        "users whose time is not over yet": pl.col("began") + config.horizon + config.attribution.window > end,
        SEVERAL: pl.col("mixed"),
    }
    kept, left_out = users, {"answers without a user": exposures["user_id"].null_count()}
    for why, holds in reasons.items():
        left_out[why] = len(kept)
        kept = kept.filter(~holds)
        left_out[why] -= len(kept)
    watched = watch(config, kept, exposures, outcomes, names)
    others = [name for name in names if name != config.base]
    found = [deciding_first(watched.effects(config.base, name, config.plan), config.metric) for name in others]
    return Experiment(
        base=config.base,
        split=check_split(names, users["variant"].to_numpy().astype(np.int64), users["shares"].to_numpy()),
        effects=dict(zip(others, corrected(found), strict=True)),
        left_out=left_out,
        watched=watched,
        plan=config.plan,
    )


def arrived(exposures: pl.DataFrame, names: Sequence[str], horizon: int) -> pl.DataFrame:
    """One row a user in order of the first answer: when (`began`), variant by number, shares of all variants then,
    and whether others were seen within the horizon."""
    known = exposures.filter(pl.col("user_id").is_not_null())
    if not len(known):
        raise DataError("experiment: no answer names its user; users are what is compared.")
    within = pl.col("timestamp") - pl.col("timestamp").first() < horizon
    first = known.group_by("user_id", maintain_order=True).agg(
        began=pl.col("timestamp").first(),
        name=pl.col("variant").first(),
        mixed=pl.col("variant").filter(within).n_unique() > 1,
    )
    shares = shares_at(first["began"], known, names)
    numbers = {name: number for number, name in enumerate(names)}
    return first.with_columns(
        variant=pl.col("name").replace_strict(numbers, return_dtype=pl.Int64),
        shares=pl.Series(shares, dtype=pl.Array(pl.Float64, len(names))),
    )


def touched(logged: pl.DataFrame, exposures: pl.DataFrame) -> pl.DataFrame:
    """One row a user: the first answer, be it before `exposures` begin, that a variant could differ in, and how long
    the history was then. While one variant has all traffic, none could."""
    differs = (pl.col("propensity") < 1) | (pl.col("timestamp") >= exposures["timestamp"][0])
    return (
        logged
        .filter(pl.col("user_id").is_not_null() & differs)
        .group_by("user_id", maintain_order=True)
        .agg(touched=pl.col("timestamp").first(), history=pl.col("history").first().list.len())
    )


def watch(
    config: ExperimentConfig,
    users: pl.DataFrame,
    exposures: pl.DataFrame,
    outcomes: pl.DataFrame,
    names: tuple[str, ...],
) -> Watched:
    """What each user earned within the horizon, and did before any variant could matter."""
    began = users.select("user_id", "began", "touched")
    within = pl.col("timestamp") - pl.col("began") < config.horizon
    asked = exposures.filter(pl.col("position") == 1).join(began, on="user_id").filter(within)
    rows = impressions_of(exposures, outcomes, config.attribution).join(began, on="user_id").filter(within)
    ahead = pl.col("touched") - pl.col("timestamp")
    earlier = outcomes.join(began, on="user_id").filter((ahead > 0) & (ahead <= config.before))
    by_user = (
        users
        .select("user_id", "variant", "history")
        .join(asked.group_by("user_id").agg(requests=pl.len()), on="user_id", how="left", maintain_order="left")
        .join(
            rows.group_by("user_id").agg(found=(pl.col("outcomes") > 0).sum(), value=pl.col("value").sum()),
            on="user_id",
            how="left",
            maintain_order="left",
        )
        .join(earlier.group_by("user_id").agg(earlier=pl.len()), on="user_id", how="left", maintain_order="left")
        .fill_null(0)
    )
    column = {name: by_user[name].to_numpy().astype(np.float64) for name in ("requests", "found", "value")}
    one = np.ones(len(by_user))
    metrics: list[tuple[Metric, FloatArray, FloatArray]] = [
        ("outcomes a user", column["found"], one),
        ("users with an outcome", (column["found"] > 0).astype(np.float64), one),
        ("outcomes a request", column["found"], column["requests"]),
        ("value a user", column["value"], one),
    ]
    return Watched(
        names,
        by_user["variant"].to_numpy().astype(np.int64),
        [Measured(name=name, earned=earned, sizes=sizes) for name, earned, sizes in metrics if earned.any()],
        np.log1p(by_user.select("earlier", "history").to_numpy().astype(np.float64)),
    )


def deciding_first(effects: list[Effect], metric: Metric) -> list[Effect]:
    """The metric that decides, then the others; an error where the log has none of it."""
    first = [entry for entry in effects if entry.metric == metric]
    if not first:
        raise DataError(
            f"experiment: no user whose time is over has anything of {metric!r}. Wait, take a shorter --horizon or "
            "--window, or another --metric."
        )
    return first + [entry for entry in effects if entry.metric != metric]


def corrected(found: Sequence[Sequence[Effect]]) -> list[list[Effect]]:
    """Deciding effects corrected among themselves (Holm), all others among themselves."""
    first = iter(holm([effects[0].adjusted for effects in found]))
    rest = iter(holm([entry.adjusted for effects in found for entry in effects[1:]]))
    return [
        [replace(entry, adjusted=float(next(rest if place else first))) for place, entry in enumerate(effects)]
        for effects in found
    ]
