"""How far `recsys compare` can be trusted: `python -m benchmarks.comparison_quality BASE RUN [--out PAGE]`.

BASE, RUN: evaluated runs on the same data. Their cases are the population, whose true difference is known:

    false alarms   equal models: every user's two lists are swapped at random, then some users are drawn; how often a
                   difference is declared
    coverage       users are drawn with replacement; how often the interval holds the population's difference
    family         false alarms again, over all metrics and segments with Holm's correction: how often any is declared
    size           five million generated cases: seconds and peak memory of one comparison, in a process of its own
"""

import argparse
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.evaluate import CASES
from recsys.comparison import compare_cases
from recsys.runs import open_run

PAGE = Path("docs/comparison-quality.md")
CUTOFFS = (10, 20)
DRAWN_USERS, DRAWS = 400, 400
LARGE_CASES, LARGE_USERS = 5_000_000, 1_000_000
LARGE = "--large"


def main() -> None:
    """Simulates, times, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--families", type=int, default=300)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    base, run = (pl.read_parquet(open_run(path).evaluation("test") / CASES) for path in (arguments.base, arguments.run))
    rng = np.random.default_rng(0)
    alarms = np.mean([false_alarm(base, run, rng) for _ in range(arguments.comparisons)])
    truth = compare_cases(base, run, CUTOFFS[:1], DRAWS, seed=0)[0].difference
    covered = np.mean([covers(base, run, truth, rng) for _ in range(arguments.comparisons)])
    family = np.mean([any_false_alarm(base, run, rng) for _ in range(arguments.families)])
    large = subprocess.run([sys.executable, "-m", __spec__.name, LARGE], capture_output=True, text=True, check=True)
    seconds, mebibytes = large.stdout.split()
    arguments.out.write_text(
        page(arguments, float(alarms), float(covered), float(family), f"{float(seconds):.0f}", mebibytes),
        encoding="utf-8",
    )


def false_alarm(a: pl.DataFrame, b: pl.DataFrame, rng: np.random.Generator) -> bool:
    """Whether equal models are told apart on the first metric."""
    return compare_cases(*equal_models(a, b, rng), CUTOFFS[:1], DRAWS, int(rng.integers(1 << 31)))[0].decided


def any_false_alarm(a: pl.DataFrame, b: pl.DataFrame, rng: np.random.Generator) -> bool:
    """Whether equal models are told apart on any metric in any segment, but for the first of all, which has its own."""
    found = compare_cases(*equal_models(a, b, rng), CUTOFFS, 20 * DRAWS, int(rng.integers(1 << 31)))
    return any(entry.decided for entry in found[1:])


def equal_models(a: pl.DataFrame, b: pl.DataFrame, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Some users, and of each all ranks of one model or of the other."""
    users = a["user_idx"].unique().to_numpy()
    chosen = rng.choice(users, DRAWN_USERS, replace=False)
    swapped = pl.Series(chosen[rng.random(DRAWN_USERS) < 0.5])
    kept = a.with_columns(other=b["rank"]).filter(pl.col("user_idx").is_in(chosen.tolist()))
    swap = pl.col("user_idx").is_in(swapped.to_list())
    first, second = pl.col("rank"), pl.col("other")
    return (
        kept.with_columns(rank=pl.when(swap).then(second).otherwise(first)).drop("other"),
        kept.with_columns(rank=pl.when(swap).then(first).otherwise(second)).drop("other"),
    )


def covers(a: pl.DataFrame, b: pl.DataFrame, truth: float, rng: np.random.Generator) -> bool:
    """Whether the interval of a sample of cases, each taken for a user, holds the difference of all."""
    places = rng.integers(0, len(a), DRAWN_USERS)
    fresh = pl.Series("user_idx", np.arange(DRAWN_USERS), dtype=pl.Int32)
    found = compare_cases(
        a[places].with_columns(fresh), b[places].with_columns(fresh), CUTOFFS[:1], DRAWS, int(rng.integers(1 << 31))
    )[0]
    return found.low <= truth <= found.high


def large() -> None:
    """Prints seconds and MiB of a comparison of five million cases."""
    rng = np.random.default_rng(0)
    ranks = rng.zipf(1.3, LARGE_CASES).clip(max=100_000).astype(np.int32)
    cases = pl.DataFrame({
        "user_idx": rng.integers(0, LARGE_USERS, LARGE_CASES).astype(np.int32),
        "position": np.arange(LARGE_CASES, dtype=np.int32),
        "target": rng.integers(1, 100_000, LARGE_CASES).astype(np.int32),
        "timestamp": np.arange(LARGE_CASES),
        "history_length": rng.integers(0, 300, LARGE_CASES).astype(np.int32),
        "new_user": rng.random(LARGE_CASES) < 0.1,
        "cold_item": rng.random(LARGE_CASES) < 0.02,
        "popularity_decile": rng.integers(1, 11, LARGE_CASES).astype(np.int8),
        "rank": ranks,
    })
    other = cases.with_columns(rank=pl.Series(np.maximum(1, ranks - (rng.random(LARGE_CASES) < 0.01))))
    began = time.perf_counter()
    compare_cases(cases, other, CUTOFFS, 10_000, seed=0)
    seconds = time.perf_counter() - began
    print(f"{seconds:.1f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}")


def page(
    arguments: argparse.Namespace, alarms: float, covered: float, family: float, seconds: str, mebibytes: str
) -> str:
    """The figures beside what they should be."""
    day = datetime.now(UTC).date().isoformat()
    return "\n".join([
        "# How far comparisons can be trusted",
        "",
        "Written by `python -m benchmarks.comparison_quality`; do not edit. "
        f"{arguments.base.name} and {arguments.run.name}, {DRAWN_USERS} users drawn for each comparison; "
        f"{day}, 2 cores, no accelerator.",
        "",
        "| what | should be | is |",
        "|---|---|---|",
        f"| equal models told apart ({arguments.comparisons} comparisons) | 5 % ± 1.5 % | {alarms:.1%} |",
        f"| intervals that hold the truth ({arguments.comparisons}) | 93 to 97 % | {covered:.1%} |",
        f"| any false alarm among all other metrics and segments, by Holm ({arguments.families}) | at most 5 % | "
        f"{family:.1%} |",
        f"| seconds: {LARGE_CASES:,} cases, {LARGE_USERS:,} users, 10,000 draws, all segments | < 60 | {seconds} |",
        f"| peak memory of that, MiB | < 4,096 | {mebibytes} |",
        "",
    ])


if __name__ == "__main__":
    large() if LARGE in sys.argv else main()
