"""Lite-LLM4Rec from the command's settings to what a run holds, with a tiny item LLM that is trained."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from builders import random_rows, write_dataset
from lite import WORDS
from safetensors.torch import load_file
from tiny import tiny_bert
from training import assert_same_weights, cut_at, epochs, trained

from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.loading import run_model, run_scorer
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from recsys.batches import Histories
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared
from recsys.training import Trainer

MODEL = "lite-llm4rec"
TRAINED = ("model.text_width=12", "model.text_components=4", "training.averaging=0", "training.precision=fp32")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Items with a title, but for one."""
    folder = tmp_path_factory.mktemp("lite")
    rows = random_rows(1, 30, 25, 600)
    names = sorted({item for _, item, _ in rows})
    titles = [None if number == 3 else f"w{number % 12} w{number % 7}" for number in range(len(names))]
    dataset = write_dataset(folder / "dataset", rows, pl.DataFrame({"item_id": names, "title": titles}))
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared"))


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_TEXT_VECTORS", str(tmp_path / "vectors.sqlite"))


@pytest.fixture
def settings(tmp_path: Path) -> tuple[str, ...]:
    """A random BERT as item LLM, adapted."""
    encoder = tiny_bert(tmp_path / "encoder", WORDS)
    return (*TRAINED, f"model.text_encoder={encoder}", "model.item_llm=lora", "model.lora_rank=2")


def test_a_run_that_trains_its_item_llm_keeps_vectors_of_the_weights_beside_them(
    prepared: Prepared, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    run = trained(prepared, tmp_path / "run", *settings, model=MODEL)
    _, model = run_model(run, prepared)
    kept = model.texts.features.clone()
    model.refresh_items()
    torch.testing.assert_close(model.texts.features, kept, rtol=0, atol=1e-5)
    frozen = trained(prepared, tmp_path / "frozen", *settings, "model.item_llm=frozen", model=MODEL)
    features = load_file(frozen.folder / "model.safetensors")["items.texts.features"]
    assert (features - kept).abs().max() > 1e-3, "the item LLM has learned"
    evaluate(EvaluateConfig(runs=(run.folder,)), Reporter(quiet=True))
    bundle = export(ExportConfig(run=run.folder, out=tmp_path / "bundle"))
    users = np.arange(prepared.store.num_users)
    histories = Histories.from_windows(prepared.store.windows(users, prepared.store.lengths, bundle.card.max_len))
    session = onnxruntime.InferenceSession(str(bundle.encoder), providers=["CPUExecutionProvider"])
    assert {entry.name for entry in session.get_inputs()} == {"items", "lengths"}, "no text in a request"
    given = {"items": histories.items.numpy(), "lengths": histories.lengths.numpy()}
    (vectors,) = session.run(["vectors"], given)
    _, scores = bundle.index.search(vectors, 20)
    expected = run_scorer(run, prepared).scores(histories).numpy()
    np.testing.assert_allclose(scores, -np.sort(-expected[:, 1:], axis=1)[:, :20], atol=1e-4)


def test_a_run_that_trains_its_item_llm_goes_on_after_a_kill(
    prepared: Prepared, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    whole = trained(prepared, tmp_path / "whole", *settings, model=MODEL)
    with cut_at(Trainer, "step", 7):
        trained(prepared, tmp_path / "cut", *settings, model=MODEL)
    again = trained(prepared, tmp_path / "cut", *settings, model=MODEL)
    assert_same_weights(whole, again)
    assert epochs(whole) == epochs(again)


def test_an_average_of_weights_would_have_no_item_vectors(
    prepared: Prepared, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=r"training\.averaging=0\.9 averages weights but not the item matrix"):
        trained(prepared, tmp_path / "run", *settings, "training.averaging=0.9", model=MODEL)


def test_a_pretrained_backbone_is_trained_from_its_folder(
    prepared: Prepared, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    backbone = tiny_bert(tmp_path / "backbone", WORDS)
    given = (*settings, f"model.backbone={backbone}", "model.embedding_dim=12", "model.backbone_lora=true")
    run = trained(prepared, tmp_path / "run", *given, model=MODEL)
    stored = load_file(run.folder / "model.safetensors")
    theirs = load_file(backbone / "model.safetensors")["bert.encoder.layer.0.attention.self.query.weight"]
    (name,) = (name for name in stored if name.startswith("layers.") and name.endswith("query.base_layer.weight"))
    assert torch.equal(stored[name], theirs), "adapters alone are trained"
    assert any("lora_B" in name and weight.any() for name, weight in stored.items())
    assert json.loads((run.folder / "manifest.json").read_text(encoding="utf-8"))["counts"]["epochs"] == 3


def test_items_without_any_text_are_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_rows(1, 30, 25, 600))
    prepared = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared"))
    with pytest.raises(DataError, match="has no item text; ingest an item table with --items"):
        trained(prepared, tmp_path / "run", model=MODEL)


def test_a_model_behind_an_address_is_not_trained(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"item_llm=lora trains the item LLM, and 'endpoint:e5' is read over HTTP"):
        trained(
            prepared,
            tmp_path / "run",
            *("model.text_encoder=endpoint:e5", "model.item_llm=lora", "training.averaging=0"),
            model=MODEL,
        )
