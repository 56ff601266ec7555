"""Histories in CSR form: user u's events are the slice `offsets[u]:offsets[u + 1]` of flat columns.

    offsets    i64[U + 1]   0   3       8   9
    item_idx   i32[E]       4 7 2 | 1 1 9 3 5 | 2
    timestamp  i64[E]       (same slices)
    weight     f32[E]       where events do not count alike (`recsys denoise --action weight`)

12 bytes an event on disk, memory-mapped. Neither prefixes nor padded windows are stored: a window is cut when
a batch is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.catalog import PADDING, Catalog
from recsys.partitions import write_table

IntArray = npt.NDArray[np.int64]


def ranges(starts: IntArray, stops: IntArray) -> tuple[IntArray, IntArray]:
    """All numbers of `starts[r]:stops[r]`, one range after the other, behind the row `r` of each."""
    lengths = stops - starts
    rows = np.repeat(np.arange(len(starts)), lengths)
    return rows, np.arange(len(rows)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


@dataclass(frozen=True)
class Windows:
    """Right-padded slices of histories: `items` [B, L] (0 is padding), `timestamps` [B, L], `lengths` [B].

    `weights` [B, L]: how much each event counts as something to learn; None where all count alike.
    """

    items: IntArray
    timestamps: IntArray
    lengths: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class SequenceStore:
    """All histories; arrays may be memory-mapped."""

    offsets: IntArray
    item_idx: npt.NDArray[np.int32]
    timestamp: IntArray
    user_ids: pl.Series
    weight: npt.NDArray[np.float32] | None = None

    @classmethod
    def from_events(cls, events: pl.DataFrame, catalog: Catalog) -> "SequenceStore":
        """From events already ordered by (user, timestamp, source order)."""
        lengths = events.group_by("user_id", maintain_order=True).len()
        offsets = np.concatenate([[0], np.cumsum(lengths["len"].to_numpy())]).astype(np.int64)
        return cls(
            offsets=offsets,
            item_idx=catalog.item_idx(events["item_id"]),
            timestamp=events["timestamp"].to_numpy().astype(np.int64),
            user_ids=lengths["user_id"],
            weight=events["weight"].fill_null(1).to_numpy().astype(np.float32) if "weight" in events.columns else None,
        )

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def num_events(self) -> int:
        """E."""
        return len(self.item_idx)

    @property
    def lengths(self) -> IntArray:
        """Events of each user, [U]."""
        return np.diff(self.offsets)

    def event_users(self) -> IntArray:
        """Row of the user of each event, [E]."""
        return np.repeat(np.arange(self.num_users), self.lengths)

    def event_positions(self) -> IntArray:
        """Place of each event in its user's history, counted from 0, [E]."""
        return np.arange(self.num_events) - np.repeat(self.offsets[:-1], self.lengths)

    def count(self, events: npt.NDArray[np.bool_]) -> IntArray:
        """How many of each user's events are True, [U]."""
        if self.num_users == 0:
            return np.zeros(0, dtype=np.int64)
        return np.add.reduceat(events, self.offsets[:-1], dtype=np.int64)

    def windows(self, users: IntArray, stops: IntArray, max_len: int, starts: IntArray | None = None) -> Windows:
        """The last `max_len` of events `starts:stops` (positions in the user's history; `starts` default 0).

        Width L is the longest window of the batch, at least 1.
        """
        first = np.maximum(stops - max_len, 0 if starts is None else starts)
        lengths = stops - first
        steps = np.arange(max(1, int(lengths.max(initial=0))))
        valid = steps < lengths[:, None]
        places = np.where(valid, (self.offsets[users] + first)[:, None] + steps, 0)
        return Windows(
            items=np.where(valid, self.item_idx[places], PADDING).astype(np.int64),
            timestamps=np.where(valid, self.timestamp[places], 0),
            lengths=lengths.astype(np.int32),
            weights=None if self.weight is None else np.where(valid, self.weight[places], 0).astype(np.float32),
        )

    def save(self, folder: Path) -> None:
        """Writes one `.npy` a column and `users.parquet` into a new folder."""
        folder.mkdir()
        np.save(folder / "offsets.npy", self.offsets)
        np.save(folder / "item_idx.npy", self.item_idx)
        np.save(folder / "timestamp.npy", self.timestamp)
        if self.weight is not None:
            np.save(folder / "weight.npy", self.weight)
        write_table(self.user_ids.to_frame("user_id"), folder / "users.parquet")

    @classmethod
    def load(cls, folder: Path) -> "SequenceStore":
        """Memory-maps what `save` wrote."""
        weight = folder / "weight.npy"
        return cls(
            offsets=np.load(folder / "offsets.npy"),
            item_idx=np.load(folder / "item_idx.npy", mmap_mode="r"),
            timestamp=np.load(folder / "timestamp.npy", mmap_mode="r"),
            user_ids=pl.read_parquet(folder / "users.parquet")["user_id"],
            weight=np.load(weight, mmap_mode="r") if weight.exists() else None,
        )


def joined(stores: Sequence[SequenceStore]) -> SequenceStore:
    """Histories of stores that share no user, one store after the other."""
    if len(stores) == 1:
        return stores[0]
    lengths = np.concatenate([store.lengths for store in stores])
    weights = [store.weight for store in stores if store.weight is not None]
    return SequenceStore(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_idx=np.concatenate([store.item_idx for store in stores]),
        timestamp=np.concatenate([store.timestamp for store in stores]),
        user_ids=pl.concat([store.user_ids for store in stores]),
        weight=np.concatenate(weights) if len(weights) == len(stores) else None,
    )
