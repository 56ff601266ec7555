"""Rankers from `recsys train` to clicks and re-ranked lists."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from builders import random_rows, write_dataset
from command_line import run_recsys
from rich.console import Console
from safetensors.torch import load_file
from training import assert_same_weights, cut_at, epochs, trained

from models.dare import DARE
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.loading import run_ranker, run_scorer
from pipelines.plan import TrainConfig, make_plan
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.search import SweepConfig, make_search
from pipelines.tables import evaluation_table
from pipelines.train import train
from recsys.batches import Histories
from recsys.click_metrics import click_metrics
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared
from recsys.reranking import SHORTEST
from recsys.retrieved import WEIGHTS
from recsys.runs import Run

SMALL = (
    "model.max_len=6",
    "model.kept=3",
    "model.embedding_dim=4",
    "model.positives=3",
    "training.epochs=2",
    "training.batch_size=8",
)


def quiet() -> Reporter:
    """A reporter that says nothing."""
    return Reporter(quiet=True)


def prepared_in(folder: Path, **columns: Any) -> Prepared:
    """20 users who walk from item to item, 17 of them."""
    items = pl.DataFrame({"item_id": [f"i{row:03}" for row in range(17)]} | columns)
    dataset = write_dataset(folder / "dataset", random_rows(0, users=20, items=17, events=240), items)
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", split="last-item", seen="keep"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """With two categories and items without one."""
    kinds = [["odd", "small"] if row % 2 else ["even"] if row < 12 else None for row in range(17)]
    return prepared_in(tmp_path_factory.mktemp("data"), categories=kinds)


def fit(prepared: Prepared, out: Path, *settings: str, **options: Any) -> Run:
    """A small DARE."""
    config = TrainConfig(
        data=prepared.folder, model="dare", out=out, settings=(*SMALL, *settings), tracking=False, **options
    )
    run = train(config, quiet())
    assert run is not None
    return run


@pytest.fixture(scope="module")
def ranker_run(prepared: Prepared) -> Run:
    """A trained DARE."""
    return fit(prepared, prepared.folder.parent / "runs" / "dare")


@pytest.fixture(scope="module")
def retriever_run(prepared: Prepared) -> Run:
    """What it re-ranks."""
    return trained(prepared, prepared.folder.parent / "runs" / "sasrec")


def test_a_ranker_is_watched_by_auc(ranker_run: Run) -> None:
    figures = epochs(ranker_run)
    assert figures[0].keys() == {"epoch", "loss", "auc", "gauc", "logloss", "calibration", "calibration_error"}
    counts = ranker_run.manifest["counts"]
    assert counts["best_validation_auc"] == max(entry["auc"] for entry in figures)
    assert ranker_run.config["model"]["num_categories"] == 2
    kept = load_file(ranker_run.folder / "model.safetensors")["category_of"].tolist()
    assert kept == [0, *(2 if row % 2 else 1 if row < 12 else 0 for row in range(17))]


def test_the_same_run_again_is_the_same(prepared: Prepared, ranker_run: Run, tmp_path: Path) -> None:
    again = fit(prepared, tmp_path / "again")
    assert_same_weights(ranker_run, again)
    assert epochs(ranker_run) == epochs(again)
    other = fit(prepared, tmp_path / "other", seed=1)
    assert epochs(other) != epochs(again)


def test_data_without_categories_has_no_such_table(tmp_path: Path) -> None:
    run = fit(prepared_in(tmp_path), tmp_path / "run", "model.time_buckets=8")
    assert run.config["model"]["num_categories"] == 0
    assert not [name for name in load_file(run.folder / "model.safetensors") if "categories" in name]
    with pytest.raises(DataError, match=r"no column 'brand' for model\.category"):
        fit(prepared_in(tmp_path / "other"), tmp_path / "other" / "run", "model.category=brand")


def test_a_refit_and_a_start_take_a_rankers_settings(prepared: Prepared, ranker_run: Run, tmp_path: Path) -> None:
    config = TrainConfig(
        data=prepared.folder, model="dare", out=tmp_path / "refit", refit=ranker_run.folder, tracking=False
    )
    refit = train(config, quiet())
    assert refit is not None
    assert refit.config["model"] == ranker_run.config["model"]
    begun = fit(prepared, tmp_path / "begun", "training.epochs=0", init=ranker_run.folder)
    assert_same_weights(begun, ranker_run)


def test_clicks_are_kept_row_by_row(prepared: Prepared, ranker_run: Run) -> None:
    evaluation = evaluate(EvaluateConfig(runs=(ranker_run.folder,)), quiet())
    folder = ranker_run.evaluation("test")
    rows = pl.read_parquet(folder / "clicks.parquet")
    cases = prepared.cases("test")
    assert len(rows) == 3 * len(cases)
    assert rows.filter(pl.col("label") == 1)["item"].to_list() == cases["target"].to_list()
    users, labels = (rows[name].to_numpy().astype(np.int64) for name in ("user_idx", "label"))
    figures = click_metrics(users, labels, rows["score"].to_numpy())
    assert json.loads((folder / "report.json").read_text())["metrics"] == pytest.approx(figures)
    assert evaluation.runs["dare"]["metrics"] == pytest.approx(figures)
    first = rows.head(3)
    window = prepared.store.windows(np.array([first["user_idx"][0]]), np.array([first["position"][0]]), 6)
    items = first["item"].to_torch().long()[None]
    scores = run_ranker(ranker_run, prepared).score(Histories.from_windows(window), items)
    assert scores[0].tolist() == pytest.approx(first["score"].to_list(), rel=1e-5)


def test_floors_stand_beside_rankers_without_probabilities(ranker_run: Run) -> None:
    evaluation = evaluate(EvaluateConfig(runs=(ranker_run.folder,)), quiet())
    assert list(evaluation.floors) == ["popularity", "popularity-recent", "markov", "item-knn", "tfidf"]
    assert all(report["metrics"].keys() == {"auc", "gauc"} for report in evaluation.floors.values())
    assert evaluation.floors["markov"]["metrics"]["auc"] > 0.6, "users walk from item to item"
    assert evaluation.verdicts()[0].startswith("dare: auc 0.")
    console = Console(width=200, file=io.StringIO())
    console.print(evaluation_table(evaluation))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "clicks beside 2 popular items" in shown
    assert "calibration_error" in shown


def test_reranking_reorders_what_the_retriever_found(prepared: Prepared, ranker_run: Run, retriever_run: Run) -> None:
    """All items as candidates: the ranks are the ranker's alone, counted by hand."""
    config = EvaluateConfig(
        runs=(ranker_run.folder,), rerank=retriever_run.folder, candidates=17, cutoffs=(3,), rank_weight=math.inf
    )
    evaluation = evaluate(config, quiet())
    name = "dare over sasrec"
    assert list(evaluation.runs) == ["sasrec", name]
    kept = pl.read_parquet(ranker_run.reranking("test", "sasrec") / "cases.parquet")
    everything = np.arange(1, 18)
    model = run_ranker(ranker_run, prepared)
    log_counts = torch.from_numpy(prepared.training_events().item_counts()[1:]).log()
    asked = kept.filter(pl.col("position") >= SHORTEST)
    assert len(asked) > 10
    for user, position, target, rank in asked.select("user_idx", "position", "target", "rank").iter_rows():
        window = prepared.store.windows(np.array([user]), np.array([position]), 6)
        candidates = pl.Series(everything).to_torch().long()[None]
        scores = model.score(Histories.from_windows(window), candidates)[0] + log_counts
        assert rank == int((scores >= scores[target - 1]).sum())
    difference = evaluation.changes[name][0]
    expected = evaluation.runs[name]["metrics"]["ndcg@3"] - evaluation.runs["sasrec"]["metrics"]["ndcg@3"]
    assert (difference.metric, difference.difference) == ("ndcg@3", pytest.approx(expected))
    assert any("ndcg@3" in sentence and "sasrec" in sentence for sentence in evaluation.verdicts()[2:])


def test_what_the_retriever_did_not_find_is_not_returned(ranker_run: Run, retriever_run: Run) -> None:
    config = EvaluateConfig(
        runs=(ranker_run.folder,), rerank=retriever_run.folder, candidates=4, cutoffs=(4,), rank_weight=math.inf
    )
    evaluation = evaluate(config, quiet())
    alone = pl.read_parquet(retriever_run.evaluation("test") / "cases.parquet")["rank"]
    after = pl.read_parquet(ranker_run.reranking("test", "sasrec") / "cases.parquet")["rank"]
    assert ((after <= 4) == (alone <= 4)).all()
    rates = [report["metrics"]["hit_rate@4"] for report in evaluation.runs.values()]
    assert rates[0] == rates[1]
    assert (after != alone).any()


def test_the_validation_part_decides_how_much_a_ranker_adds(ranker_run: Run, retriever_run: Run) -> None:
    """By hand: the best of all weights on validation, and test lists by that weight."""
    config = EvaluateConfig(runs=(ranker_run.folder,), rerank=retriever_run.folder, candidates=17, cutoffs=(10,))
    figures = {}
    for weight in (*WEIGHTS, math.inf):
        there = evaluate(replace(config, part="validation", rank_weight=weight), quiet()).runs["dare over sasrec"]
        figures[weight] = there["metrics"]["ndcg@10"]
    chosen = evaluate(config, quiet()).runs["dare over sasrec"]
    assert list(chosen["validation_ndcg@10"].values()) == pytest.approx(list(figures.values()))
    best = min(weight for weight, figure in figures.items() if figure == max(figures.values()))
    assert chosen["weight"] == (None if best == math.inf else best)
    assert chosen["metrics"] == evaluate(replace(config, rank_weight=best), quiet()).runs["dare over sasrec"]["metrics"]
    kept = json.loads((ranker_run.reranking("test", "sasrec") / "report.json").read_text())
    assert kept["weight"] == chosen["weight"]
    told = "ranked alone" if best == math.inf else f"the ranker adds {best:g} times its scores"
    assert f"dare over sasrec: {told} (best on the validation part)." in evaluate(config, quiet()).verdicts()


@pytest.fixture(scope="module")
def correcting_run(prepared: Prepared, retriever_run: Run) -> Run:
    """A DARE that learns what its retriever gets wrong."""
    return fit(prepared, prepared.folder.parent / "runs" / "correcting", retriever=retriever_run.folder)


def test_a_ranker_that_corrects_a_retriever_is_watched_by_its_lists(
    prepared: Prepared, retriever_run: Run, correcting_run: Run
) -> None:
    """Weight 1 is what its negatives mean, and what validation is judged with."""
    figures = epochs(correcting_run)
    assert figures[0].keys() == {"epoch", "loss", "ndcg@10", "retriever_ndcg@10"}
    best = max(entry["ndcg@10"] for entry in figures)
    assert correcting_run.manifest["counts"]["best_validation_ndcg@10"] == best
    config = EvaluateConfig(
        runs=(correcting_run.folder,), rerank=retriever_run.folder, part="validation", cutoffs=(10,), rank_weight=1.0
    )
    reports = evaluate(config, quiet()).runs
    assert reports["correcting over sasrec"]["metrics"]["ndcg@10"] == pytest.approx(best)
    assert reports["sasrec"]["metrics"]["ndcg@10"] == pytest.approx(figures[0]["retriever_ndcg@10"])
    assert load_file(correcting_run.folder / "model.safetensors").keys() == {
        *ranker_weights(prepared, correcting_run)
    }, "no weight of the retriever among its own"


def ranker_weights(prepared: Prepared, run: Run) -> list[str]:
    """Names of what a ranker learns."""
    return list(run_ranker(run, prepared).state_dict())  # type: ignore[attr-defined]


def test_a_correcting_ranker_is_repeated_and_refitted_with_its_retriever(
    prepared: Prepared, retriever_run: Run, correcting_run: Run, tmp_path: Path
) -> None:
    again = fit(prepared, tmp_path / "again", retriever=retriever_run.folder)
    assert_same_weights(again, correcting_run)
    config = TrainConfig(
        data=prepared.folder, model="dare", out=tmp_path / "refit", refit=correcting_run.folder, tracking=False
    )
    refit = train(config, quiet())
    assert refit is not None
    assert refit.config["retriever"] == correcting_run.config["retriever"]
    judged = EvaluateConfig(runs=(refit.folder,), rerank=retriever_run.folder, candidates=17, cutoffs=(10,))
    with pytest.raises(DataError, match="refit was trained on the validation events, which can choose no weight then"):
        evaluate(judged, quiet())
    latest = trained(prepared, tmp_path / "latest", "training.epochs=1")
    with pytest.raises(ConfigError, match=r"says nothing of the lists of .*latest; name the first in its place"):
        evaluate(replace(judged, rerank=latest.folder, rank_weight=1.0), quiet())
    refitted = TrainConfig(
        data=prepared.folder, model="sasrec", out=tmp_path / "shop", refit=retriever_run.folder, tracking=False
    )
    assert train(refitted, quiet()) is not None
    judged = replace(judged, rerank=tmp_path / "shop", rank_weight=1.0)
    assert list(evaluate(judged, quiet()).runs) == ["shop", "refit over shop"]


def test_a_killed_correcting_ranker_goes_on_bit_for_bit(prepared: Prepared, retriever_run: Run, tmp_path: Path) -> None:
    """The retriever's answers are drawn again as they would have been."""
    often = "training.checkpoint_seconds=0.000001"
    whole = fit(prepared, tmp_path / "whole", often, retriever=retriever_run.folder)
    with cut_at(DARE, "loss", 5):
        fit(prepared, tmp_path / "cut", often, retriever=retriever_run.folder)
    cut = fit(prepared, tmp_path / "cut", often, retriever=retriever_run.folder)
    assert_same_weights(whole, cut)
    assert epochs(whole) == epochs(cut)


def test_validation_does_not_judge_the_weight_that_it_chose(ranker_run: Run, retriever_run: Run) -> None:
    config = EvaluateConfig(runs=(ranker_run.folder,), rerank=retriever_run.folder, part="validation")
    with pytest.raises(ConfigError, match="chooses how much a ranker adds, so it cannot judge that"):
        evaluate(config, quiet())


def test_a_retriever_that_cannot_be_corrected_is_refused(
    prepared: Prepared, ranker_run: Run, retriever_run: Run, correcting_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="train sasrec: corrects no other run; drop --retriever"):
        trained(prepared, tmp_path / "run", retriever=retriever_run.folder)
    with pytest.raises(ConfigError, match="is a 'dare' run, which answers at the end of a history alone"):
        fit(prepared, tmp_path / "run", retriever=ranker_run.folder)
    timed = trained(prepared, tmp_path / "timed", "model.time_buckets=4")
    with pytest.raises(ConfigError, match=r"reads times \(model.time_buckets\), which negatives are drawn without"):
        fit(prepared, tmp_path / "run", retriever=timed.folder)
    other = trained(prepared, tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"learned to correct .*sasrec and says nothing of the lists of .*other"):
        evaluate(EvaluateConfig(runs=(correcting_run.folder,), rerank=other.folder), quiet())
    with pytest.raises(ConfigError, match="so its clicks mean nothing without; name that run by --rerank"):
        evaluate(EvaluateConfig(runs=(correcting_run.folder,)), quiet())
    with pytest.raises(ConfigError, match="rank_weight=-1 weighs a ranker over the lists of --rerank"):
        EvaluateConfig(runs=(ranker_run.folder,), rerank=retriever_run.folder, rank_weight=-1)
    with pytest.raises(ConfigError, match=r"rank_weight=1\.0 weighs a ranker over the lists of --rerank"):
        EvaluateConfig(runs=(ranker_run.folder,), rank_weight=1.0)


def test_commands_of_rankers(ranker_run: Run, retriever_run: Run) -> None:
    code, output, error = run_recsys("evaluate", ranker_run.folder, "--json")
    assert code == 0, error
    assert json.loads(output)["protocol"] == "clicks"
    code, output, error = run_recsys(
        "evaluate", ranker_run.folder, "--rerank", retriever_run.folder, "--candidates", "20", "--json"
    )
    assert code == 0, error
    assert json.loads(output)["retriever"] == "sasrec"
    reranked = ranker_run.reranking("test", "sasrec")
    code, output, error = run_recsys("compare", retriever_run.folder, reranked, "--json")
    assert code == 0, error


def test_what_rankers_cannot_do_is_refused(
    prepared: Prepared, ranker_run: Run, retriever_run: Run, tmp_path: Path
) -> None:
    config = EvaluateConfig(runs=(ranker_run.folder, retriever_run.folder))
    with pytest.raises(ConfigError, match="rankers are judged by clicks and the other runs by full ranking"):
        evaluate(config, quiet())
    with pytest.raises(ConfigError, match="holds 'sasrec', which is no ranker"):
        evaluate(replace(config, runs=(retriever_run.folder,), rerank=retriever_run.folder), quiet())
    with pytest.raises(ConfigError, match="candidates=9 fill no list of 20 items"):
        replace(config, candidates=9, rerank=retriever_run.folder)
    assert replace(config, cutoffs=(10, 1000)).num_candidates == 500, "lists of any length where nothing is re-ranked"
    with pytest.raises(ConfigError, match="candidates=9 are re-ranked with --rerank alone; drop one or add it"):
        replace(config, candidates=9)
    for other in ({"seen": "keep"}, {"cutoffs": (5,)}, {"segments": True}):
        with pytest.raises(ConfigError, match="so --seen, --cutoffs and --segments have no meaning; drop them"):
            evaluate(replace(config, runs=(ranker_run.folder,), **other), quiet())
    thinned = {"settings": ("training.event_dropout=0.1",), "tracking": False}
    with pytest.raises(ConfigError, match=r"event_dropout hides events, and their items could be drawn as negatives"):
        make_plan(TrainConfig(data=prepared.folder, model="dare", out=tmp_path / "run", **thinned))
    with pytest.raises(ConfigError, match="window_stride=3 needs a model that can learn from a part of a window"):
        make_plan(
            replace(
                TrainConfig(data=prepared.folder, model="dare", out=tmp_path), settings=("training.window_stride=3",)
            )
        )
    with pytest.raises(ConfigError, match="sweep: hierarchical learns from a teacher, which trials are not given"):
        make_search(SweepConfig(data=prepared.folder, model="hierarchical", out=tmp_path / "sweep"))
    with pytest.raises(ConfigError, match="holds 'dare', which ranks what another model has found"):
        run_scorer(ranker_run, prepared)
    with pytest.raises(ConfigError, match="holds 'dare', which has no vectors to search by"):
        export(ExportConfig(run=ranker_run.folder, out=tmp_path / "bundle"))
    with pytest.raises(ConfigError, match="sweep: dare is a ranker"):
        make_search(SweepConfig(data=prepared.folder, model="dare", out=tmp_path / "sweep"))
