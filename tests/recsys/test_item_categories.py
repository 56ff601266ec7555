"""Categories as numbers."""

import polars as pl
import pytest

from recsys.errors import DataError
from recsys.item_categories import item_categories

ITEMS = pl.DataFrame({
    "item_id": ["a", "b", "c", "d"],
    "categories": [["war", "drama"], ["drama"], None, ["war"]],
    "brand": ["x", None, "w", "x"],
})


def test_the_first_of_a_list_counts_and_nothing_is_zero() -> None:
    assert item_categories(ITEMS, "categories").tolist() == [0, 2, 1, 0, 2]
    assert item_categories(ITEMS, "brand").tolist() == [0, 2, 0, 1, 2]
    empty = ITEMS.with_columns(categories=pl.lit([], pl.List(pl.String)))
    assert item_categories(empty, "categories").tolist() == [0] * 5


def test_items_may_have_no_categories_at_all() -> None:
    assert item_categories(ITEMS, "").tolist() == [0] * 5
    assert item_categories(ITEMS.drop("categories"), "categories").tolist() == [0] * 5
    with pytest.raises(
        DataError, match=r"no column 'colour' for model\.category; there are item_id, categories, brand"
    ):
        item_categories(ITEMS, "colour")
