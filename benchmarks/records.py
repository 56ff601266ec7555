"""Figures of finished runs, one small JSON file each, committed: docs/results.md is made of these alone.

    benchmarks/records/EXPERIMENT/floors.json
    benchmarks/records/EXPERIMENT/MODEL-SEED.json

So a table can be filled on several machines and days, and the page remade without any run at hand.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from models.registry import preset
from pipelines.movielens import movielens_100k
from recsys.runs import EPOCHS, REPORT, Run, open_run
from recsys.steps import write_json

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "records"
EARLIER = ("init", "teacher", "retriever", "over")
"""Runs that a run may begin with, learn from, correct, or (`over`) only put lists of in order."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One dataset under one protocol, and the models trained on it; an entry of experiments.yaml.

    `combined`: in place of a source, several (source and ingest each), put together by `recsys combine`. Not `ranked`:
    its runs are only there for others to begin with, and ranking its many cases would cost more than training.
    """

    name: str
    title: str
    source: str = ""
    combined: dict[str, dict[str, Any]] = field(default_factory=dict)
    ingest: dict[str, Any]
    prepare: dict[str, Any]
    models: dict[str, dict[str, Any]]
    seeds: int
    published: list[dict[str, Any]]
    remarks: list[str]
    ranked: bool = True
    protocol: Literal["full ranking", "clicks"] = "full ranking"

    def log(self, work: Path) -> Path:
        """The log: below RECSYS_DATA, or MovieLens-100K as the demo has it."""
        return movielens_100k(work / "log") if self.source == "movielens-100k" else data_file(self.source)

    def ingest_options(self) -> dict[str, Any]:
        """Options of `recsys ingest`; the item table lies below RECSYS_DATA too."""
        return with_item_table(self.ingest)

    @property
    def data_hash(self) -> str:
        """Of how the data is read and split."""
        return _hash([self.ingest, self.prepare, *([self.combined] if self.combined else [])])

    def settings_hash(self, model: str) -> str:
        """Of all that decides a model's figures besides data, code and seed; a record with another one is stale."""
        options = self.models[model]
        base = self.models[options.get("refit", model)]
        sections = preset(base["model"], base.get("preset"))
        content = [self.ingest, self.prepare, options, base, sections]
        content += [self.combined] if self.combined else []
        for role in EARLIER:
            if role in options:
                experiment, earlier = self.earlier(model, role)
                content.append(experiment.settings_hash(earlier))
        return _hash(content)

    def earlier(self, model: str, role: str) -> tuple["Experiment", str]:
        """What a model takes from another in one of the roles of `EARLIER`: `MODEL` or `EXPERIMENT:MODEL`."""
        name, _, earlier = self.models[model][role].rpartition(":")
        return next(entry for entry in (self, *read_experiments()) if entry.name == (name or self.name)), earlier


@dataclass(frozen=True)
class Judged:
    """A run, and the folder of its test cases and report: of its own lists, or of a retriever's in its order."""

    run: Run
    evaluation: Path

    @classmethod
    def of(cls, folder: Path, over: Path | None) -> "Judged":
        """Of an evaluated run, by itself or over another run's lists."""
        run = open_run(folder)
        return cls(run, run.evaluation("test") if over is None else run.reranking("test", open_run(over).name))


def _hash(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def with_item_table(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `recsys ingest` whose item table is looked for below RECSYS_DATA."""
    return options | ({"items": data_file(options["items"])} if options.get("items") else {})


def data_file(path: str) -> Path:
    """A file of the public datasets."""
    return Path(os.environ.get("RECSYS_DATA", HERE.parent.parent / "shared" / "data")) / path


def read_experiments() -> list[Experiment]:
    """The entries of experiments.yaml, most important first."""
    entries = yaml.safe_load((HERE / "experiments.yaml").read_text(encoding="utf-8"))
    return [Experiment(**entry) for entry in entries]


def record_file(experiment: Experiment, model: str, seed: int) -> Path:
    """Where the figures of a model's run with a seed are kept."""
    return RECORDS / experiment.name / f"{model}-{seed}.json"


def read_record(experiment: Experiment, model: str, seed: int) -> dict[str, Any] | None:
    """The record, None where there is none or its settings are not today's."""
    path = record_file(experiment, model, seed)
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if record["settings"] == experiment.settings_hash(model) else None


def write_record(experiment: Experiment, model: str, seed: int, judged: Judged) -> None:
    """Keeps what the table needs of an evaluated run."""
    run = judged.run
    path = record_file(experiment, model, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    counts, manifest = run.manifest["counts"], run.manifest
    path_of_epochs = run.folder / EPOCHS
    lines = path_of_epochs.read_text(encoding="utf-8").splitlines() if path_of_epochs.exists() else []
    epochs = [json.loads(line) for line in lines]
    best = counts.get("best_epoch", 0)
    report = json.loads((judged.evaluation / REPORT).read_text(encoding="utf-8"))
    write_json(
        path,
        {
            "settings": experiment.settings_hash(model),
            "seed": seed,
            "config": run.config | {role: Path(run.config[role]).name for role in EARLIER if role in run.config},
            "metrics": report["metrics"],
            "segments": {name: part["metrics"]["ndcg@10"] for name, part in report.get("segments", {}).items()},
            **{name: value for name, value in report.items() if name in {"weight", "validation_ndcg@10"}},
            "best_epoch": best,
            **{name: value for name, value in counts.items() if name.startswith("best_validation_")},
            "epochs": len(epochs),
            "parameters": counts.get("parameters", 0),
            "seconds_to_best": round(sum(epoch["seconds"] for epoch in epochs[:best]), 1),
            "seconds_per_epoch": round(sum(epoch["seconds"] for epoch in epochs) / max(1, len(epochs)), 2),
            "validation_curve": [
                round(epoch[watched], 5) for epoch in epochs for watched in ("ndcg@10", "auc") if watched in epoch
            ],
            **{key: manifest[key] for key in ("created", "machine", "commit", "libraries")},
        },
    )


def read_floors(experiment: Experiment) -> dict[str, Any] | None:
    """Counts of the prepared data, and each floor's metrics; None where there are none of today's data settings."""
    path = RECORDS / experiment.name / "floors.json"
    if not path.exists():
        return None
    floors: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return floors if floors["settings"] == experiment.data_hash else None


def write_floors(experiment: Experiment, counts: dict[str, Any], floors: dict[str, Any]) -> None:
    """Keeps them."""
    path = RECORDS / experiment.name / "floors.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = {name: report["metrics"] for name, report in floors.items()}
    write_json(path, {"settings": experiment.data_hash, "counts": counts, "floors": metrics})
