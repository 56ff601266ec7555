"""`recsys compare A B`: does B do better than A on the same cases, and is that more than chance?"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.evaluate import CASES, open_evaluation
from recsys.comparison import Difference, compare_cases
from recsys.errors import DataError
from recsys.splits import Part
from recsys.steps import read_manifest


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of `recsys compare`; A and B are runs, or evaluation folders such as a floor's."""

    a: Path
    b: Path
    part: Part = "test"
    draws: int = 2000
    seed: int = 0


def compare(config: CompareConfig) -> list[Difference]:
    """Differences B - A for all metrics, overall and by segment."""
    folder_a, folder_b = open_evaluation(config.a, config.part), open_evaluation(config.b, config.part)
    settings_a, settings_b = (read_manifest(folder, "evaluate")["config"] for folder in (folder_a, folder_b))
    for key in ("data", "part", "seen", "cutoffs"):
        if settings_a[key] != settings_b[key]:
            raise DataError(
                f"compare: {config.a} was evaluated with {key}={settings_a[key]}, {config.b} with {settings_b[key]}; "
                "evaluate both the same way."
            )
    return compare_cases(
        pl.read_parquet(folder_a / CASES),
        pl.read_parquet(folder_b / CASES),
        settings_a["cutoffs"],
        config.draws,
        config.seed,
    )
