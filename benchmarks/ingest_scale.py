"""Ingest and prepare at size: `python -m benchmarks.ingest_scale`; writes docs/ingest-scale.md.

Generated logs (items Zipf-distributed, 2 million users, 1 million items, hourly CSV files in any order of users) are
ingested within `--memory` and prepared, each command a process of its own; and the real hourly clicks below
RECSYS_DATA, at once and by appending the last hour. What was measured stays in docs/ingest-scale.json, so that a size
is measured once: `--events 100000000` adds the largest one.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.datasets import DATA, REPOSITORY
from recsys.steps import git_commit

PAGE, RESULTS = REPOSITORY / "docs" / "ingest-scale.md", REPOSITORY / "docs" / "ingest-scale.json"
USERS, ITEMS, ZIPF = 2_000_000, 1_000_000, 1.1
EVENTS_A_FILE = 1_000_000
START, SECONDS_A_FILE = 1_700_000_000, 3600

Figures = dict[str, Any]


def main() -> None:
    """What is missing, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--events", type=int, nargs="*", default=[1_000_000, 10_000_000], help="sizes of generated logs"
    )
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for logs and datasets")
    options = parser.parse_args()
    results: Figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for events in options.events:
        if str(events) not in results:
            with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
                results[str(events)] = generated(Path(folder), events, options.memory)
            keep(results)
    if "clicks" not in results and (DATA / "globo-clicks").is_dir():
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            results["clicks"] = clicks(Path(folder))
        keep(results)
    PAGE.write_text(page(results), encoding="utf-8")


def keep(results: Figures) -> None:
    """Writes what was measured so far."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def generated(folder: Path, events: int, memory: str) -> Figures:
    """Seconds and peak MiB of ingest and prepare of a generated log."""
    write_log(folder / "log", events)
    ingested = recsys("ingest", folder / "log", "--memory", memory, "--out", folder / "data")
    prepared = recsys("prepare", folder / "data", "--out", folder / "prepared")
    assert ingested["counts"]["rows"] == events
    return {
        "memory": memory,
        "ingest": measures(ingested),
        "prepare": measures(prepared),
        "users": ingested["counts"]["users"],
        "items": ingested["counts"]["items"],
        "when": conditions(),
    }


def write_log(folder: Path, events: int) -> None:
    """CSV files of an hour each; ranks of items follow a power law."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    weights = np.arange(1, ITEMS + 1) ** -ZIPF
    bounds = np.cumsum(weights) / weights.sum()
    for number, start in enumerate(range(0, events, EVENTS_A_FILE)):
        size = min(EVENTS_A_FILE, events - start)
        pl.DataFrame({
            "user_id": rng.integers(USERS, size=size),
            "item_id": np.searchsorted(bounds, rng.random(size)),
            "timestamp": START + SECONDS_A_FILE * number + rng.integers(SECONDS_A_FILE, size=size),
        }).write_csv(folder / f"hour_{number:04d}.csv")


def clicks(folder: Path) -> Figures:
    """The hourly clicks: unpacked CSV to a dataset, Parquet to CSR, and the last hour appended."""
    files = sorted((DATA / "globo-clicks").glob("*.csv.gz"))
    (folder / "csv").mkdir()
    for file in files:
        subprocess.run(f"zcat {file} > {folder / 'csv' / file.stem}", shell=True, check=True)
    hours = sorted((folder / "csv").iterdir())
    whole = recsys("ingest", *hours, "--out", folder / "whole")
    prepared = recsys("prepare", folder / "whole", "--out", folder / "whole-prepared")
    recsys("ingest", *hours[:-1], "--out", folder / "log")
    recsys("prepare", folder / "log", "--out", folder / "before")
    appended = recsys("ingest", hours[-1], "--append", "--out", folder / "log")
    grown = recsys("prepare", folder / "log", "--extend", folder / "before", "--out", folder / "grown")
    again = recsys("prepare", folder / "whole", "--extend", folder / "before", "--out", folder / "again")
    return {
        "ingest": measures(whole),
        "prepare": measures(prepared),
        "append": measures(appended),
        "grow": measures(grown),
        "same": grown["files"] == again["files"],
        "rows": whole["counts"]["rows"],
        "rows_appended": appended["history"][-1]["figures"]["rows"],
        "when": conditions(),
    }


def recsys(*arguments: object) -> Figures:
    """The manifest of a command, run in a process of its own; `wall`: seconds with the start of Python."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    manifest: Figures = json.loads(done.stdout)
    return manifest | {"wall": round(time.perf_counter() - began, 3)}


def measures(manifest: Figures) -> Figures:
    """What a step cost."""
    return {"seconds": manifest["seconds"], "wall": manifest["wall"], "mib": manifest["peak_memory_mib"]}


def conditions() -> str:
    """Machine, version and load, for times say little without them."""
    commit = (git_commit() or "unknown")[:12]
    load = os.getloadavg()[0]
    return f"{datetime.now(UTC).date()}, commit {commit}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f}"


def page(results: Figures) -> str:
    """Markdown."""
    sizes = sorted(int(name) for name in results if name.isdigit())
    lines = [
        "# Ingest and prepare at size",
        "",
        "Written by `python -m benchmarks.ingest_scale`; do not edit. Seconds are those of the steps without the start "
        "of Python, and good for ratios within a table only: the machine had other work. No accelerator.",
        "",
        "## Generated logs",
        "",
        f"{USERS:,} users, {ITEMS:,} items (Zipf, exponent {ZIPF}), CSV files of {EVENTS_A_FILE:,} rows, `--memory`.",
        "",
        "| events | users | items | memory | ingest s | rows/s | peak MiB | prepare s | events/s | MiB | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(generated_row(size, results[str(size)]) for size in sizes),
        "",
    ]
    if "clicks" in results:
        lines += clicks_lines(results["clicks"])
    return "\n".join(lines)


def generated_row(events: int, entry: Figures) -> str:
    """A line of the table."""
    ingest, prepare = entry["ingest"], entry["prepare"]
    return (
        f"| {events:,} | {entry['users']:,} | {entry['items']:,} | {entry['memory']} | {ingest['seconds']:.1f} | "
        f"{events / ingest['seconds']:,.0f} | {ingest['mib']:,} | {prepare['seconds']:.1f} | "
        f"{events / prepare['seconds']:,.0f} | {prepare['mib']:,} | {entry['when']} |"
    )


def clicks_lines(entry: Figures) -> list[str]:
    """The section of the real clicks."""
    scratch = entry["ingest"]["seconds"] + entry["prepare"]["seconds"]
    update = entry["append"]["seconds"] + entry["grow"]["seconds"]
    same = "the same, byte for byte," if entry["same"] else "NOT the same"
    return [
        "## Hourly clicks (globo-clicks)",
        "",
        f"{entry['rows']:,} rows in 300 files of plain CSV; the last hour has {entry['rows_appended']:,}.",
        "",
        "| | seconds | a second | peak MiB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {entry[key]['seconds']:.2f} | {rows / entry[key]['seconds']:,.0f} | {entry[key]['mib']:,} |"
            for name, key, rows in (
                ("ingest, CSV to dataset", "ingest", entry["rows"]),
                ("prepare, Parquet to CSR, split and cases", "prepare", entry["rows"]),
                ("ingest --append, the last hour", "append", entry["rows_appended"]),
                ("prepare --extend, the last hour", "grow", entry["rows_appended"]),
            )
        ),
        "",
        f"From scratch {scratch:.2f} s, appended {update:.2f} s: {scratch / update:.1f} times faster. What was "
        f"prepared is {same} as when all is prepared with the same `--extend`. Aims: 1 M rows/s of CSV, 3 M events/s "
        "from Parquet to CSR, 20 times faster by appending.",
        "",
        f"{entry['when']}.",
        "",
    ]


if __name__ == "__main__":
    main()
