"""The figures of `recsys describe` against arithmetic by hand and against plain loops."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from builders import HISTORIES, split_of, store_of
from hypothesis import given

from recsys.description import DAY, HOUR, Description, Splits, describe, possible_splits
from recsys.errors import DataError
from recsys.schema import TimeKind

Histories = Sequence[Sequence[tuple[int, int]]]

SHOP: Histories = [
    [(1, 0), (2, HOUR), (2, HOUR), (1, 3 * HOUR)],
    [(1, DAY), (3, DAY), (1, DAY + HOUR)],
    [(4, 9 * DAY)],
]
"""Three users, four items, eight events: a duplicate, a tie of two items, and two repeats one event further back."""


def described(histories: Histories, time: TimeKind = "timestamp") -> Description:
    """With no split."""
    return describe(store_of(histories), time, Splits({}, {}), {})


def test_a_small_shop_by_hand() -> None:
    log = described(SHOP)
    assert (log.users, log.items, log.events) == (3, 4, 8)
    assert log.sparsity == pytest.approx(1 - 5 / 12)
    lengths = log.lengths
    assert (lengths.mean, lengths.median, lengths.longest) == (pytest.approx(8 / 3), 3, 4)
    assert (lengths.single, lengths.busiest_share) == (pytest.approx(1 / 3), 0.5)
    assert lengths.histogram == (1, 1, 1), "one user with 1, one with 2 or 3, one with 4 to 7"
    assert (log.repeats.share, log.repeats.immediate, log.repeats.distances) == (3 / 8, 1 / 8, (1, 2))


def test_ties_of_the_shop_by_hand() -> None:
    ties = described(SHOP).ties
    assert ties is not None
    assert (ties.share, ties.last, ties.duplicates, ties.resolution) == (2 / 8, 0, 1 / 8, "hour")
    ending = described([[(1, 5), (2, 5)], [(1, 5), (2, 6)], [(3, 7)]]).ties
    assert ending is not None
    assert (ending.share, ending.last, ending.resolution) == (1 / 5, 1 / 2, "finer")


def test_the_calendar_of_the_shop_by_hand() -> None:
    time = described(SHOP).calendar
    assert time is not None
    assert (time.first, time.last, time.longest_gap) == (0, 9 * DAY, 8 * DAY - HOUR)
    assert time.hours[:4] == (4, 3, 0, 1)
    assert (sum(time.hours), len(time.hours)) == (8, 24)
    assert time.weekdays == (0, 0, 0, 4, 3, 1, 0), "Thursday 1970-01-01, Friday, and the Saturday of the week after"
    assert (time.period, time.first_period, len(time.counts)) == ("6 hours", 0, 37)
    assert (time.counts[0], time.counts[4], time.counts[36]) == (4, 3, 1)
    assert time.largest_instant == 2 / 8
    assert time.median_user_span == 2 * HOUR


def test_popularity_by_hand() -> None:
    curve = described([[(1, time) for time in range(6)], [(2, 0), (3, 1)]]).popularity
    assert (curve.ranks, curve.counts) == ((1, 2, 3), (6, 1, 1))
    assert (curve.top_1, curve.top_10, curve.once) == (6 / 8, 6 / 8, 2 / 3)
    absolute_differences = (6 - 1) * 2 * 2  # over ordered pairs of items
    assert curve.gini == pytest.approx(absolute_differences / (2 * 3 * 8))
    assert described([[(1, 0), (2, 1), (3, 2)]]).popularity.gini == pytest.approx(0)


def test_stray_events_take_most_of_the_time() -> None:
    steady = [(1, second) for second in range(2000)]
    calm, stray = described([steady]).calendar, described([[*steady, (1, 99_999)]]).calendar
    assert calm is not None
    assert stray is not None
    assert calm.stray == pytest.approx(4 / 1999)
    assert stray.stray == pytest.approx(1 - (1998 - 2) / 99_999)


def test_a_period_is_as_fine_as_120_columns_allow() -> None:
    for span, period in ((119 * HOUR, "hour"), (120 * HOUR, "6 hours"), (119 * 6 * HOUR + 1, "6 hours")):
        time = described([[(1, 0), (2, span)]]).calendar
        assert time is not None
        assert time.period == period
        assert len(time.counts) <= 120
    centuries = described([[(1, 0), (2, 400 * 365 * DAY)]]).calendar
    assert centuries is not None
    assert centuries.period == "52 weeks"


def test_times_before_1970_have_their_hour_and_day() -> None:
    time = described([[(1, -HOUR), (2, 0)]]).calendar
    assert time is not None
    assert (time.hours[23], time.hours[0]) == (1, 1)
    assert time.weekdays == (0, 0, 1, 1, 0, 0, 0)
    assert (time.first_period, time.counts) == (-HOUR, (1, 1))


def test_events_in_an_order_have_no_calendar() -> None:
    log = described([[(1, 1), (2, 2)], [(1, 3)]], "order")
    assert (log.ties, log.calendar) == (None, None)


@given(HISTORIES)
def test_repeats_and_ties_equal_plain_loops(histories: Histories) -> None:
    log = described(histories)
    events = sum(len(user) for user in histories)
    gaps: Counter[int] = Counter()
    tied = duplicates = 0
    for user in histories:
        for place, (item, time) in enumerate(user):
            earlier = [other for other in range(place) if user[other][0] == item]
            if earlier:
                gaps[int(np.log2(place - earlier[-1]))] += 1
            tied += place > 0 and user[place - 1][1] == time
            duplicates += (item, time) in user[:place]
    assert log.ties is not None
    assert log.repeats.share == gaps.total() / events
    assert log.repeats.distances == tuple(gaps[bucket] for bucket in range(max(gaps, default=-1) + 1))
    assert (log.ties.share, log.ties.duplicates) == (tied / events, duplicates / events)
    pairs = {(row, item) for row, user in enumerate(histories) for item, _ in user}
    items = {item for user in histories for item, _ in user}
    assert log.sparsity == pytest.approx(1 - len(pairs) / len(items) / len(histories))


def test_what_a_split_asks_by_hand() -> None:
    """Items 1 and 2 are trained on; of the two test cases one has item 3 and a user without training events."""
    store = store_of([[(1, 10), (2, 20)], [(1, 30), (2, 35)], [(3, 40)]])
    log = describe(store, "timestamp", Splits({"time": split_of([2, 1, 0], [2, 1, 0])}, {}), {})
    test = log.splits["time"]["test"]
    assert (test.cases, test.new_user, test.cold_item, test.future) == (2, 1 / 2, 1 / 2, 0)
    assert (log.splits["time"]["validation"].cases, log.splits["time"]["validation"].future) == (0, 0)
    early = store_of([[(1, 10), (2, 20), (2, 25)], [(1, 3), (2, 5), (1, 12)], [(1, 1), (2, 10), (1, 11)]])
    loo = Splits({"last-item": split_of([1, 1, 1], [2, 2, 2])}, {})
    leaky = describe(early, "timestamp", loo, {}).splits["last-item"]
    assert leaky["validation"].future == pytest.approx(1 / 3 / 3), "of 10, 3, 1 one lies after 5, none after 20 and 10"
    assert leaky["test"].future == 0
    ordered = describe(early, "order", loo, {})
    assert ordered.splits["last-item"]["test"].future is None


def test_splits_that_cannot_be_made_say_why() -> None:
    short = possible_splits(store_of([[(1, 5)], [(2, 5)]]), "timestamp")
    assert not short.made
    assert "none of 2 users has three events" in short.refused["last-item"]
    assert "holds none of the 2 events" in short.refused["time"]
    assert set(possible_splits(store_of([[(1, 1), (2, 2), (3, 3)]]), "order").made) == {"last-item"}


def test_a_log_without_events_is_refused() -> None:
    with pytest.raises(DataError, match="holds no event"):
        described([])
