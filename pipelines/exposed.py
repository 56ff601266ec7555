"""Logs of the service, read for a decision: several folders as one, and only answers that are like each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.exposures import Attribution, join_outcomes, read_exposures, read_outcomes
from recsys.metrics import FloatArray

Reward = Literal["any", "count", "value"]
UNITS: dict[Reward, str] = {"any": "items with an outcome", "count": "outcomes", "value": "value"}
"""What rewards count: whether an item had an outcome, how many, or the sum of their values."""


def read_logs(folders: Sequence[Path]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Exposures and outcomes of all folders, in order of time; an answer that two of them hold counts once."""
    exposures = pl.concat([read_exposures(folder) for folder in folders]).sort("timestamp", maintain_order=True)
    outcomes = pl.concat([read_outcomes(folder) for folder in folders]).sort("timestamp", maintain_order=True)
    if not len(exposures):
        raise DataError(f"{', '.join(map(str, folders))}: no answers were logged.")
    return exposures.unique("request_id", keep="first", maintain_order=True), outcomes


def impressions_of(
    exposures: pl.DataFrame, outcomes: pl.DataFrame, attribution: Attribution, until: int | None = None
) -> pl.DataFrame:
    """One row an item that was shown, those of a request next to each other and in order of place."""
    joined = join_outcomes(exposures, outcomes, attribution, until)
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
