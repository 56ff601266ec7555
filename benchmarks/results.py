"""Fills docs/results.md: `python -m benchmarks.results [--only NAME] [--work DIR]`.

A program, not a log: what is done is skipped, what was cut is resumed, what matters most runs first (the first seed
of everything, then the second ...). The page is written anew after every run from what lies on disk.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from models.registry import FLOORS
from pipelines.evaluate import REPORT, EvaluateConfig, evaluate
from pipelines.ingest import IngestConfig, ingest
from pipelines.movielens import movielens_100k
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import TrainConfig, train
from recsys.prepared import open_prepared
from recsys.runs import open_run

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "results.md"
METRICS = ("ndcg@10", "hit_rate@10", "mrr@10", "coverage@10")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One dataset under one protocol, and the models trained on it; an entry of experiments.yaml."""

    name: str
    title: str
    source: str
    ingest: dict[str, Any]
    prepare: dict[str, Any]
    models: dict[str, dict[str, Any]]
    seeds: int
    published: list[str]
    remarks: list[str]

    def log(self, work: Path) -> Path:
        """The log: below RECSYS_DATA, or MovieLens-100K as the demo has it."""
        if self.source == "movielens-100k":
            return movielens_100k(work / "log")
        return Path(os.environ.get("RECSYS_DATA", HERE.parent.parent / "shared" / "data")) / self.source


def main() -> None:
    """Runs what is missing, page after page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/results"), help="where data and runs are kept")
    parser.add_argument("--only", help="name of one experiment")
    parser.add_argument("--page", action="store_true", help="write the page from what is on disk, run nothing")
    arguments = parser.parse_args()
    experiments = [entry for entry in read_experiments() if arguments.only in {None, entry.name}]
    reporter = Reporter()
    if not arguments.page:
        for experiment, model, seed in in_order_of_importance(experiments):
            run_one(experiment, model, seed, arguments.work, reporter)
            write_page(read_experiments(), arguments.work)
    write_page(read_experiments(), arguments.work)


def read_experiments() -> list[Experiment]:
    """The entries of experiments.yaml, most important first."""
    entries = yaml.safe_load((HERE / "experiments.yaml").read_text(encoding="utf-8"))
    return [Experiment(**entry) for entry in entries]


def in_order_of_importance(experiments: list[Experiment]) -> Iterator[tuple[Experiment, str, int]]:
    """Seed by seed, so that a table is whole early and its spread comes later."""
    for seed in range(max(experiment.seeds for experiment in experiments)):
        for experiment in experiments:
            if seed < experiment.seeds:
                yield from ((experiment, model, seed) for model in experiment.models)


def run_one(experiment: Experiment, model: str, seed: int, work: Path, reporter: Reporter) -> None:
    """Trains and evaluates one model with one seed, where that is not done."""
    folder = work / experiment.name
    prepare_data(experiment, folder)
    run = run_folder(folder, model, seed)
    options = experiment.models[model]
    if not run.exists():
        refit = run_folder(folder, options["refit"], seed) if "refit" in options else None
        settings = tuple(options.get("set", ()))
        config = TrainConfig(
            data=folder / "prepared",
            model=options["model"],
            out=run,
            refit=refit,
            preset=options.get("preset"),
            settings=settings,
            seed=seed,
            tracking=False,
        )
        reporter.say(f"{experiment.name}: {model}, seed {seed}")
        train(config, reporter)
    if not (run / "evaluation" / "test" / REPORT).exists():
        evaluate(EvaluateConfig(runs=(run,)), reporter)


def prepare_data(experiment: Experiment, folder: Path) -> None:
    """Ingests and prepares once."""
    if not (folder / "dataset").exists():
        ingest(IngestConfig(sources=(experiment.log(folder),), out=folder / "dataset", **experiment.ingest))
    if not (folder / "prepared").exists():
        prepare(PrepareConfig(dataset=folder / "dataset", out=folder / "prepared", **experiment.prepare))


def run_folder(folder: Path, model: str, seed: int) -> Path:
    """Where a model's run with a seed lies."""
    return folder / "runs" / f"{model}-{seed}"


def write_page(experiments: list[Experiment], work: Path) -> None:
    """docs/results.md from the reports on disk."""
    parts = [
        "# Results",
        "Written by `python -m benchmarks.results`; do not edit. Full ranking over the whole catalogue, pessimistic "
        "ties. Mean over seeds, with the standard deviation where there are several. Floors are deterministic and "
        "know all events before the test part, as do models marked *refit*; the others learned from the training part.",
    ]
    parts += [
        section for experiment in experiments if (section := experiment_section(experiment, work / experiment.name))
    ]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def experiment_section(experiment: Experiment, folder: Path) -> str | None:
    """Table and provenance of one experiment, None where nothing was run."""
    if not (folder / "prepared").exists():
        return None
    prepared = open_prepared(folder / "prepared")
    counts = prepared.manifest["counts"]
    lines = [
        f"## {experiment.title}",
        "",
        f"{counts['users']} users, {counts['items']} items, {counts['events']} events; "
        f"{counts['test_cases']} test cases; seen items: {counts['seen']}.",
        "",
        "| model | seeds | " + " | ".join(METRICS) + " | best epoch | training s |",
        "|---|---|" + "---|" * (len(METRICS) + 2),
    ]
    lines += [floor_row(name, folder) for name in FLOORS if (floor_folder(folder, name) / REPORT).exists()]
    rows = [row for model in experiment.models if (row := model_row(experiment, model, folder))]
    lines += rows
    notes = [*(f"- published: {line}" for line in experiment.published), *(f"- {line}" for line in experiment.remarks)]
    lines += ["", *notes, ""] if notes else [""]
    return "\n".join([*lines, provenance(experiment, folder)])


def floor_folder(folder: Path, name: str) -> Path:
    """Where `recsys evaluate` keeps a floor."""
    return folder / "prepared" / "floors" / "test" / name


def floor_row(name: str, folder: Path) -> str:
    """One floor."""
    metrics = json.loads((floor_folder(folder, name) / REPORT).read_text(encoding="utf-8"))["metrics"]
    return f"| {name} (floor) | - | " + " | ".join(f"{metrics[metric]:.4f}" for metric in METRICS) + " | - | - |"


def model_row(experiment: Experiment, model: str, folder: Path) -> str | None:
    """One model, mean and spread over the seeds that are done."""
    runs = [run for seed in range(experiment.seeds) if (run := run_folder(folder, model, seed)).exists()]
    reports = [run / "evaluation" / "test" / REPORT for run in runs]
    done = [json.loads(report.read_text(encoding="utf-8"))["metrics"] for report in reports if report.exists()]
    if not done:
        return None
    counts = [open_run(run).manifest["counts"] for run in runs]
    figures = [spread([metrics[metric] for metrics in done]) for metric in METRICS]
    epochs = "/".join(str(entry["best_epoch"]) for entry in counts)
    seconds = mean(entry["training_seconds"] for entry in counts)
    return f"| {model} | {len(done)} | " + " | ".join(figures) + f" | {epochs} | {seconds:.0f} |"


def spread(values: list[float]) -> str:
    """`.0950 +- .0012`."""
    deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{deviation}"


def provenance(experiment: Experiment, folder: Path) -> str:
    """Machine, versions, commit and date of the newest run."""
    runs = sorted((folder / "runs").glob("*-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        return ""
    manifest = json.loads(runs[-1].read_text(encoding="utf-8"))
    day = datetime.fromisoformat(manifest["created"]).astimezone(UTC).date()
    return (
        f"Seeds 0 to {experiment.seeds - 1}; {manifest['machine']}, no accelerator; torch "
        f"{manifest['libraries'].get('torch')}; commit {(manifest['commit'] or 'unknown')[:12]}; {day}."
    )


if __name__ == "__main__":
    main()
