"""Polars beside Spark on one log: `python -m benchmarks.engines D/globo-clicks/*.csv.gz`; writes docs/engines.md.

Each engine ingests the sources and prepares what it ingested, each step in a process of its own; the files they leave
are compared by their SHA-256. Seconds are those of the step, for Spark with the start of its machine.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recsys.steps import git_commit, read_manifest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "engines.md"
CORE = ("--min-user-events", "5", "--min-item-events", "5")
STEPS: dict[str, tuple[str, ...]] = {"ingest": (), "prepare": (), "prepare, 5-core": CORE}
USUAL = 2


@dataclass(frozen=True)
class Engine:
    """One engine and what it left: the manifest of each step."""

    name: str
    manifests: dict[str, dict[str, Any]]


def main() -> None:
    """Both engines, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--work", type=Path, default=Path("build/engines"), help="folder of what the engines write")
    parser.add_argument("--steps", type=int, default=USUAL, help=f"how many of: {'; '.join(STEPS)}")
    arguments = parser.parse_args()
    steps = list(STEPS)[: arguments.steps]
    load = os.getloadavg()[0]
    options = {"polars": (), "spark": ("--engine", "spark", "--master", arguments.master)}
    found = [measured(name, extra, arguments.sources, arguments.work, steps) for name, extra in options.items()]
    PAGE.write_text(page(found, arguments.sources, arguments.master, load), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


def measured(engine: str, extra: Sequence[str], sources: Sequence[Path], work: Path, steps: Sequence[str]) -> Engine:
    """Some steps by one engine."""
    folder = work / engine
    shutil.rmtree(folder, ignore_errors=True)
    manifests = {}
    for number, step in enumerate(steps):
        command, _, _ = step.partition(",")
        inputs = list(map(str, sources)) if command == "ingest" else [str(folder / "0")]
        out = folder / str(number)
        line = [sys.executable, "-m", "pipelines.cli", command, *inputs, *STEPS[step], *extra, "--out", str(out)]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        manifests[step] = read_manifest(out, command)
    return Engine(engine, manifests)


def page(engines: Sequence[Engine], sources: Sequence[Path], master: str, load: float) -> str:
    """Markdown."""
    polars, spark = engines
    counts = polars.manifests["ingest"]["counts"]
    rows = [
        row(step, polars.manifests[step], spark.manifests[step], counts["rows" if step == "ingest" else "accepted"])
        for step in polars.manifests
    ]
    name = sources[0].resolve().parent.name
    return "\n".join([
        "# Engines",
        "",
        "Written by `python -m benchmarks.engines`; do not edit. Polars and Spark "
        f"(`--engine spark --master {master}`) on {name}: {len(sources)} files, {counts['rows']:,} rows, "
        f"{counts['users']:,} users, {counts['items']:,} items. Seconds of a step, for Spark with the start of the JVM "
        "and of its Python workers.",
        "",
        "| step | Polars, s | rows/s | Spark, s | rows/s | files equal | counts equal |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        "On one machine Spark only costs: it is there for logs that no machine holds. Files are compared by SHA-256.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, no accelerator; load of the machine at the start {load:.1f} "
        f"(1 a core is full: above that, seconds are comparable with each other only); polars {version('polars')}, "
        f"pyspark {version('pyspark')}; commit {(git_commit() or 'unknown')[:12]}; {datetime.now(UTC).date()}.",
        "",
    ])


def row(step: str, polars: dict[str, Any], spark: dict[str, Any], rows: int) -> str:
    """A line of the table."""
    seconds = [manifest["seconds"] for manifest in (polars, spark)]
    speed = [f"{second:.1f} | {rows / second:,.0f}" for second in seconds]
    same = ["yes" if polars[key] == spark[key] else "no" for key in ("files", "counts")]
    return f"| {step} | {speed[0]} | {speed[1]} | {same[0]} | {same[1]} |"


if __name__ == "__main__":
    main()
