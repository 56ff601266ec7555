"""Small sweeps for tests: their spaces, and what comes out of them."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipelines.reporter import Reporter
from pipelines.search import SweepConfig
from pipelines.sweep import sweep
from pipelines.sweep_results import Sweep
from pipelines.trials import Trial
from recsys.prepared import Prepared

NETWORK: dict[str, Any] = {
    "fixed": {
        "model.max_len": 6,
        "model.embedding_dim": 8,
        "model.ffn_dim": 12,
        "model.loss.negatives": 4,
        "training.epochs": 2,
        "training.batch_size": 16,
        "training.warmup_steps": 2,
    },
    "model.dropout": {"low": 0.0, "high": 0.5},
    "model.num_blocks": {"low": 0, "high": 1},
    "model.loss.kind": ["softmax", "sampled-softmax"],
    "training.learning_rate": {"low": 0.002, "high": 0.05, "log": True},
}
COUNTING: dict[str, Any] = {"model.decay": {"low": 0.1, "high": 1.0}, "model.neighbours": [5, 10, 20]}


def space_file(folder: Path, content: Mapping[str, Any] | str) -> Path:
    """The space as a file."""
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def config_of(prepared: Prepared, folder: Path, content: Mapping[str, Any] | str, **options: Any) -> SweepConfig:
    """Of a sweep into `folder`/sweep: SASRec for the network's space, item-KNN otherwise."""
    model = "sasrec" if isinstance(content, dict) and "fixed" in content else "item-knn"
    given = {"model": model, "out": folder / "sweep", "space": space_file(folder, content), "trials": 3} | options
    return SweepConfig(data=prepared.folder, **given)


def swept(config: SweepConfig) -> Sweep:
    """Without progress."""
    return sweep(config, Reporter(quiet=True))


def outcomes(trials: Sweep) -> list[Trial]:
    """Every trial but the time it took."""
    return [replace(trial, seconds=0.0) for trial in trials.trials]


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The table of trials on disk."""
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make(folder: Path) -> Path:
    """A folder that may be there already."""
    folder.mkdir(exist_ok=True)
    return folder
