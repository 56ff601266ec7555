"""Logs of the service, read for a decision: several folders as one, and only answers that are like each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.exposures import Attribution, join_outcomes, read_exposures, read_outcomes
from recsys.metrics import FloatArray

Reward = Literal["any", "count", "value"]
UNITS: dict[Reward, str] = {"any": "items with an outcome", "count": "outcomes", "value": "value"}
"""What rewards count: whether an item had an outcome, how many, or the sum of their values."""

SHARES_MISSING = 0.01
"""Of all traffic: so much may be given to variants that are not named."""


@dataclass(frozen=True, kw_only=True)
class Period:
    """Which part of the logs is read, in microseconds since 1970 UTC: answers from `since` on, anything before `until`.

    Events before `since` are kept: they tell what users did before.
    """

    since: int | None = None
    until: int | None = None


def read_logs(folders: Sequence[Path], period: Period = Period()) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Exposures and outcomes of all folders, in order of time; an answer that two of them hold counts once."""
    exposures, outcomes = read_until(folders, period.until)
    return answers_since(period.since, exposures), outcomes


def read_until(folders: Sequence[Path], until: int | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same from the logs' beginning."""
    exposures = pl.concat([read_exposures(folder) for folder in folders]).sort("timestamp", maintain_order=True)
    outcomes = pl.concat([read_outcomes(folder) for folder in folders]).sort("timestamp", maintain_order=True)
    if until is not None:
        exposures, outcomes = (table.filter(pl.col("timestamp") < until) for table in (exposures, outcomes))
    if not len(exposures):
        raise DataError(f"{', '.join(map(str, folders))}: no answers were logged in the time that was asked for.")
    return exposures.unique("request_id", keep="first", maintain_order=True), outcomes


def answers_since(since: int | None, exposures: pl.DataFrame) -> pl.DataFrame:
    """All where no instant is given; an error where none is left."""
    if since is None:
        return exposures
    kept = exposures.filter(pl.col("timestamp") >= since)
    if not len(kept):
        raise DataError("--since: no answers were logged in the time that was asked for; the last was before it.")
    return kept


def impressions_of(exposures: pl.DataFrame, outcomes: pl.DataFrame, attribution: Attribution) -> pl.DataFrame:
    """One row an item that was shown, those of a request next to each other and in order of place."""
    joined = join_outcomes(exposures, outcomes, attribution)
    return joined.sort("timestamp", "request_id", "position")


def rewards_of(impressions: pl.DataFrame, reward: Reward) -> FloatArray:
    """[N]."""
    column = {"any": (pl.col("outcomes") > 0), "count": pl.col("outcomes"), "value": pl.col("value")}[reward]
    return impressions.select(column.cast(pl.Float64)).to_series().to_numpy()


def chosen_variants(exposures: pl.DataFrame, wanted: Sequence[str]) -> pl.DataFrame:
    """Only answers of these variants, all where none are named; one that the log does not know is an error."""
    known = exposures["variant"].unique().sort().to_list()
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"--variant {unknown[0]}: the log has the variants {', '.join(known)}.")
    return exposures.filter(pl.col("variant").is_in(list(wanted))) if wanted else exposures


def shares_at(times: pl.Series, exposures: pl.DataFrame, variants: Sequence[str]) -> FloatArray:
    """[times, variants], the share of traffic that each variant had then: that of its own nearest answer.

    `times` and the answers are in order of time.
    """
    columns = []
    for name in variants:
        own = exposures.filter(pl.col("variant") == name).select("timestamp", share="propensity")
        near = times.alias("timestamp").to_frame().join_asof(own, on="timestamp", strategy="nearest")
        columns.append(near["share"].to_numpy())
    shares = np.stack(columns, axis=1)
    off = np.abs(shares.sum(axis=1) - 1) > SHARES_MISSING
    if off.mean() > SHARES_MISSING:
        raise DataError(
            f"exposures: shares of {', '.join(variants)} do not add up to 1 for {int(off.sum()):,} of {len(off):,} "
            "rows; name all variants that had traffic, or judge only answers from between two changes of the weights."
        )
    return shares / shares.sum(axis=1, keepdims=True)
