"""From a run to a bundle that answers as the evaluator does."""

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import pytest
import torch
from builders import random_rows, write_dataset

from pipelines import export as export_module
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.loading import real_histories, run_model, run_scorer
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.approximate import IndexChoice
from recsys.batches import Histories
from recsys.bundle import Bundle, open_bundle
from recsys.errors import BundleError, ConfigError, DataError, GateError
from recsys.prepared import Prepared
from recsys.runs import Run
from serving.queries import Query
from serving.service import Service
from serving.settings import Settings
from serving.stores import Stores

SMALL = (
    *("training.epochs=1", "training.batch_size=8"),
    *("model.max_len=6", "model.embedding_dim=8", "model.num_blocks=1", "model.ffn_dim=8"),
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Histories of a few to some forty events."""
    folder = tmp_path_factory.mktemp("export")
    dataset = write_dataset(folder / "dataset", random_rows(1, 30, 25, 700))
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared"))


def trained(prepared: Prepared, model: str, *settings: str, out: Path | None = None) -> Run:
    """A run on the data above."""
    folder = out or prepared.folder.parent / model
    config = TrainConfig(data=prepared.folder, model=model, out=folder, settings=settings, tracking=False)
    run = train(config, Reporter(quiet=True))
    assert run is not None
    return run


@pytest.fixture(scope="module")
def run(prepared: Prepared) -> Run:
    """A SASRec of one epoch, evaluated."""
    run = trained(prepared, "sasrec", *SMALL)
    evaluate(EvaluateConfig(runs=(run.folder,)), Reporter(quiet=True))
    return run


@pytest.fixture(scope="module")
def bundle(run: Run) -> Bundle:
    """What `recsys export` writes."""
    return export(ExportConfig(run=run.folder, out=run.folder.parent / "bundle"))


def test_the_bundle_holds_the_runs_own_settings_data_and_figures(bundle: Bundle, run: Run, prepared: Prepared) -> None:
    assert (bundle.card.name, bundle.card.max_len, bundle.card.seen) == ("sasrec", 6, prepared.seen)
    assert bundle.card.config == run.config["model"]
    assert bundle.card.config["num_items"] == prepared.catalog.num_items == bundle.index.num_items
    assert bundle.catalog.rows == prepared.catalog.rows
    assert bundle.items.equals(prepared.items)
    assert bundle.metrics["test"] == json.loads((run.evaluation("test") / "report.json").read_text())
    assert bundle.metrics["validation"] == {"ndcg@10": run.manifest["counts"]["best_validation_ndcg@10"]}
    assert bundle.manifest["inputs"][0]["path"] == str(run.folder.resolve())
    assert bundle.manifest["counts"]["encoder_difference"] < 1e-5


def test_without_history_the_bundle_and_the_evaluator_score_by_recent_popularity(
    bundle: Bundle, run: Run, prepared: Prepared
) -> None:
    empty = torch.zeros(1, 1, dtype=torch.int64)
    scores = run_scorer(run, prepared).scores(Histories(empty, empty, torch.zeros(1, dtype=torch.int32)))[0]
    np.testing.assert_array_equal(bundle.no_history, scores.numpy())
    assert bundle.card.no_history == "popularity, latest 10% of events"
    events = prepared.training_events()
    newest = np.argsort(events.timestamps)[-len(events.items) // 10 :]
    recent, all_time = Counter(events.items[newest].tolist()), Counter(events.items.tolist())
    by_hand = sorted(recent, key=lambda row: (-recent[row], -all_time[row]))
    best = np.argsort(-bundle.no_history, kind="stable")[: len(by_hand)]
    assert [(recent[row], all_time[row]) for row in best] == [(recent[row], all_time[row]) for row in by_hand]


def test_encoder_and_index_rank_as_the_evaluator(bundle: Bundle, run: Run, prepared: Prepared) -> None:
    users = np.arange(prepared.store.num_users)
    histories = Histories.from_windows(prepared.store.windows(users, prepared.store.lengths, bundle.card.max_len))
    expected = run_scorer(run, prepared).scores(histories).numpy()
    session = onnxruntime.InferenceSession(str(bundle.encoder), providers=["CPUExecutionProvider"])
    (vectors,) = session.run(["vectors"], {"items": histories.items.numpy(), "lengths": histories.lengths.numpy()})
    rows, scores = bundle.index.search(vectors, 20)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, axis=1), atol=1e-5)
    np.testing.assert_allclose(scores, -np.sort(-expected[:, 1:], axis=1)[:, :20], atol=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        ("model.norm=both", "model.positions=none", "model.recency=0.25", "model.sink=true"),
        ("model.norm=pre", "model.gated=true", "model.activation=swiglu", "model.positions=rotary"),
    ],
    ids=["sink", "LiGR"],
)
@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
def test_other_layouts_answer_as_the_evaluator_too(
    prepared: Prepared, tmp_path: Path, model: str, layout: tuple[str, ...]
) -> None:
    """Histories of every length, on the graph's own runtime."""
    run = trained(prepared, model, *SMALL, *layout, "training.learning_rate=0.03", out=tmp_path / "run")
    evaluate(EvaluateConfig(runs=(run.folder,)), Reporter(quiet=True))
    bundle = export(ExportConfig(run=run.folder, out=tmp_path / "bundle"))
    test_encoder_and_index_rank_as_the_evaluator(bundle, run, prepared)


@pytest.mark.parametrize(("backbone", "most"), [("sasrec", 2), ("bert4rec", 1)])
def test_a_model_that_reasons_answers_after_every_step(
    prepared: Prepared, tmp_path: Path, backbone: str, most: int
) -> None:
    """The loop is part of the graph."""
    settings = (f"model.backbone={backbone}", f"model.reasoning.steps={most}", "training.learning_rate=0.03")
    settings += ("model.input_norm=false",) if backbone == "bert4rec" else ()
    run = trained(prepared, "rearec", *SMALL, *settings, out=tmp_path / "run")
    evaluate(EvaluateConfig(runs=(run.folder,)), Reporter(quiet=True))
    bundle = export(ExportConfig(run=run.folder, out=tmp_path / "bundle"))
    test_encoder_and_index_rank_as_the_evaluator(bundle, run, prepared)
    _, model = run_model(run, prepared)
    histories = real_histories(prepared, bundle.card.max_len)
    session = onnxruntime.InferenceSession(str(bundle.encoder), providers=["CPUExecutionProvider"])
    (answers,) = session.run(["answers"], {"items": histories.items.numpy(), "lengths": histories.lengths.numpy()})
    with torch.no_grad():
        for steps in range(most + 1):
            np.testing.assert_allclose(answers[steps], model.encode(histories, steps).numpy(), atol=1e-5)


def test_the_histories_that_are_checked_are_of_all_lengths(prepared: Prepared) -> None:
    checked = real_histories(prepared, 1000)
    assert sorted(checked.lengths.tolist()) == sorted(prepared.store.lengths.tolist())
    last = checked.items[torch.arange(30), checked.lengths.long() - 1]
    assert sorted(last.tolist()) == sorted(prepared.store.item_idx[prepared.store.offsets[1:] - 1].tolist())


def test_a_counting_model_has_nothing_to_search_by(prepared: Prepared, tmp_path: Path) -> None:
    run = trained(prepared, "markov")
    with pytest.raises(ConfigError, match="holds 'markov', which has no vectors to search by; export a run of a retri"):
        export(ExportConfig(run=run.folder, out=tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_differs_leaves_no_bundle(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(*_: object) -> float:
        raise BundleError("differs")

    monkeypatch.setattr(export_module, "check_encoder", differ)
    with pytest.raises(BundleError, match="differs"):
        export(ExportConfig(run=run.folder, out=tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


def test_only_the_output_of_train_is_exported(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was made by `recsys prepare`, but the output of `recsys train` is needed"):
        export(ExportConfig(run=prepared.folder, out=tmp_path / "bundle"))


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_beside_the_exact_one_is_measured_listed_and_served(
    bundle: Bundle, run: Run, tmp_path: Path, kind: Literal["hnsw", "ivf"]
) -> None:
    choice = IndexChoice(kind=kind)
    other = export(ExportConfig(run=run.folder, out=tmp_path / "bundle", index=choice))
    assert bundle.manifest["counts"]["index"] == {"kind": "flat", "recall": 1.0}
    assert bundle.index.approximate is None
    measured = other.manifest["counts"]["index"]
    assert (measured["kind"], measured["queries"]) == (kind, 30)
    assert measured["recall"] >= 0.99
    assert other.index.approximate is not None
    assert "approximate.faiss" in other.manifest["files"]
    settings, query = Settings(state=tmp_path / "state.sqlite"), Query(history=other.catalog.item_ids[:3].to_list())
    with closing(Stores.open(settings)) as stores:
        found = Service.open(other.folder, settings, stores).recommender.recommend(query)
        exact = Service.open(bundle.folder, settings, stores).recommender.recommend(query)
    np.testing.assert_array_equal(found.rows, exact.rows)


def test_from_a_size_on_the_index_is_chosen(run: Run, tmp_path: Path) -> None:
    choice = IndexChoice(exact_up_to=24)
    counts = export(ExportConfig(run=run.folder, out=tmp_path / "bundle", index=choice)).manifest["counts"]
    assert [one["kind"] for one in counts["index"]["tried"]] == ["ivf", "hnsw", "ivfpq"]


def test_an_index_that_is_not_good_enough_leaves_no_bundle(run: Run, tmp_path: Path) -> None:
    choice = IndexChoice(kind="hnsw", least_recall=1.01)
    with pytest.raises(GateError, match="no index reaches") as error:
        export(ExportConfig(run=run.folder, out=tmp_path / "bundle", index=choice))
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_an_altered_bundle_does_not_open(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in bundle.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert open_bundle(copy).version == bundle.version
    (copy / "no_history.npy").write_bytes((bundle.folder / "no_history.npy").read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"no_history\.npy: was altered after export"):
        open_bundle(copy)


def test_figures_of_another_rule_than_the_service_follows_stay_out(prepared: Prepared, tmp_path: Path) -> None:
    other = trained(prepared, "sasrec", *SMALL, out=tmp_path / "other")
    rule = "keep" if prepared.seen == "exclude" else "exclude"
    evaluate(EvaluateConfig(runs=(other.folder,), seen=rule), Reporter(quiet=True))
    assert "test" not in export(ExportConfig(run=other.folder, out=tmp_path / "without")).metrics
    evaluate(EvaluateConfig(runs=(other.folder,)), Reporter(quiet=True))
    assert "test" in export(ExportConfig(run=other.folder, out=tmp_path / "with")).metrics
