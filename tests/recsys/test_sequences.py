"""Histories in CSR form against plain Python lists."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from builders import HISTORIES, events_of, store_of
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalog import Catalog
from recsys.errors import DataError
from recsys.sequences import SequenceStore

Histories = Sequence[Sequence[tuple[int, int]]]


def array(values: Sequence[int]) -> np.ndarray:
    """int64."""
    return np.array(values, dtype=np.int64)


@given(HISTORIES, st.data(), st.integers(1, 6))
def test_windows_are_padded_slices(histories: Histories, data: st.DataObject, max_len: int) -> None:
    users = data.draw(st.lists(st.integers(0, len(histories) - 1), min_size=1, max_size=6))
    stops = [data.draw(st.integers(0, len(histories[user]))) for user in users]
    starts = [data.draw(st.integers(0, stop)) for stop in stops]
    for given_starts in (None, array(starts)):
        first = [0] * len(users) if given_starts is None else starts
        by_hand = [histories[user][low:high][-max_len:] for user, low, high in zip(users, first, stops, strict=True)]
        width = max(1, *(len(window) for window in by_hand), 0)
        windows = store_of(histories).windows(array(users), array(stops), max_len, given_starts)
        padding = [[0] * (width - len(window)) for window in by_hand]
        assert windows.items.tolist() == [
            [item for item, _ in window] + rest for window, rest in zip(by_hand, padding, strict=True)
        ]
        assert windows.timestamps.tolist() == [
            [time for _, time in window] + rest for window, rest in zip(by_hand, padding, strict=True)
        ]
        assert windows.lengths.tolist() == [len(window) for window in by_hand]


def test_a_window_without_events_is_one_column_of_padding() -> None:
    windows = store_of([[(3, 1)], [(4, 2), (5, 3)]]).windows(array([1, 0]), array([0, 0]), 5)
    assert windows.items.tolist() == [[0], [0]]
    assert windows.lengths.tolist() == [0, 0]


def test_a_batch_without_users_has_windows_of_one_column() -> None:
    assert store_of([[(3, 1)]]).windows(array([]), array([]), 5).items.shape == (0, 1)


@given(HISTORIES)
def test_events_of_a_log_become_its_histories(histories: Histories) -> None:
    rows = [(f"user {7 - row}", str(item), time) for row, user in enumerate(histories) for item, time in user]
    catalog = Catalog.from_ids(str(item) for item in range(1, 8))
    store = SequenceStore.from_events(events_of(rows), catalog)
    assert store.user_ids.to_list() == sorted(f"user {7 - row}" for row in range(len(histories)))
    for row, user in enumerate(histories):
        place = store.user_ids.to_list().index(f"user {7 - row}")
        events = slice(store.offsets[place], store.offsets[place + 1])
        assert list(zip(store.item_idx[events].tolist(), store.timestamp[events].tolist(), strict=True)) == user
    assert (store.num_users, store.num_events) == (len(histories), len(rows))


@given(HISTORIES)
def test_each_event_knows_its_user_and_its_place(histories: Histories) -> None:
    store = store_of(histories)
    assert store.lengths.tolist() == [len(user) for user in histories]
    assert store.event_users().tolist() == [row for row, user in enumerate(histories) for _ in user]
    assert store.event_positions().tolist() == [place for user in histories for place in range(len(user))]


def test_ties_keep_the_order_of_the_log() -> None:
    store = SequenceStore.from_events(
        events_of([("b", "x", 5), ("a", "z", 5), ("a", "x", 5), ("a", "y", 1)]), Catalog.from_ids("xyz")
    )
    assert store.item_idx.tolist() == [2, 3, 1, 1]


def test_an_event_of_an_unknown_item_is_an_error() -> None:
    with pytest.raises(DataError, match="1 of 2 item ids are not in it"):
        SequenceStore.from_events(events_of([("a", "x", 1), ("a", "q", 2)]), Catalog.from_ids("xyz"))


def test_saved_equals_loaded_and_events_stay_on_disk(tmp_path: Path) -> None:
    store = store_of([[(3, 10), (1, 11)], [(2, 5)], [(1, 6), (1, 6), (7, 8)]])
    store.save(tmp_path / "sequences")
    loaded = SequenceStore.load(tmp_path / "sequences")
    assert isinstance(loaded.item_idx, np.memmap)
    assert isinstance(loaded.timestamp, np.memmap)
    assert loaded.user_ids.equals(store.user_ids)
    for name, dtype in (("offsets", "int64"), ("item_idx", "int32"), ("timestamp", "int64")):
        column = getattr(loaded, name)
        assert column.dtype == dtype
        assert column.tolist() == getattr(store, name).tolist()
    windows = loaded.windows(array([2, 0]), array([3, 1]), 2)
    assert windows.items.tolist() == [[1, 7], [3, 0]]
    assert windows.items.flags.writeable


def test_weights_go_where_their_events_go(tmp_path: Path) -> None:
    events = events_of([("a", "x", 1), ("a", "y", 2), ("a", "x", 3), ("b", "y", 1)])
    weighed = events.with_columns(weight=pl.Series([0.25, None, 0.5, 1.0], dtype=pl.Float32))
    store = SequenceStore.from_events(weighed, Catalog.from_ids(["x", "y"]))
    assert store.weight is not None
    assert store.weight.tolist() == [0.25, 1.0, 0.5, 1.0]
    store.save(tmp_path / "sequences")
    windows = SequenceStore.load(tmp_path / "sequences").windows(np.array([0, 1]), np.array([3, 1]), 2)
    assert windows.weights is not None
    assert windows.weights.tolist() == [[1.0, 0.5], [1.0, 0.0]]
    plain = SequenceStore.from_events(events, Catalog.from_ids(["x", "y"]))
    plain.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "weight.npy").exists()
    assert SequenceStore.load(tmp_path / "plain").windows(np.array([0]), np.array([3]), 2).weights is None
