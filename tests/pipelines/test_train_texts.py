"""Items made of text, from the item table to the bundle."""

from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from builders import random_rows, write_dataset
from safetensors.torch import load_file
from training import assert_same_weights, trained

from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.loading import run_scorer
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.batches import Histories
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared
from recsys.runs import Run
from recsys.text_vectors import SentenceEncoder

WORDS = ("red shoe", "blue shoe", "green hat", "old book", "new book")
TEXTS = ("model.items=morec", "training.learning_rate=0.02")
UNISREC = ("model.items=unisrec", "model.cosine=true", "model.temperature=0.2", "model.input_norm=true")
GATED = ("model.items=gated", "model.text_components=6", "training.learning_rate=0.02")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Items with a title, but for one."""
    folder = tmp_path_factory.mktemp("texts")
    rows = random_rows(1, 30, 25, 600)
    names = sorted({item for _, item, _ in rows})
    titles = [None if number == 3 else f"{WORDS[number % 5]} no {number}" for number in range(len(names))]
    dataset = write_dataset(folder / "dataset", rows, pl.DataFrame({"item_id": names, "title": titles}))
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared"))


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_TEXT_VECTORS", str(tmp_path / "vectors.sqlite"))


def test_a_run_holds_the_vectors_of_its_items_and_a_second_one_encodes_nothing(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(prepared, tmp_path / "first", *TEXTS)
    features = load_file(run.folder / "model.safetensors")["items.features"]
    titles = prepared.items["title"].fill_null("").to_list()
    expected = SentenceEncoder().encode(titles)
    expected[[number for number, title in enumerate(titles) if not title]] = 0
    np.testing.assert_allclose(features[1:].numpy(), expected, atol=1e-6)
    assert not features[0].any()

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(SentenceEncoder, "encode", refuse)
    again = trained(prepared, tmp_path / "second", *TEXTS)
    assert torch.equal(load_file(again.folder / "model.safetensors")["items.features"], features)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("sasrec", UNISREC),
        ("rearec", UNISREC),
        ("sasrec", GATED),
        ("bert4rec", GATED),
        ("bert4rec", ("model.items=initialised",)),
        ("lite-llm4rec", ("model.text_components=6",)),
    ],
)
def test_its_bundle_answers_as_the_evaluator(
    prepared: Prepared, tmp_path: Path, model: str, settings: tuple[str, ...]
) -> None:
    run = trained(prepared, tmp_path / "run", *settings, model=model)
    evaluate(EvaluateConfig(runs=(run.folder,)), Reporter(quiet=True))
    bundle = export(ExportConfig(run=run.folder, out=tmp_path / "bundle"))
    users = np.arange(prepared.store.num_users)
    histories = Histories.from_windows(prepared.store.windows(users, prepared.store.lengths, bundle.card.max_len))
    session = onnxruntime.InferenceSession(str(bundle.encoder), providers=["CPUExecutionProvider"])
    given = {"items": histories.items.numpy(), "lengths": histories.lengths.numpy()}
    (vectors,) = session.run(["vectors"], given)
    _, scores = bundle.index.search(vectors, 20)
    expected = run_scorer(run, prepared).scores(histories).numpy()
    np.testing.assert_allclose(scores, -np.sort(-expected[:, 1:], axis=1)[:, :20], atol=1e-4)


def test_a_gated_run_holds_counts_and_whitening_of_its_training_events(prepared: Prepared, tmp_path: Path) -> None:
    weights = load_file(trained(prepared, tmp_path / "run", *GATED).folder / "model.safetensors")
    counts = prepared.training_events().item_counts()
    assert weights["items.counts"].tolist() == counts.tolist()
    titles = prepared.items["title"].fill_null("").to_list()
    vectors = SentenceEncoder().encode(titles)
    seen = np.array([bool(title) for title in titles]) & (counts[1:] > 0)
    assert not seen.all()
    np.testing.assert_allclose(weights["items.texts.whitening.mean"], vectors[seen].mean(axis=0), atol=1e-5)
    features = weights["items.texts.features"][1:][torch.from_numpy(seen)]
    np.testing.assert_allclose(features.T @ features / seen.sum(), np.eye(6) / 6, atol=1e-3)


@pytest.mark.parametrize("settings", [GATED, ("model.items=initialised", "training.learning_rate=0.02")])
def test_a_run_that_begins_with_another_goes_on_from_its_items(
    prepared: Prepared, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    first = trained(prepared, tmp_path / "first", *settings)
    second = trained(prepared, tmp_path / "second", *settings, "training.epochs=0", init=first.folder)
    assert_same_weights(first, second)


def test_a_run_that_begins_with_another_has_its_components(prepared: Prepared, tmp_path: Path) -> None:
    first = trained(prepared, tmp_path / "first", *GATED)
    with pytest.raises(ConfigError, match=r"model\.text_components is 6 there and 5 here"):
        trained(prepared, tmp_path / "second", *GATED, "model.text_components=5", init=first.folder)


def test_more_components_than_texts_are_refused_before_training(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"300 components are wanted of \d+ texts of items with training events"):
        trained(prepared, tmp_path / "run", *GATED, "model.text_components=300")


def test_another_width_than_the_encoders_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.text_width=7, and the encoder's vectors have 384 numbers; set model"
    ):
        trained(prepared, tmp_path / "run", *TEXTS, "model.text_width=7")


def test_a_run_says_which_encoder_it_read_and_resumes_with_no_other(prepared: Prepared, tmp_path: Path) -> None:
    run = trained(prepared, tmp_path / "run", *TEXTS)
    assert run.config["text_encoder"] == SentenceEncoder().identity
    refitted = trained_again(prepared, run.folder, tmp_path / "refit")
    assert refitted.config["text_encoder"] == SentenceEncoder().identity


def trained_again(prepared: Prepared, folder: Path, out: Path) -> Run:
    """The run refitted."""
    config = TrainConfig(data=prepared.folder, model="sasrec", out=out, refit=folder, tracking=False)
    run = train(config, Reporter(quiet=True))
    assert run is not None
    return run


def test_items_without_text_cannot_be_made_of_it(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_rows(1, 30, 25, 600))
    prepared = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared"))
    with pytest.raises(DataError, match=r"has no item text for model\.items=morec to be made of; set model\.items=tab"):
        trained(prepared, tmp_path / "run", *TEXTS)
    similar = TrainConfig(data=prepared.folder, model="text-similarity", out=tmp_path / "similar", tracking=False)
    with pytest.raises(DataError, match="has no item text; ingest an item table with --items"):
        train(similar, Reporter(quiet=True))
    assert not list(tmp_path.glob("*similar*")), "nothing is written before settings are checked"
