"""Splits lose no event and never look ahead; cases carry the right tags."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from builders import HISTORIES, split_of, store_of
from hypothesis import assume, given
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.sequences import SequenceStore
from recsys.splits import (
    CASE_COLUMNS,
    Part,
    Split,
    TrainingEvents,
    build_cases,
    instants_by_share,
    popularity_deciles,
    split_by_time,
    split_last_item,
    split_sizes,
)

Histories = Sequence[Sequence[tuple[int, int]]]
NUM_ROWS = 9  # items 1-7 occur, 8 never does


def parts_of(store: SequenceStore, split: Split) -> dict[str, list[tuple[int, int]]]:
    """(user, position) of the events of each part, by the split's own bounds."""
    cuts = zip(split.train_stop.tolist(), split.validation_stop.tolist(), store.lengths.tolist(), strict=True)
    parts: dict[str, list[tuple[int, int]]] = {"train": [], "validation": [], "test": []}
    for user, (train, validation, length) in enumerate(cuts):
        for part, low, high in (("train", 0, train), ("validation", train, validation), ("test", validation, length)):
            parts[part] += [(user, position) for position in range(low, high)]
    return parts


@given(HISTORIES, st.integers(0, 13), st.integers(0, 13))
def test_time_loses_nothing_and_never_looks_ahead(histories: Histories, validation_from: int, test_from: int) -> None:
    assume(validation_from <= test_from)
    store = store_of(histories)
    in_part = {
        "training": lambda time: time < validation_from,
        "validation": lambda time: validation_from <= time < test_from,
        "test": lambda time: time >= test_from,
    }
    sizes = [sum(belongs(time) for user in histories for _, time in user) for belongs in in_part.values()]
    if 0 in sizes:
        empty = list(in_part)[sizes.index(0)]
        with pytest.raises(DataError, match=f"split by time: {empty} holds none of the {store.num_events} events"):
            split_by_time(store, validation_from, test_from)
        return
    split = split_by_time(store, validation_from, test_from)
    parts = parts_of(store, split)
    everything = [(user, position) for user, events in enumerate(histories) for position in range(len(events))]
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == everything
    for part, belongs in zip(parts, in_part.values(), strict=True):
        assert all(belongs(histories[user][position][1]) for user, position in parts[part])
    assert list(split_sizes(store, split)) == sizes


def test_swapped_instants_are_refused() -> None:
    with pytest.raises(DataError, match="validation begins at 7, after test at 3; swap them"):
        split_by_time(store_of([[(1, 2), (2, 9)]]), validation_from=7, test_from=3)


def test_one_instant_for_all_events_leaves_nothing_to_train_on() -> None:
    store = store_of([[(1, 4), (2, 4)], [(3, 4)]])
    with pytest.raises(DataError, match="split by time: training holds none of the 3 events"):
        split_by_time(store, *instants_by_share(store.timestamp, 0.1, 0.1))


def test_shares_of_distinct_times_are_exact() -> None:
    times = np.random.default_rng(3).permutation(200).astype(np.int64)
    assert instants_by_share(times, validation_share=0.2, test_share=0.1) == (140, 180)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 45), st.integers(1, 45))
def test_shares_are_met_as_closely_as_ties_allow(times: list[int], validation: int, test: int) -> None:
    instants = instants_by_share(np.array(times), validation / 100, test / 100)
    wanted = ((validation + test) / 100 * len(times), test / 100 * len(times))
    for instant, share in zip(instants, wanted, strict=True):
        assert sum(time >= instant for time in times) >= share - 0.5 - 1e-9
        assert sum(time > instant for time in times) <= max(0, share + 0.5 - 1)


@given(HISTORIES)
def test_last_item_holds_out_the_last_two_events(histories: Histories) -> None:
    store = store_of(histories)
    if max(len(user) for user in histories) < 3:
        with pytest.raises(DataError, match=f"none of {len(histories)} users has three events"):
            split_last_item(store)
        return
    parts = parts_of(store, split_last_item(store))
    long = [(row, len(user)) for row, user in enumerate(histories) if len(user) >= 3]
    assert parts["test"] == [(row, length - 1) for row, length in long]
    assert parts["validation"] == [(row, length - 2) for row, length in long]
    assert len(parts["train"]) == store.num_events - 2 * len(long)


def test_last_item_says_how_long_the_longest_history_is() -> None:
    with pytest.raises(DataError, match=r"none of 2 users has three events \(longest history: 2\)"):
        split_last_item(store_of([[(1, 1)], [(1, 1), (2, 2)]]))


@given(HISTORIES, st.data(), st.sampled_from(["validation", "test"]))
def test_cases_and_their_tags_equal_a_plain_loop(histories: Histories, data: st.DataObject, part: Part) -> None:
    train = [data.draw(st.integers(0, len(user))) for user in histories]
    validation = [data.draw(st.integers(stop, len(user))) for stop, user in zip(train, histories, strict=True)]
    counts = Counter(item for user, stop in zip(histories, train, strict=True) for item, _ in user[:stop])
    rows = []
    for row, user in enumerate(histories):
        low, high = (train[row], validation[row]) if part == "validation" else (validation[row], len(user))
        for position in range(low, high):
            item, time = user[position]
            less_popular = sum((counts[other], other) < (counts[item], item) for other in counts)
            rows.append({
                "user_idx": row,
                "position": position,
                "target": item,
                "timestamp": time,
                "history_length": position,
                "new_user": train[row] == 0,
                "cold_item": counts[item] == 0,
                "popularity_decile": 10 - 10 * (len(counts) - 1 - less_popular) // len(counts) if counts[item] else 0,
            })
    cases = build_cases(store_of(histories), split_of(train, validation), part, NUM_ROWS)
    assert tuple(cases.columns) == CASE_COLUMNS
    assert cases.rows(named=True) == rows


def test_deciles_hold_a_tenth_of_the_warm_items_each() -> None:
    counts = np.random.default_rng(0).permutation([0] * 8 + list(range(1, 41)))
    deciles = popularity_deciles(counts)
    assert np.bincount(deciles, minlength=11).tolist() == [8] + [4] * 10
    assert set(counts[deciles == 10]) == {37, 38, 39, 40}
    assert set(counts[deciles == 1]) == {1, 2, 3, 4}


def test_a_catalogue_without_training_events_has_no_deciles() -> None:
    assert popularity_deciles(np.zeros(4, dtype=np.int64)).tolist() == [0, 0, 0, 0]


@given(HISTORIES, st.data())
def test_training_events_are_what_lies_before_the_stops(histories: Histories, data: st.DataObject) -> None:
    stops = [data.draw(st.integers(0, len(user))) for user in histories]
    events = TrainingEvents(store_of(histories), np.array(stops, dtype=np.int64), NUM_ROWS)
    by_hand = [
        (row, item, time)
        for row, (user, stop) in enumerate(zip(histories, stops, strict=True))
        for item, time in user[:stop]
    ]
    seen = zip(events.users.tolist(), events.items.tolist(), events.timestamps.tolist(), strict=True)
    assert list(seen) == by_hand
    counted = Counter(item for _, item, _ in by_hand)
    assert events.item_counts().tolist() == [counted[row] for row in range(NUM_ROWS)]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_share_of_the_users_keeps_all_events_of_each_and_lies_in_every_larger_one(share: float) -> None:
    store = store_of([[(1 + user % 5, user), (2, user + 1), (3, user + 2)] for user in range(2000)])
    events = TrainingEvents(store, np.arange(2000) % 4, NUM_ROWS)
    kept, more = events.of_users(share), events.of_users(0.5)
    users = np.unique(kept.users)
    assert abs(len(users) / len(np.unique(events.users)) - share) < 0.03
    assert set(users) < set(np.unique(more.users))
    chosen = np.isin(events.users, users)
    for name in ("users", "items", "timestamps"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(events, name)[chosen])
    assert kept.item_counts().sum() == chosen.sum(), "what is counted is what is learned from"
    np.testing.assert_array_equal(events.of_users(1.0).stops, events.stops)


def test_saved_equals_loaded(tmp_path: Path) -> None:
    split_of([3, 0, 2], [4, 1, 2]).save(tmp_path / "split")
    loaded = Split.load(tmp_path / "split")
    assert (loaded.train_stop.tolist(), loaded.validation_stop.tolist()) == ([3, 0, 2], [4, 1, 2])
