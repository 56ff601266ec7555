"""A variant beside its base, and its steps: figures that are known from elsewhere."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from builders import random_rows, write_dataset
from training import run_of, trained

from benchmarks import contrast
from benchmarks.contrast import RARE_ITEMS, AfterSteps, by_steps, histories, pooled, read_contrast, write_contrast
from benchmarks.records import Judged, read_experiments
from benchmarks.results import contrasts_with, judged_over, pairs, run_folder
from benchmarks.results_page import contrast_lines
from models.rearec import ReaRec
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.loading import run_model
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter

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
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Judged, Judged]]:
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
        found[seed] = (Judged.of(pair[0].folder, None), Judged.of(pair[1].folder, None))
    return found


def test_the_last_step_is_what_was_evaluated(runs: dict[int, tuple[Judged, Judged]]) -> None:
    run = runs[0][1].run
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


def test_a_model_that_does_not_reason_has_no_steps(runs: dict[int, tuple[Judged, Judged]]) -> None:
    assert by_steps(runs[0][0].run) == []


def test_stopped_early_it_answers_as_asked(runs: dict[int, tuple[Judged, Judged]]) -> None:
    run = runs[0][1].run
    _, model = run_model(run, run.prepared())
    assert isinstance(model, ReaRec)
    (batch,) = histories(run, pl.read_parquet(run.evaluation("test") / "cases.parquet"))
    for steps in range(3):
        assert (AfterSteps(model, steps).encode(batch) - model.encode(batch, steps)).abs().max() < 1e-6


def test_every_seeds_cases_are_kept_apart(runs: dict[int, tuple[Judged, Judged]]) -> None:
    both = pooled({seed: pair[0] for seed, pair in runs.items()})
    one = pooled({0: runs[0][0]})
    assert len(both) == 2 * len(one)
    assert both.select("user_idx", "position", "target").is_unique().all()
    assert both["user_idx"].n_unique() == one["user_idx"].n_unique()


def test_a_contrast_is_the_mean_difference_and_goes_with_its_settings(
    runs: dict[int, tuple[Judged, Judged]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "FEW_EVENTS", FEW)
    monkeypatch.setattr(contrast, "RECORDS", tmp_path)
    (tmp_path / "tiny").mkdir()
    write_contrast(EXPERIMENT, "rearec", runs)
    record = read_contrast(EXPERIMENT, "rearec")
    assert record is not None
    assert (record["base"], record["seeds"]) == ("sasrec", [0, 1])
    reports = [
        [json.loads((judged.evaluation / "report.json").read_text())["metrics"]["ndcg@10"] for judged in pair]
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


def by_hand_of_rare_items(runs: dict[int, tuple[Judged, Judged]]) -> float:
    """Mean difference in NDCG@10 where the target has fewer than `FEW` training events."""
    counts = Counter(runs[0][0].run.prepared().training_events().items.tolist())
    gains: list[float] = []
    cases = 0
    for pair in runs.values():
        base, variant = (pl.read_parquet(judged.evaluation / "cases.parquet") for judged in pair)
        cases += len(base)
        for target, before, after in zip(base["target"], base["rank"], variant["rank"], strict=True):
            if counts[target] < FEW:
                gains.append(sum(sign / math.log2(1 + rank) for sign, rank in ((1, after), (-1, before)) if rank <= 10))
    assert 0 < len(gains) < cases
    return sum(gains) / len(gains)


def test_runs_at_hand_are_those_that_were_ranked_to_the_end(
    runs: dict[int, tuple[Judged, Judged]], tmp_path: Path
) -> None:
    for seed, names in enumerate((("sasrec", "rearec"), ("sasrec",))):
        for name, judged in zip(names, runs[seed], strict=False):
            shutil.copytree(judged.run.folder, run_folder(EXPERIMENT, tmp_path / "tiny", name, seed))
    assert list(pairs(EXPERIMENT, "rearec", tmp_path)) == [0], "the second seed has no variant"
    (run_folder(EXPERIMENT, tmp_path / "tiny", "rearec", 0) / "evaluation" / "test" / "cases.parquet").unlink()
    assert pairs(EXPERIMENT, "rearec", tmp_path) == {}, "ranking has begun, no more"


def test_a_ranker_is_judged_by_the_lists_it_put_in_order(
    runs: dict[int, tuple[Judged, Judged]], tmp_path: Path
) -> None:
    """Not by its clicks: base and variant are then the same cases."""
    models = {"sasrec": {"model": "sasrec"}, "dare": {"model": "dare", "over": "sasrec", "against": "sasrec"}}
    experiment = replace(EXPERIMENT, models=models)
    base = run_folder(experiment, tmp_path / "tiny", "sasrec", 0)
    shutil.copytree(runs[0][0].run.folder, base)
    ranker = run_of(runs[0][0].run.prepared(), tmp_path / "dare", "dare", ("training.epochs=1", "model.max_len=6"))
    shutil.copytree(ranker.folder, run_folder(experiment, tmp_path / "tiny", "dare", 0))
    assert pairs(experiment, "dare", tmp_path) == {}
    folder = run_folder(experiment, tmp_path / "tiny", "dare", 0)
    evaluate(EvaluateConfig(runs=(folder,), rerank=base), Reporter(quiet=True))
    ((judged_base, judged),) = pairs(experiment, "dare", tmp_path).values()
    assert judged.evaluation == folder / "reranking" / "test" / base.name
    assert judged_base.evaluation == base / "evaluation" / "test"
    assert judged_over(experiment, tmp_path, "dare", 0) == base


def test_a_variant_is_told_of_each_further_run_of_its_base() -> None:
    assert contrasts_with(EXPERIMENT, "sasrec") == contrasts_with(EXPERIMENT, "rearec") == ["rearec"]
    assert contrasts_with(replace(EXPERIMENT, models={"sasrec": {"model": "sasrec"}}), "sasrec") == []


def test_a_contrast_of_more_seeds_stays(
    runs: dict[int, tuple[Judged, Judged]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has only some of the runs."""
    monkeypatch.setattr(contrast, "RECORDS", tmp_path)
    (tmp_path / "tiny").mkdir()
    write_contrast(EXPERIMENT, "rearec", {1: runs[1]})
    write_contrast(EXPERIMENT, "rearec", {0: runs[0]})
    assert read_contrast(EXPERIMENT, "rearec")["seeds"] == [1]
    write_contrast(EXPERIMENT, "rearec", runs)
    assert read_contrast(EXPERIMENT, "rearec")["seeds"] == [0, 1]
