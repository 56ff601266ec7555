"""Every way of cutting windows against slow loops: nothing taught twice, nothing lost, nothing ahead of its time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from builders import HISTORIES, events_of, store_of
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.batches import TrainingWindows, WindowShape, next_item_batch
from recsys.errors import ConfigError
from recsys.splits import TrainingEvents
from recsys.windows import MINUTE, WindowPolicy, collapsed, cut_windows, sessions

Histories = Sequence[Sequence[tuple[int, int]]]
Window = tuple[int, int, int, int]

STOPS = st.lists(st.integers(0, 30), min_size=1, max_size=6)
SHAPES = st.tuples(st.integers(2, 9), st.integers(0, 1)).map(lambda pair: WindowShape(length=pair[0], overlap=pair[1]))


def events_until(stops: Sequence[int], histories: Histories | None = None) -> TrainingEvents:
    """The first `stops` events of each of `histories`, or of users with one event a minute."""
    users = histories or [[(1 + place % 7, place * MINUTE) for place in range(stop + 2)] for stop in stops]
    return TrainingEvents(store_of(users), np.array(stops, dtype=np.int64), num_rows=8)


def listed(windows: TrainingWindows) -> list[Window]:
    """User, start, stop, and from where on events are taught."""
    first = windows.starts if windows.taught_from is None else windows.taught_from
    columns = (windows.users, windows.starts, windows.stops, first)
    return [tuple(row) for row in np.stack(columns, axis=1).tolist()]


def taught(windows: TrainingWindows, fewest: int) -> Counter[tuple[int, int]]:
    """Events that are targets; `fewest` events of a window stand before its first one."""
    return Counter(
        (user, place)
        for user, start, stop, first in listed(windows)
        for place in range(max(first, start + fewest), stop)
    )


def slid_by_hand(length: int, stride: int, size: int) -> list[tuple[int, int, int]]:
    """Start, stop and first taught event of each window, newest first."""
    windows, stop = [], size
    while size >= 2:
        start = max(0, stop - length)
        windows.append((start, stop, 0 if start == 0 else stop - stride))
        if start == 0:
            break
        stop -= stride
    return windows


@given(STOPS, SHAPES)
def test_the_default_cuts_as_ever(stops: list[int], shape: WindowShape) -> None:
    ours = cut_windows(events_until(stops), shape, WindowPolicy())
    before = TrainingWindows.cut(np.array(stops), shape)
    assert listed(ours) == listed(before)
    assert ours.taught_from is None


@given(STOPS, SHAPES, st.data())
def test_a_stride_teaches_every_event_exactly_once(stops: list[int], shape: WindowShape, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, shape.length - shape.overlap))
    windows = cut_windows(events_until(stops), shape, WindowPolicy(stride=stride))
    by_hand = [
        (user, *window) for user, stop in enumerate(stops) for window in slid_by_hand(shape.length, stride, stop)
    ]
    assert sorted(listed(windows)) == sorted(by_hand)
    expected = Counter(
        (user, place) for user, stop in enumerate(stops) if stop >= 2 for place in range(shape.overlap, stop)
    )
    assert taught(windows, shape.overlap) == expected
    context = [first - start for _, start, _, first in listed(windows) if start]
    assert set(context) <= {shape.length - stride}, "all but the oldest window of a user have this much context"


@given(STOPS, SHAPES)
def test_the_longest_stride_is_the_default(stops: list[int], shape: WindowShape) -> None:
    longest = cut_windows(events_until(stops), shape, WindowPolicy(stride=shape.length - shape.overlap))
    default = cut_windows(events_until(stops), shape, WindowPolicy())
    assert [window[:3] for window in listed(longest)] == [window[:3] for window in listed(default)]
    assert taught(longest, shape.overlap) == taught(default, shape.overlap)


@given(STOPS, st.integers(2, 9), st.integers(0, 4))
def test_last_is_the_newest_window_of_each_user(stops: list[int], length: int, overlap: int) -> None:
    shape = WindowShape(length=length, overlap=min(overlap, length - 1))
    windows = cut_windows(events_until(stops), shape, WindowPolicy(kind="last"))
    assert listed(windows) == [
        (user, max(0, stop - length), stop, max(0, stop - length)) for user, stop in enumerate(stops) if stop >= 2
    ]


@settings(max_examples=50)
@given(HISTORIES, st.integers(1, 4), SHAPES, st.sampled_from(["sliding", "last"]), st.booleans(), st.data())
def test_sessions_are_cut_like_users(
    histories: Histories, gap: int, shape: WindowShape, kind: str, slides: bool, data: st.DataObject
) -> None:
    """A gap of `gap` minutes; times of the histories are whole minutes."""
    in_minutes = [[(item, time * MINUTE) for item, time in user] for user in histories]
    stops = [data.draw(st.integers(0, len(user))) for user in histories]
    stride = 1 if slides and kind == "sliding" else 0
    segments: list[tuple[int, int, int]] = []
    for row, (user, stop) in enumerate(zip(histories, stops, strict=True)):
        for place in range(stop):
            if place and user[place][1] - user[place - 1][1] <= gap:
                segments[-1] = (*segments[-1][:2], place + 1)
            else:
                segments.append((row, place, place + 1))
    plain = WindowPolicy(kind=kind, stride=stride)  # type: ignore[arg-type]
    apart = listed(cut_windows(events_until([stop - start for _, start, stop in segments] or [0]), shape, plain))
    by_hand = [
        (segments[row][0], *(place + segments[row][1] for place in places)) for row, *places in apart if segments
    ]
    policy = WindowPolicy(kind=kind, stride=stride, session_gap=float(gap))  # type: ignore[arg-type]
    assert listed(cut_windows(events_until(stops, in_minutes), shape, policy)) == by_hand


@settings(max_examples=50)
@given(HISTORIES, SHAPES, st.integers(0, 3), st.sampled_from(["sliding", "last"]), st.data())
def test_no_window_looks_ahead(
    histories: Histories, shape: WindowShape, gap: int, kind: str, data: st.DataObject
) -> None:
    stops = [data.draw(st.integers(0, len(user))) for user in histories]
    policy = WindowPolicy(kind=kind, session_gap=gap / MINUTE)  # type: ignore[arg-type]
    events = events_until(stops, histories)
    windows = cut_windows(events, shape, policy)
    for user, start, stop, _ in listed(windows):
        assert 0 <= start < stop <= stops[user]
        times = [time for _, time in histories[user][start:stop]]
        assert not gap or all(later - earlier <= gap for earlier, later in pairwise(times))
    if len(windows):
        loaded = windows.load(events.store, np.arange(len(windows)))
        for row, (user, start, stop, _) in enumerate(listed(windows)):
            assert loaded.items[row, : stop - start].tolist() == [item for item, _ in histories[user][start:stop]]


@pytest.mark.parametrize("weight", [None, np.array([0.5, 1, 1, 1, 0.25, 1, 1, 1, 1], dtype=np.float32)])
def test_context_has_no_weight_and_what_is_taught_keeps_its_own(weight: np.ndarray | None) -> None:
    store = store_of([[(1 + place, place) for place in range(9)]])
    events = TrainingEvents(replace(store, weight=weight), np.array([8], dtype=np.int64), num_rows=10)
    windows = cut_windows(events, WindowShape(length=4, overlap=1), WindowPolicy(stride=2))
    loaded = windows.load(events.store, np.arange(len(windows)))
    assert loaded.items.tolist() == [[5, 6, 7, 8], [3, 4, 5, 6], [1, 2, 3, 4]]
    assert loaded.weights is not None
    own = 1.0 if weight is None else 0.5, 1.0 if weight is None else 0.25
    assert loaded.weights.tolist() == [[0, 0, 1, 1], [0, 0, own[1], 1], [own[0], 1, 1, 1]]
    batch = next_item_batch(loaded).weighed(loaded.weights[:, 1:], np.random.default_rng(0))
    if weight is None:
        assert batch.target.tolist() == [[0, 7, 8], [0, 5, 6], [2, 3, 4]], "2 to 8, each once"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stride": -1}, "stride=-1 and session_gap=0.0 must be at least 0"),
        ({"session_gap": -2.0}, "session_gap=-2.0 must be at least 0"),
        ({"kind": "last", "stride": 3}, "kind=last has one window, so stride=3 has no meaning"),
    ],
)
def test_policies_that_mean_nothing_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WindowPolicy(**values)  # type: ignore[arg-type]


def test_a_stride_that_would_lose_events_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stride=4 would leave out events between windows of 4; choose at most 3"):
        cut_windows(events_until([9]), WindowShape(length=4, overlap=1), WindowPolicy(stride=4))
    cut_windows(events_until([9]), WindowShape(length=4, overlap=0), WindowPolicy(stride=4))


ROWS = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), st.integers(0, 9)), max_size=25)


@given(ROWS, st.integers(1, 4))
def test_sessions_equal_a_plain_loop(rows: list[tuple[str, str, int]], gap: int) -> None:
    events = events_of([(user, item, minute * MINUTE) for user, item, minute in rows])
    numbers: Counter[str] = Counter()
    last: dict[str, int] = {}
    by_hand = []
    for user, _, time in events.rows():
        numbers[user] += user not in last or time - last[user] > gap * MINUTE
        last[user] = time
        by_hand.append(f"{user}/{numbers[user]}")
    found = sessions(events, float(gap))
    assert found["session_id"].to_list() == by_hand
    assert found.drop("session_id").equals(events)


@given(ROWS)
def test_collapsed_runs_keep_their_first_event(rows: list[tuple[str, str, int]]) -> None:
    events = events_of(rows).with_row_index("place")
    by_hand = [
        place
        for place, user, item, _ in events.rows()
        if not place or (events["user_id"][place - 1], events["item_id"][place - 1]) != (user, item)
    ]
    assert collapsed(events)["place"].to_list() == by_hand
    again = collapsed(events).drop("place")
    assert collapsed(again).equals(again), "what is left has no runs"
