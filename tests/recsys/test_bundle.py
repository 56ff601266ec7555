"""A bundle that differs from its manifest is refused with the file named; its encoder equals torch."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from builders import write_bundle

from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.rearec import ReaRec, ReaRecConfig
from models.sasrec import SASRec, SASRecConfig
from recsys.batches import Histories
from recsys.bundle import BUNDLE_FILES, STEP, ModelCard, open_bundle
from recsys.catalog import Catalog
from recsys.errors import BundleError
from recsys.export import check_encoder, export_encoder, export_step, outputs_of, step_outputs_of, write_bundle_files
from recsys.steps import MANIFEST, writing_step

NUM_ITEMS = 37
MAX_LEN = 9


@pytest.fixture(scope="module")
def model() -> SASRec:
    """Random weights, large enough for vectors that differ."""
    torch.manual_seed(1)
    model = SASRec(SASRecConfig(num_items=NUM_ITEMS, max_len=MAX_LEN, embedding_dim=8, num_blocks=1, num_heads=2))
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * torch.randn_like(weights)
    return model.eval()


@pytest.fixture(scope="module")
def exported(model: SASRec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as `recsys export` writes it."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    catalog = Catalog.from_ids(f"item-{row:02}" for row in range(NUM_ITEMS)).without(["item-05"])
    items = pl.DataFrame({"item_id": catalog.item_ids, "title": [f"Title {row}" for row in range(NUM_ITEMS)]})
    card = ModelCard(
        name="sasrec", config=asdict(model.config), max_len=MAX_LEN, seen="keep", no_history="popularity, all time"
    )
    no_history = np.arange(NUM_ITEMS + 1, dtype=np.float32)
    with writing_step("export", folder, config={}) as step:
        write_bundle_files(step.folder, model, card, catalog, items, no_history, {"test": {"ndcg@10": 0.5}})
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle to damage."""
    return write_bundle(tmp_path / "bundle")


def histories(num_items: int, max_len: int) -> Histories:
    """Histories of all lengths, right-padded; lengths as the store gives them."""
    rng = np.random.default_rng(3)
    lengths = np.array([1, max_len, *range(1, max_len + 1)], dtype=np.int32)
    items = rng.integers(1, num_items + 1, (len(lengths), max_len))
    items[np.arange(max_len) >= lengths[:, None]] = 0
    return Histories(torch.from_numpy(items), torch.zeros(items.shape, dtype=torch.int64), torch.from_numpy(lengths))


def test_what_was_written_is_what_is_read(exported: Path, model: SASRec) -> None:
    bundle = open_bundle(exported)
    assert sorted(path.name for path in exported.iterdir()) == sorted([*BUNDLE_FILES, STEP, MANIFEST])
    assert bundle.card == ModelCard(
        name="sasrec", config=asdict(model.config), max_len=MAX_LEN, seen="keep", no_history="popularity, all time"
    )
    assert bundle.catalog.retired == {"item-05"}
    assert bundle.items["title"].to_list() == [f"Title {row}" for row in range(NUM_ITEMS)]
    assert bundle.no_history.dtype == np.float32
    assert bundle.no_history.tolist() == list(range(NUM_ITEMS + 1))
    assert bundle.metrics == {"test": {"ndcg@10": 0.5}}
    rows = np.arange(1, NUM_ITEMS + 1)
    np.testing.assert_array_equal(bundle.index.vectors(rows), model.item_vectors()[1:].detach().numpy())


def test_the_encoder_equals_torch_at_every_length(exported: Path, model: SASRec) -> None:
    session = onnxruntime.InferenceSession(str(open_bundle(exported).encoder), providers=["CPUExecutionProvider"])
    batch = histories(NUM_ITEMS, MAX_LEN)
    for length in range(1, MAX_LEN + 1):
        rows = batch.lengths <= length
        items, lengths = batch.items[rows, :length], batch.lengths[rows]
        (vectors,) = session.run(["vectors"], {"items": items.numpy(), "lengths": lengths.numpy()})
        with torch.no_grad():
            expected = model.encode(Histories(items, torch.zeros_like(items), lengths))
        np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)
    assert check_encoder(model, exported, batch) < 1e-5


def test_search_by_the_encoders_vectors_is_the_models_own_ranking(exported: Path, model: SASRec) -> None:
    bundle, batch = open_bundle(exported), histories(NUM_ITEMS, MAX_LEN)
    session = onnxruntime.InferenceSession(str(bundle.encoder), providers=["CPUExecutionProvider"])
    (vectors,) = session.run(["vectors"], {"items": batch.items.numpy(), "lengths": batch.lengths.numpy()})
    rows, scores = bundle.index.search(vectors, NUM_ITEMS)
    with torch.no_grad():
        own = (model.encode(batch) @ model.item_vectors().T)[:, 1:].sort(dim=1, descending=True)
    np.testing.assert_allclose(scores, own.values.numpy(), atol=1e-4)
    assert (rows == own.indices.numpy() + 1).mean() > 0.99


def test_an_encoder_that_differs_from_torch_is_refused(exported: Path) -> None:
    torch.manual_seed(2)
    other = SASRec(SASRecConfig(num_items=NUM_ITEMS, max_len=MAX_LEN, embedding_dim=8, num_blocks=1, num_heads=2))
    with pytest.raises(BundleError, match=r"encoder\.onnx: the ONNX graph differs from torch by .* on 11 histories"):
        check_encoder(other.eval(), exported, histories(NUM_ITEMS, MAX_LEN))


def test_a_step_that_differs_from_torch_is_refused(exported: Path, model: SASRec, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "bundle")
    other = SASRec(model.config)
    export_step(other.eval(), MAX_LEN, tmp_path / "bundle" / "step.onnx")
    with pytest.raises(BundleError, match=r"step\.onnx: the ONNX graph differs from torch by .* on 1 histories"):
        check_encoder(model, tmp_path / "bundle", histories(NUM_ITEMS, MAX_LEN))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SASRec, {"positions": "rotary", "norm": "post"}),
        (SASRec, {"positions": "none", "recency": 0.25, "sink": True, "norm": "both", "max_len": 2}),
        (ReaRec, {"cosine": True, "temperature": 0.1, "num_blocks": 1, "gated": True, "activation": "swiglu"}),
    ],
    ids=["rotary", "sink", "reasoning"],
)
def test_events_one_by_one_are_the_whole_history(kind: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """From one event to a full window, two users at a time; memory is what the graphs themselves gave."""
    torch.manual_seed(2)
    config = {"num_items": NUM_ITEMS, "max_len": MAX_LEN, "embedding_dim": 8, "num_heads": 2} | settings
    model = kind((SASRecConfig if kind is SASRec else ReaRecConfig)(**config)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.2 * torch.randn_like(weights)
    export_encoder(model, model.max_len, tmp_path / "encoder.onnx")
    export_step(model, model.max_len, tmp_path / "step.onnx")
    encoder, step = (onnxruntime.InferenceSession(str(tmp_path / name)) for name in ("encoder.onnx", "step.onnx"))
    items = torch.randint(1, NUM_ITEMS + 1, (2, model.max_len))
    feed = {"items": items[:, :1].numpy(), "lengths": np.ones(2, dtype=np.int32)}
    keys, values = encoder.run(["keys", "values"], {entry.name: feed[entry.name] for entry in encoder.get_inputs()})
    for place in range(1, model.max_len):
        feed = {"item": items[:, place].numpy(), "keys": keys, "values": values}
        found, new_keys, new_values = step.run(step_outputs_of(model)[-3:], feed)
        keys, values = np.concatenate([keys, new_keys], axis=3), np.concatenate([values, new_values], axis=3)
        history = items[:, : place + 1]
        lengths = torch.full((2,), place + 1, dtype=torch.int32)
        whole = Histories(history, torch.zeros_like(history), lengths)
        with torch.no_grad():
            expected = model.answers(whole) if kind is ReaRec else model.encode(whole)
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def test_a_model_that_masks_its_last_place_is_exported_too(tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = BERT4RecConfig(num_items=NUM_ITEMS, max_len=6, embedding_dim=8, num_blocks=1, num_heads=2)
    model = BERT4Rec(config).eval()
    export_encoder(model, model.max_len, tmp_path / "encoder.onnx")
    assert check_encoder(model, tmp_path, histories(NUM_ITEMS, model.max_len)) < 1e-5
    assert outputs_of(model) == ["vectors"]


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_one_altered_byte_is_found(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: was altered after export \(SHA-256 differs"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"bundle: lacks {name}; export the run again"):
        open_bundle(bundle)


def test_a_file_that_neither_folder_nor_manifest_knows_is_missed(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["files"]["index.faiss"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    (bundle / "index.faiss").unlink()
    with pytest.raises(BundleError, match=r"lacks index\.faiss"):
        open_bundle(bundle)


def test_a_manifest_that_lists_nothing_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST).write_text('{"step": "export"}')
    with pytest.raises(BundleError, match="which its manifest does not list"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["weights.pkl", "sub/notes.txt"])
def test_a_file_beside_the_listed_ones_is_named(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("added")
    with pytest.raises(BundleError, match=f"holds {name}, which its manifest does not list"):
        open_bundle(bundle)


def test_the_folder_of_another_step_is_refused(tmp_path: Path) -> None:
    with writing_step("train", tmp_path / "run", config={}):
        pass
    with pytest.raises(BundleError, match=r"was made by `recsys train`, but the output of `recsys export` is needed"):
        open_bundle(tmp_path / "run")
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        open_bundle(tmp_path / "nowhere")


def test_a_bundle_of_another_format_is_refused(bundle: Path, tmp_path: Path) -> None:
    card = json.loads((bundle / "model.json").read_text()) | {"bundle_format": 3, "said_by_a_newer_one": True}
    with writing_step("export", tmp_path / "newer", config={}) as step:
        shutil.copytree(bundle, step.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        (step.folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="newer: bundle format 3, but this version reads 2; export the run again"):
        open_bundle(tmp_path / "newer")


def test_the_version_names_the_content(tmp_path: Path) -> None:
    first, other = (open_bundle(write_bundle(tmp_path / name, seed)) for seed, name in enumerate(("a", "b")))
    shutil.copytree(first.folder, tmp_path / "copy")
    assert open_bundle(tmp_path / "copy").version == first.version != other.version
