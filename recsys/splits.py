"""Splits and evaluation cases: which events train a model, and which it must predict.

A split is two numbers a user: events before `train_stop` train, those up to `validation_stop` validate, the
rest test. Every case is predicted from all that its user did before it.

    time        one instant for all users; nobody's future trains a model
        ann  o o o o | v | t t
        bob      o   | v v v |
        cho          |       | t t t       (a new user: nothing of hers was trained on)

    last-item   leave-one-out, as in most papers; looks into the future, for bob's test event may lie
                before events of ann that were trained on
        ann  o o o o o | v | t
        bob  o o o | v | t
        cho  o o                           (fewer than three events: all of them train)
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import DataError
from recsys.sequences import IntArray, SequenceStore, ranges

SplitKind = Literal["time", "last-item"]
Part = Literal["validation", "test"]
FitOn = Literal["train", "train+validation"]

CASE_COLUMNS = (
    "user_idx",
    "position",
    "target",
    "timestamp",
    "history_length",
    "new_user",
    "cold_item",
    "popularity_decile",
)


@dataclass(frozen=True)
class Split:
    """Positions in each user's history, both [U]: 0 <= train_stop <= validation_stop <= length."""

    train_stop: IntArray
    validation_stop: IntArray

    def fit_stops(self, fit_on: FitOn) -> IntArray:
        """Where the events end that a model may learn from, [U]."""
        return self.train_stop if fit_on == "train" else self.validation_stop

    def bounds(self, part: Part, lengths: IntArray) -> tuple[IntArray, IntArray]:
        """First and one-past-last position of a part, each [U]."""
        if part == "validation":
            return self.train_stop, self.validation_stop
        return self.validation_stop, lengths

    def save(self, folder: Path) -> None:
        """Writes one `.npy` an array into a new folder."""
        folder.mkdir()
        np.save(folder / "train_stop.npy", self.train_stop)
        np.save(folder / "validation_stop.npy", self.validation_stop)

    @classmethod
    def load(cls, folder: Path) -> "Split":
        """Reads what `save` wrote."""
        return cls(np.load(folder / "train_stop.npy"), np.load(folder / "validation_stop.npy"))


def instants_by_share(timestamps: IntArray, validation_share: float, test_share: float) -> tuple[int, int]:
    """The two instants that leave about these shares of all events to validation and test."""
    last = len(timestamps) - 1
    places = [min(last, round(len(timestamps) * (1 - share))) for share in (test_share + validation_share, test_share)]
    ordered = np.partition(timestamps, places)
    return int(ordered[places[0]]), int(ordered[places[1]])


def split_by_time(store: SequenceStore, validation_from: int, test_from: int) -> Split:
    """Events before `validation_from` train, before `test_from` validate, the others test (timestamps)."""
    if validation_from > test_from:
        raise DataError(f"split: validation begins at {validation_from}, after test at {test_from}; swap them.")
    split = Split(_events_before(store, validation_from), _events_before(store, test_from))
    for name, size in zip(("training", "validation", "test"), split_sizes(store, split), strict=True):
        if size == 0:
            raise DataError(
                f"split by time: {name} holds none of the {store.num_events} events (validation from "
                f"{validation_from}, test from {test_from}); choose other instants or shares."
            )
    return split


def _events_before(store: SequenceStore, instant: int) -> IntArray:
    return store.count(np.asarray(store.timestamp) < instant)


def split_last_item(store: SequenceStore) -> Split:
    """Last event tests, the one before validates; users with fewer than three events only train."""
    lengths = store.lengths
    evaluated = lengths >= 3
    if not evaluated.any():
        raise DataError(
            f"split last-item: none of {store.num_users} users has three events (longest history: "
            f"{lengths.max(initial=0)}); use longer histories or split by time."
        )
    return Split(np.where(evaluated, lengths - 2, lengths), np.where(evaluated, lengths - 1, lengths))


def split_sizes(store: SequenceStore, split: Split) -> tuple[int, int, int]:
    """Events in training, validation and test."""
    train, before_test = int(split.train_stop.sum()), int(split.validation_stop.sum())
    return train, before_test - train, store.num_events - before_test


@dataclass(frozen=True)
class TrainingEvents:
    """The first `stops` [U] events of every user, over a catalogue of `num_rows` item rows (V)."""

    store: SequenceStore
    stops: IntArray
    num_rows: int

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """True at these events among all of the store, [E]."""
        runs = np.stack([self.stops, self.store.lengths - self.stops], axis=1).ravel()
        return np.repeat(np.tile([True, False], len(self.stops)), runs)

    @property
    def items(self) -> npt.NDArray[np.int32]:
        """Item rows in user and time order."""
        return self.store.item_idx[self.mask]

    @property
    def users(self) -> IntArray:
        """User rows, aligned with `items`."""
        return self.store.event_users()[self.mask]

    @property
    def timestamps(self) -> IntArray:
        """Times, aligned with `items`."""
        return self.store.timestamp[self.mask]

    def of_users(self, share: float) -> "TrainingEvents":
        """Those of a fixed random share of the users, whose smaller shares are parts of its larger ones."""
        drawn = np.random.default_rng(0).random(len(self.stops)) < share
        return self if share == 1 else replace(self, stops=np.where(drawn, self.stops, 0))

    def without(self, users: npt.NDArray[np.bool_]) -> "TrainingEvents":
        """Those of all users but the ones that are True, [U]."""
        return replace(self, stops=np.where(users, 0, self.stops))

    def item_counts(self) -> IntArray:
        """Events of each item row, [V]."""
        return np.bincount(self.items, minlength=self.num_rows).astype(np.int64)


def popularity_deciles(counts: IntArray) -> np.ndarray:
    """i8[V]: 10 for the most popular tenth of the items with training events, 1 for the least, 0 for none."""
    deciles = np.zeros(len(counts), dtype=np.int8)
    warm = np.flatnonzero(counts)
    order = warm[np.argsort(counts[warm], kind="stable")]
    from_the_top = np.arange(len(order))[::-1]
    deciles[order] = 10 - (from_the_top * 10) // max(1, len(order))
    return deciles


def build_cases(store: SequenceStore, split: Split, part: Part, num_rows: int) -> pl.DataFrame:
    """One row a case, in user and time order; columns `CASE_COLUMNS`.

    `history_length` counts all earlier events of the user. `new_user` had no training event, `cold_item`
    neither; `popularity_decile` is that of the target in training (0: cold).
    """
    first, last = split.bounds(part, store.lengths)
    users, positions = ranges(first, last)
    chosen = store.offsets[users] + positions
    targets = store.item_idx[chosen]
    counts = TrainingEvents(store, split.train_stop, num_rows).item_counts()
    return pl.DataFrame({
        "user_idx": users.astype(np.int32),
        "position": positions.astype(np.int32),
        "target": targets,
        "timestamp": store.timestamp[chosen],
        "history_length": positions.astype(np.int32),
        "new_user": split.train_stop[users] == 0,
        "cold_item": counts[targets] == 0,
        "popularity_decile": popularity_deciles(counts)[targets],
    })
