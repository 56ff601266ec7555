"""Several datasets as one."""

from pathlib import Path

import polars as pl
import pytest
from builders import write_dataset

from pipelines.combine import CombineConfig, combine
from pipelines.prepare import PrepareConfig, prepare
from recsys.errors import ConfigError


@pytest.fixture
def datasets(tmp_path: Path) -> tuple[Path, Path]:
    """The same ids mean other things in each; categories are a list in one and text in the other."""
    first = write_dataset(
        tmp_path / "books",
        [("u1", "a", 30), ("u1", "b", 40), ("u2", "a", 10), ("u1", "a", 50)],
        pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "categories": [["x", "y"], None]}),
    )
    second = write_dataset(
        tmp_path / "games",
        [("u1", "a", 5), ("u1", "c", 2), ("u1", "d", 9)],
        pl.DataFrame({"item_id": ["a", "c", "d"], "name": ["G", "C", "D"], "categories": ["z", "z", None]}),
    )
    return first, second


def test_ids_are_told_apart_and_nothing_is_lost(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    both = combine(CombineConfig(datasets=datasets, out=tmp_path / "both"))
    events = both.events().select("user_id", "item_id").rows()
    assert events == [
        ("books/u1", "books/a"),
        ("books/u1", "books/b"),
        ("books/u1", "books/a"),
        ("books/u2", "books/a"),
        ("games/u1", "games/c"),
        ("games/u1", "games/a"),
        ("games/u1", "games/d"),
    ]
    items = both.items().sort("item_id").select("item_id", "title", "name", "categories").rows()
    assert items == [
        ("books/a", "A", None, "x y"),
        ("books/b", "B", None, None),
        ("games/a", None, "G", "z"),
        ("games/c", None, "C", "z"),
        ("games/d", None, "D", None),
    ]
    assert both.time == "timestamp"
    prepared = prepare(PrepareConfig(dataset=both.folder, out=tmp_path / "prepared", split="last-item"))
    assert prepared.catalog.num_items == 5


def test_one_dataset_without_times_makes_an_order(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    third = write_dataset(tmp_path / "order", [("u", "a", 1), ("u", "b", 2)], time="order")
    assert combine(CombineConfig(datasets=(*datasets, third), out=tmp_path / "all")).time == "order"


def test_names_must_differ(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two datasets are called 'books', and ids are told apart by it; rename"):
        CombineConfig(datasets=(datasets[0], tmp_path / "elsewhere" / "books"), out=tmp_path / "both")
    with pytest.raises(ConfigError, match="combine: give at least two datasets"):
        CombineConfig(datasets=datasets[:1], out=tmp_path / "both")


def test_prepared_items_know_the_dataset_they_came_from(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    combine(CombineConfig(datasets=datasets, out=tmp_path / "both"))
    both = prepare(PrepareConfig(dataset=tmp_path / "both", out=tmp_path / "prepared", split="last-item"))
    by_id = dict(zip(both.catalog.item_ids, both.item_sources[1:].tolist(), strict=True))
    assert by_id == {"books/a": 0, "books/b": 0, "games/a": 1, "games/c": 1, "games/d": 1}
    alone = prepare(PrepareConfig(dataset=datasets[0], out=tmp_path / "alone", split="last-item"))
    assert not alone.item_sources.any()
