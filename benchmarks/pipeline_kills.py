"""`python -m benchmarks.pipeline_kills [KILLS]`: `recsys run` killed at random instants ends as one that was not.

A small shop of two nights in a temporary folder. The second night is run once undisturbed, then again and again in
folders of its own, each call killed (SIGKILL) after a random time and repeated until one ends by itself; after each
cycle weights, figures, decision, what lies in the folder and the registry are compared with the undisturbed ones.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from recsys.registry import alias_holders, roll_back
from recsys.runs import WEIGHTS
from recsys.steps import sha256
from recsys.tracking import mlflow_client

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
        "train": {"model": "sasrec", "set": SETTINGS | {"training.epochs": epochs}, "warm": warm},
        "compare": {"draws": 1000, "guard": {"coverage@10": -0.9}},
        "register": {"name": "shop"},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def start(path: Path) -> "subprocess.Popen[bytes]":
    """`recsys run` as a scheduler would call it."""
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def undisturbed(path: Path) -> float:
    """Seconds of a call that ends by itself."""
    began = time.perf_counter()
    process = start(path)
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(error.decode())
    return time.perf_counter() - began


def disturbed(path: Path, longest: float, rng: np.random.Generator) -> int:
    """How often the cycle was killed before a call of it ended by itself; each call is given more time than the last,
    so that a machine with other work to do gets there too."""
    kills = 0
    while True:
        process = start(path)
        try:
            _, error = process.communicate(timeout=rng.uniform(0, longest * 1.1**kills))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        if process.returncode:
            raise SystemExit(error.decode())
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


def main(kills_wanted: int) -> None:
    """Prints one JSON object."""
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
        while kills < kills_wanted:
            roll_back("shop", "champion")
            cycles += 1
            kills += disturbed(pipeline(folder, f"work-{cycles}", epochs=20, warm=True), 1.2 * seconds, rng)
            differing += state(folder / f"work-{cycles}") != expected
            print(f"{kills} kills in {cycles} cycles, {differing} differing", file=sys.stderr)
        versions = len(mlflow_client().search_model_versions("name = 'shop'"))
        figures = {"kills": kills, "cycles": cycles, "differing": differing, "seconds_undisturbed": round(seconds, 1)}
        print(json.dumps(figures | {"versions": versions, "versions_expected": cycles + 2}, indent=2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
