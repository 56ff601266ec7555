"""`item_id <-> item_idx`: the one table that gives an item's row its meaning, in training and in serving.

Row 0 is padding. The catalogue only grows: an index never changes its meaning, and an item that is gone keeps
its row as a tombstone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import DataError
from recsys.partitions import write_table

PADDING = 0


@dataclass(frozen=True)
class Catalog:
    """Items in row order, padding left out: `item_ids[r - 1]` is the item of row r."""

    item_ids: pl.Series
    retired: frozenset[str] = frozenset()

    @classmethod
    def from_ids(cls, item_ids: Iterable[str]) -> "Catalog":
        """A first catalogue: rows in sorted order of the distinct ids."""
        ids = item_ids if isinstance(item_ids, pl.Series) else list(item_ids)
        return cls(pl.Series("item_id", ids, dtype=pl.String).unique().sort())

    def extended(self, item_ids: Iterable[str]) -> "Catalog":
        """With new ids appended (sorted among themselves); known ones keep their rows, tombstones wake up."""
        ids = item_ids if isinstance(item_ids, pl.Series) else list(item_ids)
        asked = pl.Series("item_id", ids, dtype=pl.String).unique().sort()
        new = asked.filter(~asked.is_in(self.item_ids.implode()))
        return Catalog(pl.concat([self.item_ids, new]), self.retired - set(asked) if self.retired else self.retired)

    def without(self, item_ids: Iterable[str]) -> "Catalog":
        """With tombstones on `item_ids`: their rows stay, and no answer may hold them."""
        gone = frozenset(item_ids)
        if not gone:
            return self
        if unknown := sorted(gone - self.rows.keys()):
            raise DataError(f"catalogue: cannot retire {unknown[:3]}: not in the catalogue of {self.num_items} items.")
        return Catalog(self.item_ids, self.retired | gone)

    @property
    def num_items(self) -> int:
        """Items, tombstones included; rows of an item table are one more."""
        return len(self.item_ids)

    @property
    def num_rows(self) -> int:
        """Rows of an item table: padding and items."""
        return self.num_items + 1

    @cached_property
    def rows(self) -> dict[str, int]:
        """item_id -> item_idx."""
        return {item_id: row for row, item_id in enumerate(self.item_ids, start=1)}

    @cached_property
    def retired_rows(self) -> npt.NDArray[np.int64]:
        """Ascending rows that carry a tombstone."""
        return np.array(sorted(self.rows[item_id] for item_id in self.retired), dtype=np.int64)

    def item_idx(self, item_ids: pl.Series) -> npt.NDArray[np.int32]:
        """Rows of `item_ids`; unknown ids are an error, so no event is silently dropped."""
        table = pl.DataFrame({"item_id": self.item_ids}).with_row_index("row", offset=1)
        rows = item_ids.to_frame("item_id").join(table, on="item_id", how="left", maintain_order="left")["row"]
        if unknown := rows.null_count():
            first = item_ids.filter(rows.is_null())[0]
            raise DataError(f"catalogue: {unknown} of {len(rows)} item ids are not in it (first: {first!r}).")
        return rows.to_numpy().astype(np.int32)

    def save(self, path: Path) -> None:
        """Writes `item_idx, item_id, retired` as Parquet."""
        table = pl.DataFrame({"item_id": self.item_ids}).with_row_index("item_idx", offset=1)
        write_table(table.with_columns(retired=pl.col("item_id").is_in(list(self.retired))), path)

    @classmethod
    def load(cls, path: Path) -> "Catalog":
        """Reads what `save` wrote."""
        table = pl.read_parquet(path)
        if not (table["item_idx"] == pl.int_range(1, len(table) + 1, eager=True)).all():
            raise DataError(f"{path}: rows are not 1..{len(table)} in order; this file was altered.")
        return cls(table["item_id"], frozenset(table.filter("retired")["item_id"]))
