"""What an answer may show of an item: title, categories, and the source's other fields."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from recsys.index import FloatArray, RowArray
from serving.new_items import NewItem

TITLE, CATEGORIES = "title", "categories"


class ItemTable:
    """A bundle's items by item row; `popularity` [V] decides which matches of a search come first."""

    def __init__(self, items: pl.DataFrame, popularity: FloatArray) -> None:
        self._items = items
        self.item_ids: list[str] = items["item_id"].to_list()
        self._popularity = popularity
        self.later: list[NewItem] = []
        self.titles: list[str | None] = _column(items, TITLE, pl.String)
        self.categories: list[list[str]] = [
            [name for name in names or [] if name] for names in _column(items, CATEGORIES, pl.List(pl.String))
        ]

    def write(self, row: int, item: NewItem) -> None:
        """What is shown of an item that came later; `row` is the next one, or one that came later too."""
        place = row - 1 - len(self._items)
        if place == len(self.later):
            self.item_ids.append(item.item_id)
            self.titles.append(item.title)
            self.categories.append(list(item.categories))
            self.later.append(item)
        self.titles[row - 1], self.categories[row - 1], self.later[place] = item.title, list(item.categories), item

    def item_id(self, row: int) -> str:
        """The raw id."""
        return self.item_ids[row - 1]

    def title(self, row: int) -> str | None:
        """The title, where the source gave one."""
        return self.titles[row - 1]

    def fields(self, row: int) -> dict[str, Any]:
        """Everything else that the source said of the item."""
        if row > len(self._items):
            return dict(self.later[row - 1 - len(self._items)].fields)
        shown = {"item_id", TITLE, CATEGORIES}
        return {name: value for name, value in self._items.row(row - 1, named=True).items() if name not in shown}

    def values(self, rows: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """These fields of each item, as the source gave them; null where it gave none."""
        return [{name: self._value(row, name) for name in names} for row in rows]

    def _value(self, row: int, name: str) -> Any:
        place = row - 1 - len(self._items)
        if place < 0:
            value = self._items[name][row - 1]
            return value.to_list() if isinstance(value, pl.Series) else value
        item = self.later[place]
        return item.item_id if name == "item_id" else item.attributes.get(name)

    def find(self, text: str, limit: int) -> RowArray:
        """Rows whose title (or id, where there is none) contains `text` in any case, most popular first, new last."""
        rows = self._searchable.str.contains(text.lower(), literal=True).arg_true().to_numpy().astype(np.int64) + 1
        first = len(self._items) + 1
        later = [
            row for row, item in enumerate(self.later, first) if text.lower() in (item.title or item.item_id).lower()
        ]
        known = rows[np.argsort(-self._popularity[rows], kind="stable")]
        return np.concatenate([known, np.array(later, dtype=np.int64)])[:limit]

    @cached_property
    def _searchable(self) -> pl.Series:
        titles = pl.Series(self.titles[: len(self._items)], dtype=pl.String)
        return titles.zip_with(titles.is_not_null(), self._items["item_id"]).str.to_lowercase()


def _column(items: pl.DataFrame, name: str, dtype: pl.DataType | type[pl.DataType]) -> list[Any]:
    """Values of a column as `dtype` (text becomes a list of one), or nulls where the source has none."""
    if name not in items.columns:
        return [None] * len(items)
    column = items[name]
    if isinstance(dtype, pl.List) and not isinstance(column.dtype, pl.List):
        column = column.cast(pl.String).reshape((len(items), 1)).arr.to_list()
    return column.cast(dtype).to_list()
