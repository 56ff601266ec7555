"""Item attributes from every kind of column."""

from pathlib import Path

import polars as pl
import pytest

from recsys.errors import ConfigError, DataError
from recsys.item_table import all_items, as_categories, as_text, read_items, sibling_item_table
from recsys.readers import read_table
from recsys.source_files import RawTable, ReadOptions, with_rows


def table(columns: dict[str, list[object]]) -> RawTable:
    """Columns as a source."""
    return RawTable(path=Path("items.csv"), layout="csv", frame=with_rows(pl.DataFrame(columns, strict=False)))


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (["a|b | a", "(no genres listed)", None, ""], [["a", "b"], [], None, None]),
        (['[["Beauty", "Ma\\"ke|\\u00fcp"], ["Beauty", "x"]]', "[plain"], [["Beauty", 'Ma"ke|üp', "x"], ["[plain"]]),
        ([["b", "a", "b"], None, []], [["b", "a"], None, []]),
        ([[["b"], ["a", "b"]], None, [[]]], [["b", "a"], None, []]),
        ([3, None], [["3"], None]),
    ],
)
def test_categories_are_distinct_names_in_order(values: list[object], categories: list[object]) -> None:
    read = as_categories(pl.Series(values))
    assert read.dtype == pl.List(pl.String)
    assert [names if names is None else list(names) for names in read] == categories


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (
            ["Heat", " ", None, '["OPI", "Nail"]', "[1, 2]", '["a", bad'],
            ["Heat", None, None, "OPI, Nail", "[1, 2]", '["a", bad'],
        ),
        ([["Toy", "Story"], [], None], ["Toy Story", None, None]),
        ([1995.0, None], ["1995", None]),
        ([{"a": 1}, None], ['{"a":1}', None]),
        ([40.5, float("nan")], ["40.5", None]),
        ([b"\xff", None], ["/w==", None]),
    ],
)
def test_other_attributes_become_text(values: list[object], texts: list[object]) -> None:
    assert as_text(pl.Series(values)).to_list() == texts


def test_the_first_row_of_an_item_counts(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    path.write_text(
        "movieId,title,genres,year\n2,Heat,Action|Crime,1995\n2,Again,,\n,Nameless,,\nbroken\n1,Babe,,1995\n"
    )
    items, counts = read_items(read_table(path, "csv", ReadOptions()), {})
    assert items.rows() == [("2", "Heat", ["Action", "Crime"], "1995"), ("1", "Babe", None, "1995")]
    assert counts == {"rows": 5, "unreadable": 1, "missing_id": 1, "repeated_id": 1}


def test_an_attribute_whose_name_is_taken_keeps_its_content() -> None:
    items, _ = read_items(
        table({"id": ["1"], "title": ["raw"], "clean": ["Heat"]}), {"item_id": "id", "title": "clean"}
    )
    assert items.rows(named=True) == [{"item_id": "1", "title": "Heat", "title_2": "raw"}]


def test_every_item_of_events_or_table_is_there() -> None:
    seen = pl.DataFrame({"item_id": ["b", "c"]})
    items, counts = all_items(seen, pl.DataFrame({"item_id": ["z", "b"], "title": ["Z", "B"]}))
    assert items.rows() == [("b", "B"), ("c", None), ("z", "Z")]
    assert counts == {
        "items_with_attributes": 1,
        "items_without_attributes": 1,
        "attributes_without_events": 1,
        "examples_without_attributes": ["c"],
        "examples_without_events": ["z"],
    }
    assert all_items(seen, None)[0].rows() == [("b",), ("c",)]


def test_a_table_without_ids_is_refused() -> None:
    with pytest.raises(DataError, match="has no row with an item id"):
        read_items(table({"item_id": [" ", None], "title": ["a", "b"]}), {})


def test_the_atomic_item_file_of_the_same_stem_is_found(tmp_path: Path) -> None:
    sources = [tmp_path / "a.inter.gz", tmp_path / "b.inter", tmp_path / "c.csv"]
    assert sibling_item_table(sources) is None
    (tmp_path / "c.item").touch()
    (tmp_path / "a.item").touch()
    assert sibling_item_table(sources) == tmp_path / "a.item"
    (tmp_path / "b.item.gz").touch()
    with pytest.raises(ConfigError, match="two item tables beside the sources; choose one with --items"):
        sibling_item_table(sources)


def test_python_lists_in_cells_are_lists() -> None:
    values = pl.Series(["['Home & Kitchen', \"Men's\"]", "[['a', 'b'], ['a', 'c']]", "[broken, 'x'", None])
    assert as_categories(values).to_list() == [["Home & Kitchen", "Men's"], ["a", "b", "c"], ["[broken, 'x'"], None]
    assert as_text(values).to_list() == ["Home & Kitchen, Men's", "a, b, a, c", "[broken, 'x'", None]
