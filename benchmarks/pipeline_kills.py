"""`recsys run`, killed at random, ends as if it had not been: `python -m benchmarks.pipeline_kills [KILLS [MINUTES]]`.

A small shop of two nights in a temporary folder. The second night is run once undisturbed, then again and again in
folders of its own, each call killed (SIGKILL) after a random time and repeated until one ends by itself; after each
cycle weights, figures, decision, what lies in the folder and the registry are compared with the undisturbed ones.
Writes docs/pipeline-kills.md.
"""

import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from pipelines.cli import main
from recsys.registry import alias_holders, roll_back
from recsys.runs import WEIGHTS
from recsys.steps import sha256
from recsys.tracking import mlflow_client

PAGE = Path("docs/pipeline-kills.md")
EXPORTER = ("onnxscript", "onnxruntime", "torch.onnx._internal.exporter._core", "torch.export")
CALLS = multiprocessing.get_context("forkserver")
CALLS.set_forkserver_preload(["pipelines.run_pipeline", "pipelines.comparison_report", "recsys.export", *EXPORTER])
USERS, ITEMS = 100, 31
SETTINGS = {
    "model.max_len": 6,
    "model.embedding_dim": 16,
    "model.num_blocks": 1,
    "model.ffn_dim": 16,
    "model.dropout": 0.0,
    "training.batch_size": 16,
    "training.learning_rate": 0.01,
    "training.checkpoint_seconds": 0,
}


def write_log(path: Path, places: range) -> None:
    """Events of users who walk through the items on two paths in turn: the item before the last decides the next."""
    walks = np.random.default_rng(0).integers(0, ITEMS, (USERS, 2))
    rows = []
    for place in range(places.stop):
        if place in places:
            rows += [(f"u{user}", f"i{walks[user, place % 2]}", 60 * (place * USERS + user)) for user in range(USERS)]
        walks[:, place % 2] = (7 * walks[:, place % 2] + 3) % ITEMS
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    table.with_columns(timestamp=pl.col("timestamp") + 1_700_000_000).write_csv(path)


def pipeline(folder: Path, work: str, epochs: int, warm: bool) -> Path:
    """PIPELINE.yaml in `folder`."""
    path = folder / f"{work}.yaml"
    content = {
        "name": "shop",
        "work": work,
        "sources": ["logs/*.csv"],
        "prepare": {"seen": "keep"},
        "train": {"model": "sasrec", "set": SETTINGS | {"training.epochs": epochs}, "warm": warm, "tracking": False},
        "compare": {"draws": 1000, "guard": {"coverage@10": -0.9}},
        "register": {"name": "shop"},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def called(path: Path) -> None:
    """`recsys run` as a scheduler would call it; what it says goes beside the YAML file."""
    with path.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["recsys", "run", str(path)]
    main()


def start(path: Path) -> BaseProcess:
    """A process of its own, forked from one that has imported everything: an instant's kill hits the work."""
    process = CALLS.Process(target=called, args=(path,))
    process.start()
    return process


def ended(process: BaseProcess, path: Path) -> None:
    """Stops at an exit code that is not 0."""
    if process.exitcode:
        raise SystemExit(f"exit code {process.exitcode}: {path.with_suffix('.log').read_text()}")


def undisturbed(path: Path) -> float:
    """Seconds of a call that ends by itself."""
    began = time.perf_counter()
    process = start(path)
    process.join()
    ended(process, path)
    return time.perf_counter() - began


def disturbed(path: Path, longest: float, rng: np.random.Generator) -> int:
    """How often the cycle was killed before a call of it ended by itself; each call is given more time than the last,
    so that a machine with other work to do gets there too."""
    kills = 0
    while True:
        process = start(path)
        process.join(timeout=rng.uniform(0, longest * 1.1**kills))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            continue
        ended(process, path)
        return kills


def state(work: Path) -> dict[str, Any]:
    """What a cycle came to, times and paths apart."""
    [record_path] = work.glob("*/cycle.json")
    record, folder = json.loads(record_path.read_text(encoding="utf-8")), record_path.parent
    runs = ("candidate", "champion")
    return {
        **{key: record[key] for key in ("cycle", "action", "verdict", "sentence")},
        "weights": [sha256(folder / "runs" / run / WEIGHTS) for run in runs],
        "figures": [
            (folder / "runs" / run / "evaluation/test/report.json").read_text(encoding="utf-8") for run in runs
        ],
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "after": [holder.version for holder in alias_holders("shop", "champion")][1:],
    }


def kill_many(kills_wanted: int, minutes: float) -> dict[str, Any]:
    """Kills until there are enough, or the time is up and a cycle ended; what came out of all cycles."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng = Path(temporary), np.random.default_rng(0)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        (folder / "logs").mkdir()
        write_log(folder / "logs" / "night-0.csv", range(12))
        undisturbed(pipeline(folder, "work", epochs=6, warm=False))
        write_log(folder / "logs" / "night-1.csv", range(12, 16))
        seconds = undisturbed(pipeline(folder, "work-0", epochs=20, warm=True))
        expected, cycles, kills, differing = state(folder / "work-0"), 0, 0, 0
        print(expected["sentence"], file=sys.stderr)
        while kills < kills_wanted and time.monotonic() - began < 60 * minutes:
            roll_back("shop", "champion")
            cycles += 1
            kills += disturbed(pipeline(folder, f"work-{cycles}", epochs=20, warm=True), 1.2 * seconds, rng)
            differing += state(folder / f"work-{cycles}") != expected
            print(f"{kills} kills in {cycles} cycles, {differing} differing", file=sys.stderr)
        versions = len(mlflow_client().search_model_versions("name = 'shop'"))
        figures = {"kills": kills, "cycles": cycles, "differing": differing, "seconds_undisturbed": round(seconds, 1)}
        return figures | {"versions": versions, "versions_expected": cycles + 2, "sentence": expected["sentence"]}


def page(figures: dict[str, Any]) -> str:
    """The figures in words."""
    return "\n".join([
        "# Nightly cycles that are killed",
        "",
        "Written by `python -m benchmarks.pipeline_kills`; do not edit. "
        f"{datetime.now(UTC).date().isoformat()}, 2 cores, no accelerator, beside other work; seed 0.",
        "",
        "The second night of a small shop (warm training, comparison, export, registration) is run once undisturbed "
        f"({figures['seconds_undisturbed']} s), then again and again in folders of its own: each call gets a SIGKILL "
        "after a random time, and is repeated until one ends by itself. After each cycle the decision, weights, "
        "figures, names of all files and the registry are compared with the undisturbed ones.",
        "",
        "| what | is | should be |",
        "|---|---|---|",
        f"| kills | {figures['kills']} | 50 |",
        f"| cycles that they fell on | {figures['cycles']} | |",
        f"| cycles whose end differs | {figures['differing']} | 0 |",
        f"| registered versions (first champion, undisturbed, one a cycle) | {figures['versions']} | "
        f"{figures['versions_expected']} |",
        "",
        f"What every cycle decided: {figures['sentence']}",
        "",
    ])


if __name__ == "__main__":
    wanted, *limit = sys.argv[1:] or ["50"]
    found = kill_many(int(wanted), float(limit[0]) if limit else math.inf)
    print(json.dumps(found, indent=2))
    PAGE.write_text(page(found), encoding="utf-8")
