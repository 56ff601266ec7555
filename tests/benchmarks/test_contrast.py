"""A variant beside its base, and its steps: figures that are known from elsewhere."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from builders import random_rows, write_dataset
from training import trained

from benchmarks import contrast
from benchmarks.contrast import RARE_ITEMS, AfterSteps, by_steps, histories, pooled, read_contrast, write_contrast
from benchmarks.records import read_experiments
from benchmarks.results import contrasts_with, pairs, run_folder
from benchmarks.results_page import contrast_lines
from models.rearec import ReaRec
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.loading import run_model
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from recsys.runs import Run, open_run

EXPERIMENT = replace(
    read_experiments()[0],
    name="tiny",
    seeds=2,
    models={
        "sasrec": {"model": "sasrec"},
        "rearec": {"model": "rearec", "against": "sasrec"},
    },
)


FEW = 22
"""Training events that about half of the items have, where every item has more than ten."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Run, Run]]:
    """Base and variant with two seeds, evaluated."""
    folder = tmp_path_factory.mktemp("contrast")
    dataset = write_dataset(folder / "dataset", random_rows(1, 40, 25, 700))
    prepared = prepare(PrepareConfig(dataset=dataset, out=folder / "prepared"))
    found = {}
    for seed in range(2):
        names = ("sasrec", "rearec")
        pair = [
            trained(prepared, folder / f"{name}-{seed}", "training.learning_rate=0.02", model=name, seed=seed)
            for name in names
        ]
        evaluate(EvaluateConfig(runs=tuple(run.folder for run in pair)), Reporter(quiet=True))
        found[seed] = (open_run(pair[0].folder), open_run(pair[1].folder))
    return found


def test_the_last_step_is_what_was_evaluated(runs: dict[int, tuple[Run, Run]]) -> None:
    run = runs[0][1]
    report = json.loads((run.evaluation("test") / "report.json").read_text(encoding="utf-8"))
    steps = by_steps(run)
    assert len(steps) == 3
    assert steps[-1]["ndcg@10"] == pytest.approx(report["metrics"]["ndcg@10"], abs=1e-9)
    assert steps[-1]["hit_rate@10"] == pytest.approx(report["metrics"]["hit_rate@10"], abs=1e-9)
    assert steps[0]["best so far"] == steps[0]["ndcg@10"]
    assert [entry["best so far"] for entry in steps] == sorted(entry["best so far"] for entry in steps)
    assert max(entry["ndcg@10"] for entry in steps) <= steps[-1]["best so far"]
    assert steps[0]["similarity"] == 1
    assert all(-1 <= entry["similarity"] < 1 for entry in steps[1:])


def test_a_model_that_does_not_reason_has_no_steps(runs: dict[int, tuple[Run, Run]]) -> None:
    assert by_steps(runs[0][0]) == []


def test_stopped_early_it_answers_as_asked(runs: dict[int, tuple[Run, Run]]) -> None:
    run = runs[0][1]
    _, model = run_model(run, run.prepared())
    assert isinstance(model, ReaRec)
    (batch,) = histories(run, pl.read_parquet(run.evaluation("test") / "cases.parquet"))
    for steps in range(3):
        assert (AfterSteps(model, steps).encode(batch) - model.encode(batch, steps)).abs().max() < 1e-6


def test_every_seeds_cases_are_kept_apart(runs: dict[int, tuple[Run, Run]]) -> None:
    both = pooled({seed: pair[0] for seed, pair in runs.items()})
    one = pooled({0: runs[0][0]})
    assert len(both) == 2 * len(one)
    assert both.select("user_idx", "position", "target").is_unique().all()
    assert both["user_idx"].n_unique() == one["user_idx"].n_unique()


def test_a_contrast_is_the_mean_difference_and_goes_with_its_settings(
    runs: dict[int, tuple[Run, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "FEW_EVENTS", FEW)
    monkeypatch.setattr(contrast, "RECORDS", tmp_path)
    (tmp_path / "tiny").mkdir()
    write_contrast(EXPERIMENT, "rearec", runs)
    record = read_contrast(EXPERIMENT, "rearec")
    assert record is not None
    assert (record["base"], record["seeds"]) == ("sasrec", [0, 1])
    reports = [
        [json.loads((run.evaluation("test") / "report.json").read_text())["metrics"]["ndcg@10"] for run in pair]
        for pair in runs.values()
    ]
    by_hand = sum(variant - base for base, variant in reports) / 2
    found = record["segments"]["all"]
    assert found["difference"] == pytest.approx(by_hand, abs=1e-9)
    assert found["low"] <= found["difference"] <= found["high"]
    assert len(record["steps"]) == 3
    assert record["segments"][RARE_ITEMS]["difference"] == pytest.approx(by_hand_of_rare_items(runs), abs=1e-9)
    lines = contrast_lines(EXPERIMENT)
    assert any(line.startswith(f"| rearec | sasrec | 2 | {by_hand:+.4f} (") for line in lines)
    assert sum(line.startswith("| rearec | ") for line in lines) == 4
    other = {**EXPERIMENT.models, "sasrec": {"model": "sasrec", "set": ["model.dropout=0.123"]}}
    assert read_contrast(replace(EXPERIMENT, models=other), "rearec") is None
    assert contrast_lines(replace(EXPERIMENT, models=other)) == []


def by_hand_of_rare_items(runs: dict[int, tuple[Run, Run]]) -> float:
    """Mean difference in NDCG@10 where the target has fewer than `FEW` training events."""
    prepared = runs[0][0].prepared()
    counts = Counter(prepared.training_events().items.tolist())
    gains: list[float] = []
    for base, variant in runs.values():
        ranked = [pl.read_parquet(run.evaluation("test") / "cases.parquet") for run in (base, variant)]
        for target, before, after in zip(ranked[0]["target"], ranked[0]["rank"], ranked[1]["rank"], strict=True):
            if counts[target] < FEW:
                gains.append(sum(sign / math.log2(1 + rank) for sign, rank in ((1, after), (-1, before)) if rank <= 10))
    assert (
        0 < len(gains) < sum(len(pl.read_parquet(run.evaluation("test") / "cases.parquet")) for run, _ in runs.values())
    )
    return sum(gains) / len(gains)


def test_runs_at_hand_are_those_that_were_ranked_to_the_end(tmp_path: Path) -> None:
    for seed, names in enumerate((("sasrec", "rearec"), ("sasrec",))):
        for name in names:
            (run_folder(EXPERIMENT, tmp_path, name, seed) / "evaluation" / "test").mkdir(parents=True)
    assert pairs(EXPERIMENT, "rearec", tmp_path) == {}, "ranking has begun, no more"
    assert contrasts_with(EXPERIMENT, "sasrec") == contrasts_with(EXPERIMENT, "rearec") == ["rearec"]
    assert contrasts_with(replace(EXPERIMENT, models={"sasrec": {"model": "sasrec"}}), "sasrec") == []


def test_a_contrast_of_more_seeds_stays(
    runs: dict[int, tuple[Run, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has only some of the runs."""
    monkeypatch.setattr(contrast, "RECORDS", tmp_path)
    (tmp_path / "tiny").mkdir()
    write_contrast(EXPERIMENT, "rearec", {1: runs[1]})
    write_contrast(EXPERIMENT, "rearec", {0: runs[0]})
    assert read_contrast(EXPERIMENT, "rearec")["seeds"] == [1]
    write_contrast(EXPERIMENT, "rearec", runs)
    assert read_contrast(EXPERIMENT, "rearec")["seeds"] == [0, 1]
