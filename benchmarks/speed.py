"""`make bench`: speed and memory beside RecBole and RecTools, one run on one machine; writes docs/benchmarks.md.

    python -m benchmarks.speed [--only TEXT] [--quick] [--restart] [--page] [--seconds S] [--quality-seconds S]

The same events, window and width for all. A cell is one library on one dataset, measured in a process of its own and
kept as one JSON file below build/bench: a run that was cut goes on where it ended.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.cells import Library, Measurement, Precision, Task
from benchmarks.ours import prepare_log
from benchmarks.peers.environments import PeerMissingError, recbole_python, rectools_python
from benchmarks.speed_page import CHART, PAGE, Cell, Facts, Stamp, chart, page
from pipelines.movielens import movielens_100k
from recsys.metrics import ndcg_at_k
from recsys.prepared import Prepared, open_prepared
from recsys.ranking import NOT_RETURNED
from recsys.steps import git_commit, write_json

REPOSITORY = Path(__file__).resolve().parent.parent
DATASETS = ("ml-100k", "ml-1m")
WINDOWS = (50, 200)
MODELS = ("sasrec", "bert4rec")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
MODULES: dict[Library, str] = {
    "recsys": "benchmarks.ours",
    "recbole": "benchmarks.peers.recbole_peer",
    "rectools": "benchmarks.peers.rectools_peer",
}
CELL_SECONDS, QUALITY_SECONDS = 20.0, 120.0
QUICK_SECONDS = 2.0
LONGEST_CELL = 900
CUTOFF = 10


def main() -> int:
    """Measures what is missing; 1 where a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where data and cells are kept")
    parser.add_argument("--peers", type=Path, default=Path("build/peers"), help="where environments of peers are kept")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs", help="where the page and its chart go")
    parser.add_argument("--seconds", type=float, default=CELL_SECONDS, help="training that a cell times")
    parser.add_argument("--quality-seconds", type=float, default=QUALITY_SECONDS, help="training before quality")
    parser.add_argument("--only", default="", help="cells whose name holds this text, as in speed-recbole-sasrec")
    parser.add_argument(
        "--quick", action="store_true", help="MovieLens-100K, window 50, seconds; docs stay as they are"
    )
    parser.add_argument("--restart", action="store_true", help="forget the cells that are done")
    parser.add_argument("--page", action="store_true", help="write the page from the cells on disk, measure nothing")
    options = parser.parse_args()
    seconds, quality_seconds = options.seconds, options.quality_seconds
    work, out = options.work, options.out
    datasets: tuple[str, ...] = DATASETS
    windows: tuple[int, ...] = WINDOWS
    if options.quick:
        seconds, quality_seconds, work = QUICK_SECONDS, QUICK_SECONDS, work / "quick"
        out = work
        datasets, windows = DATASETS[:1], WINDOWS[:1]
    if options.restart:
        shutil.rmtree(work / "cells", ignore_errors=True)
    folders = {name: folder for name in datasets if (folder := prepared_folder(name, work)) is not None}
    tasks = [task for task in all_tasks(folders, windows, seconds, quality_seconds) if options.only in task.name]
    failed = 0 if options.page else measure_missing(tasks, work, options.peers)
    write_page(work, folders, out)
    return int(failed > 0)


def prepared_folder(name: str, work: Path) -> Path | None:
    """`work`/data/NAME with the prepared data and, made of them, the file that every library reads; None without data.

    An event's time is its place in the user's history, so that no library can order ties otherwise.
    """
    folder = (work / "data" / name).resolve()
    if not (folder / "facts.json").exists():
        log = source(name, work / "log")
        if not log.exists():
            print(f"{name}: skipped, {log} does not exist; set RECSYS_DATA", flush=True)
            return None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        prepared = prepare_log(log, folder)
        events_table(prepared).write_csv(folder / f"{name}.inter", separator="\t")
        write_json(folder / "facts.json", asdict(facts(prepared)))
    return folder


def source(name: str, folder: Path) -> Path:
    """The log as published."""
    if name == "ml-100k":
        return movielens_100k(folder)
    return Path(os.environ.get("RECSYS_DATA", REPOSITORY.parent / "shared" / "data")) / "ml-1m" / "ml-1m.txt.gz"


def events_table(prepared: Prepared) -> pl.DataFrame:
    """All events in user and time order, with the columns of a RecBole atomic file."""
    store = prepared.store
    return pl.DataFrame({
        "user_id:token": store.user_ids[store.event_users()],
        "item_id:token": prepared.catalog.item_ids[np.asarray(store.item_idx).astype(np.int64) - 1],
        "timestamp:float": store.event_positions(),
    })


def facts(prepared: Prepared) -> Facts:
    """Sizes, and the targets of an epoch: every training event of a user but the first."""
    return Facts(
        users=prepared.store.num_users,
        items=prepared.catalog.num_items,
        events=prepared.store.num_events,
        targets=int(np.maximum(0, prepared.split.train_stop - 1).sum()),
    )


def all_tasks(
    folders: dict[str, Path], windows: tuple[int, ...], seconds: float, quality_seconds: float
) -> Iterator[Task]:
    """Every cell, a dataset at a time; quality on the first dataset and window only."""
    for name, folder in folders.items():
        make = partial(Task, dataset=name, folder=str(folder))
        yield make(kind="prepare", library="recsys", model="sasrec", window=windows[0], seconds=0.0)
        for window, model in product(windows, MODELS):
            cell = partial(make, model=model, window=window, seconds=seconds)
            for kind, precision in product(("speed", "floor"), PRECISIONS):
                yield cell(kind=kind, library="recsys", precision=precision)
            for library in ("recbole", "rectools"):
                yield cell(kind="speed", library=library)
        if name == DATASETS[0]:
            for library in MODULES:
                lists = str(folder / f"lists-{library}.npz")
                yield make(
                    kind="quality",
                    library=library,
                    model="sasrec",
                    window=windows[0],
                    seconds=quality_seconds,
                    lists=lists,
                )


def measure_missing(tasks: list[Task], work: Path, peers: Path) -> int:
    """Runs the cells that are not on disk, one after the other; how many failed."""
    missing = [task for task in tasks if not is_done(work, task)]
    pythons = interpreters({task.library for task in missing}, peers)
    missing = [task for task in missing if task.library in pythons]
    failed = 0
    for number, task in enumerate(missing, start=1):
        began = time.perf_counter()
        try:
            measurement = run(task, pythons[task.library])
        except CellError as error:
            failed += 1
            print(f"[{number}/{len(missing)}] {task.name}: {error}", flush=True)
            continue
        cell = Cell(task, measurement, stamp(), list_quality(task) if task.kind == "quality" else None)
        write_json(cell_file(work, task), asdict(cell))
        print(f"[{number}/{len(missing)}] {task.name}: {time.perf_counter() - began:.0f} s", flush=True)
    return failed


def interpreters(libraries: set[Library], peers: Path) -> dict[Library, Path]:
    """The Python of each library; a peer that cannot run here is named and left out."""
    known: dict[Library, Callable[[], Path]] = {
        "recsys": lambda: Path(sys.executable),
        "recbole": recbole_python,
        "rectools": lambda: rectools_python(peers.resolve() / "rectools"),
    }
    found = {}
    for library in known.keys() & libraries:
        try:
            found[library] = known[library]()
        except PeerMissingError as error:
            print(f"{library}: left out. {error}", flush=True)
    return found


class CellError(Exception):
    """A measuring process failed."""


def run(task: Task, python: Path) -> Measurement:
    """The cell, measured by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        question, reply = Path(folder) / "task.json", Path(folder) / "result.json"
        question.write_text(json.dumps(asdict(task)), encoding="utf-8")
        command: list[str | Path] = [python, "-m", MODULES[task.library], question, reply]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
        try:
            process = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST_CELL, check=False
            )
        except subprocess.TimeoutExpired:
            raise CellError(f"not done after {LONGEST_CELL} s") from None
        if process.returncode:
            raise CellError(f"exit code {process.returncode}: {process.stderr.strip()[-1000:]}")
        return Measurement(**json.loads(reply.read_text(encoding="utf-8")))


def is_done(work: Path, task: Task) -> bool:
    """Whether this very task was measured, with as many seconds."""
    path = cell_file(work, task)
    return path.exists() and Cell.read(path).task == task


def cell_file(work: Path, task: Task) -> Path:
    """Where the cell's result lies."""
    folder = work / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{task.name}.json"


def stamp() -> Stamp:
    """When, where and of which source a cell was measured."""
    return Stamp(
        date=str(datetime.now(UTC).date()),
        machine=f"{processor()}, {os.cpu_count()} cores",
        commit=(git_commit() or "unknown")[:12],
    )


def processor() -> str:
    """Its name where the system tells it, else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def list_quality(task: Task) -> float:
    """NDCG@10 of the exported lists against our test cases, by our definition; a user without a list is a miss."""
    prepared = open_prepared(Path(task.folder) / "prepared")
    with np.load(task.lists) as content:
        lists = {user: list(items) for user, items in zip(content["users"], content["items"], strict=True)}
    cases = prepared.cases("test")
    users = prepared.store.user_ids[cases["user_idx"].to_numpy().astype(np.int64)]
    targets = prepared.catalog.item_ids[cases["target"].to_numpy().astype(np.int64) - 1]
    ranks = [
        best.index(target) + 1 if target in (best := lists.get(user, [])) else NOT_RETURNED
        for user, target in zip(users, targets, strict=True)
    ]
    return float(ndcg_at_k(np.array(ranks, dtype=np.int64), CUTOFF).mean())


def write_page(work: Path, folders: dict[str, Path], out: Path) -> None:
    """The page and its chart, of all cells on disk."""
    cells = [Cell.read(path) for path in sorted((work / "cells").glob("*.json"))]
    sizes = {
        name: Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
        for name, folder in folders.items()
    }
    text = page([cell for cell in cells if cell.task.dataset in sizes], sizes)
    (out / PAGE).write_text(text, encoding="utf-8")
    chart(cells, sizes, out / CHART)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
