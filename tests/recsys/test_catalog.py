"""The catalogue never changes the meaning of a row."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalog import Catalog
from recsys.errors import DataError

IDS = st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=8)


def test_rows_are_the_sorted_ids_from_one() -> None:
    catalog = Catalog.from_ids(["pear", "apple", "pear", "fig"])
    assert catalog.rows == {"apple": 1, "fig": 2, "pear": 3}
    assert (catalog.num_items, catalog.num_rows) == (3, 4)


@given(IDS, st.lists(IDS, max_size=4))
def test_growing_never_changes_a_row(first: list[str], later: list[list[str]]) -> None:
    catalog = Catalog.from_ids(first)
    for ids in later:
        grown = catalog.extended(ids)
        assert grown.rows.items() >= catalog.rows.items()
        assert grown.rows.keys() == catalog.rows.keys() | set(ids)
        assert sorted(grown.rows.values()) == list(range(1, grown.num_rows))
        catalog = grown


def test_tombstones_keep_rows_and_wake_up_when_the_item_returns() -> None:
    catalog = Catalog.from_ids(["a", "b", "c", "d"]).without(["d", "b"]).without(["b"])
    assert catalog.rows == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert catalog.retired_rows.tolist() == [2, 4]
    awake = catalog.extended(["b", "0"])
    assert awake.rows == {"a": 1, "b": 2, "c": 3, "d": 4, "0": 5}
    assert awake.retired_rows.tolist() == [4]


def test_an_item_that_is_not_there_cannot_be_retired() -> None:
    with pytest.raises(DataError, match=r"cannot retire \['x', 'y'\]: not in the catalogue of 2 items"):
        Catalog.from_ids(["a", "b"]).without(["y", "a", "x"])


def test_rows_of_events_keep_their_order() -> None:
    catalog = Catalog.from_ids(["a", "b", "c"])
    rows = catalog.item_idx(pl.Series(["c", "a", "c", "b"]))
    assert rows.tolist() == [3, 1, 3, 2]
    assert rows.dtype == "int32"


def test_unknown_ids_are_counted_and_the_first_is_named() -> None:
    with pytest.raises(DataError, match="2 of 4 item ids are not in it \\(first: 'z'\\)"):
        Catalog.from_ids(["a", "b"]).item_idx(pl.Series(["b", "z", "a", "y"]))


@given(IDS, st.data())
def test_saved_equals_loaded(tmp_path_factory: pytest.TempPathFactory, ids: list[str], data: st.DataObject) -> None:
    catalog = Catalog.from_ids(ids)
    gone = data.draw(st.lists(st.sampled_from(sorted(catalog.rows)))) if ids else []
    catalog = catalog.without(gone).extended(["ω", "b"])
    path = tmp_path_factory.mktemp("catalog") / "catalog.parquet"
    catalog.save(path)
    loaded = Catalog.load(path)
    assert (loaded.rows, loaded.retired) == (catalog.rows, catalog.retired)


@pytest.mark.parametrize("rows", [[2, 1, 3], [1, 2, 4], [0, 1, 2]])
def test_a_file_whose_rows_moved_is_refused(tmp_path: Path, rows: list[int]) -> None:
    path = tmp_path / "catalog.parquet"
    Catalog.from_ids(["a", "b", "c"]).save(path)
    pl.read_parquet(path).with_columns(item_idx=pl.Series(rows)).write_parquet(path)
    with pytest.raises(DataError, match=r"catalog\.parquet: rows are not 1\.\.3 in order; this file was altered"):
        Catalog.load(path)
