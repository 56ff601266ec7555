"""`recsys train --init RUN` where the catalogue has grown since."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from builders import random_rows, write_dataset
from safetensors.torch import load_file
from shops import COLOURS, THINGS, shop_encoder
from torch.testing import assert_close
from training import trained

from models.registry import MODELS, model_config, preset
from pipelines.prepare import PrepareConfig, prepare
from pipelines.warm_start import item_weights
from recsys.errors import DataError
from recsys.new_rows import rows_from_texts
from recsys.prepared import Prepared
from recsys.runs import WEIGHTS, Run
from recsys.text_vectors import SentenceEncoder

KNOWN, ALL = 20, 27
ROWS = random_rows(0, 40, ALL, 900)
NAMES = sorted({item for _, item, _ in ROWS})
LATE = set(NAMES[KNOWN - 4 :: 2])
"""Items that the first log does not have; rows of a catalogue are in order of first appearance, then of ids."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shop")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Path:
    return shop_encoder(folder / "encoder")


def described(names: list[str]) -> pl.DataFrame:
    """The last item has no title."""
    titles = [f"{COLOURS[number % 5]} {THINGS[number % 7]}" for number in range(ALL)]
    table = pl.DataFrame({"item_id": NAMES, "title": [*titles[:-1], None]})
    return table.filter(pl.col("item_id").is_in(names))


@pytest.fixture(scope="module")
def before(folder: Path) -> Prepared:
    rows = [row for row in ROWS if row[1] not in LATE]
    dataset = write_dataset(folder / "first", rows, described([name for name in NAMES if name not in LATE]))
    return prepare(PrepareConfig(dataset=dataset, out=folder / "before"))


@pytest.fixture(scope="module")
def after(folder: Path, before: Prepared) -> Prepared:
    dataset = write_dataset(folder / "second", ROWS, described(NAMES))
    return prepare(PrepareConfig(dataset=dataset, out=folder / "after", extend=before.folder))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / WEIGHTS)


def new_rows(after: Prepared) -> list[int]:
    return [row for name, row in after.catalog.rows.items() if name in LATE]


@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
def test_rows_of_new_items_follow_from_their_texts(
    before: Prepared, after: Prepared, encoder: Path, tmp_path: Path, model: str
) -> None:
    settings = (f"model.text_encoder={encoder}",)
    run = trained(before, tmp_path / "first", *settings, model=model)
    begun = trained(after, tmp_path / "second", *settings, "training.epochs=0", model=model, init=run.folder)
    old, new = weights(run)["items.weight"], weights(begun)["items.weight"]
    kept = before.catalog.num_rows
    assert torch.equal(new[:kept], old[:kept])
    assert torch.equal(new[after.catalog.num_rows :], old[kept:])  # BERT4Rec's mask stays behind the items
    texts = dict(zip(after.items["item_id"], after.items["title"], strict=True))
    read = SentenceEncoder(str(encoder))
    known = torch.from_numpy(read.encode([texts[name] for name in before.catalog.item_ids]))
    for name in LATE:
        if texts[name] is None:
            expected = old[1:kept].mean(dim=0)
        else:
            expected = rows_from_texts(known, old[1:kept], torch.from_numpy(read.encode([texts[name]])))[0]
        assert_close(new[after.catalog.rows[name]], expected, rtol=1e-5, atol=1e-6)
    others = weights(run).keys() - {"items.weight", "item_bias"}
    assert [name for name in others if not torch.equal(weights(run)[name], weights(begun)[name])] == []


def test_without_texts_new_items_get_the_mean_row(before: Prepared, tmp_path: Path) -> None:
    bare = [
        prepare(PrepareConfig(dataset=write_dataset(tmp_path / name, rows), out=tmp_path / f"{name}-prepared", **more))
        for name, rows, more in (
            ("a", [row for row in ROWS if row[1] not in LATE], {}),
            ("b", ROWS, {"extend": before.folder}),
        )
    ]
    run = trained(bare[0], tmp_path / "first")
    begun = weights(trained(bare[1], tmp_path / "second", "training.epochs=0", init=run.folder))["items.weight"]
    expected = weights(run)["items.weight"][1:].mean(dim=0)
    assert_close(begun[new_rows(bare[1])], expected.expand(len(LATE), -1), rtol=1e-5, atol=1e-7)


def test_items_without_a_training_event_are_new_too(encoder: Path, tmp_path: Path) -> None:
    """Their rows are what the softmax made of items that never come."""
    texts = (f"model.text_encoder={encoder}",)
    rows = [row for row in ROWS if row[1] not in LATE]
    dataset = write_dataset(tmp_path / "first", rows, described(NAMES))
    data = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "before"))
    later = prepare(
        PrepareConfig(dataset=write_dataset(tmp_path / "second", ROWS, described(NAMES)), out=tmp_path / "after")
    )
    run = trained(data, tmp_path / "run", *texts)
    begun = trained(later, tmp_path / "begun", *texts, "training.epochs=0", init=run.folder)
    first, second = weights(run)["items.weight"], weights(begun)["items.weight"]
    changed = {row for row in range(1, len(first)) if not torch.equal(first[row], second[row])}
    assert changed == set(new_rows(later))
    same = trained(data, tmp_path / "same", *texts, "training.epochs=0", init=run.folder)
    assert torch.equal(weights(same)["items.weight"], first)


def test_rows_once_learned_are_not_guessed_again(after: Prepared, encoder: Path, tmp_path: Path) -> None:
    """A log that an item is missing from for a while."""
    texts = (f"model.text_encoder={encoder}",)
    parts = [[row for row in ROWS if row[1] not in gone] for gone in (set(), LATE, set())]
    data = [
        prepare(
            PrepareConfig(
                dataset=write_dataset(tmp_path / f"log-{night}", rows, described(NAMES)),
                out=tmp_path / f"night-{night}",
                extend=after.folder,
            )
        )
        for night, rows in enumerate(parts)
    ]
    first = trained(data[0], tmp_path / "run-0", *texts)
    second = trained(data[1], tmp_path / "run-1", *texts, "training.epochs=0", init=first.folder)
    third = trained(data[2], tmp_path / "run-2", *texts, "training.epochs=0", init=second.folder)
    assert torch.equal(weights(third)["items.weight"], weights(first)["items.weight"])


def test_training_goes_on_from_there(before: Prepared, after: Prepared, encoder: Path, tmp_path: Path) -> None:
    settings = ("model.items=gated", f"model.text_encoder={encoder}", "model.text_width=12")
    run = trained(before, tmp_path / "first", *settings)
    on = trained(after, tmp_path / "second", *settings, init=run.folder)
    ids = weights(on)["items.ids.weight"]
    assert ids.shape[0] == after.catalog.num_rows
    assert ids[new_rows(after)].isfinite().all()


def test_gates_of_a_run_as_it_is_open_by_what_its_rows_have_seen(
    before: Prepared, after: Prepared, encoder: Path, tmp_path: Path
) -> None:
    settings = ("model.items=gated", f"model.text_encoder={encoder}", "model.text_width=12")
    run = trained(before, tmp_path / "first", *settings)
    same = trained(after, tmp_path / "same", *settings, "training.epochs=0", init=run.folder)
    again = trained(after, tmp_path / "again", *settings, "training.epochs=0", init=same.folder)
    on = trained(after, tmp_path / "on", *settings, init=run.folder)
    own, later = (data.training_events().item_counts() for data in (before, after))
    assert (own != later[: len(own)]).any()
    for kept in (same, again):
        counts = weights(kept)["items.counts"].numpy()
        assert counts[: len(own)].tolist() == own.tolist()
        assert not counts[len(own) :].any()
    assert weights(on)["items.counts"].tolist() == later.tolist()


def test_other_items_are_refused(before: Prepared, after: Prepared, tmp_path: Path) -> None:
    run = trained(after, tmp_path / "run")
    with pytest.raises(DataError, match=r"items of .* are not the first ones of .*; prepare it with --extend"):
        trained(before, tmp_path / "other", init=run.folder)
    assert not list(tmp_path.glob("*other*")), "refused before anything is written"


@pytest.mark.parametrize("name", [name for name, (kind, _) in MODELS.items() if issubclass(kind, torch.nn.Module)])
def test_weights_of_items_are_found_by_their_shape(name: str) -> None:
    values: dict[str, Any] = preset(name)["model"]
    expected = {
        "sasrec": ["items.weight"],
        "rearec": ["backbone.items.weight"],
        "bert4rec": ["items.weight", "item_bias"],
        "hierarchical": [],
        "recformer": [],
        "text-similarity": [],
    }
    found = item_weights(model_config(name, values, 10, 3))
    assert sorted(found) == sorted(expected.get(name, found))
