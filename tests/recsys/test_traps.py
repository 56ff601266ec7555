"""Each trap is seen where it is, and nowhere else; its sentence has the log's own figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from builders import split_of, store_of

from recsys.description import DAY, HOUR, Splits, describe, possible_splits
from recsys.schema import TimeKind
from recsys.splits import split_last_item
from recsys.traps import Trap, find_traps

Histories = Sequence[Sequence[tuple[int, int]]]
MINUTE = HOUR // 60


def traps_of(histories: Histories, time: TimeKind = "timestamp", **settings: Any) -> dict[str, Trap]:
    """By name; with both splits unless told otherwise."""
    store = store_of(histories)
    splits = settings.get("splits") or possible_splits(store, time)
    rejected: Mapping[str, int] = settings.get("rejected", {})
    return {trap.name: trap for trap in find_traps(describe(store, time, splits, rejected))}


def calm(users: int = 400, events: int = 50, items: int = 97) -> list[list[tuple[int, int]]]:
    """Users who each have 50 different items over the same forty days, at times of their own."""
    rng = np.random.default_rng(0)
    return [
        [
            (1 + (7 * user + place) % items, int(place * 0.8 * DAY) + 1001 * user + int(rng.integers(HOUR)))
            for place in range(events)
        ]
        for user in range(users)
    ]


def changed(places: Mapping[tuple[int, int], tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The calm log with some events replaced, in time order."""
    log = calm()
    for (user, place), event in places.items():
        log[user][place] = event
    return [sorted(user, key=lambda event: event[1]) for user in log]


def test_a_calm_log_has_no_trap_but_its_size() -> None:
    found = traps_of(calm())
    assert list(found) == ["few-cases"]
    assert found["few-cases"].found == "the test part has 400 cases (split last-item)"
    assert "or enlarge --test-share" in found["few-cases"].advice
    assert not traps_of(calm(1000))


def test_order_only() -> None:
    found = traps_of(calm(), "order")
    assert {"order-only", "leave-one-out"} <= set(found), "its only split looks ahead"
    assert "how much cannot be told" in found["leave-one-out"].found


def test_leave_one_out_where_it_is_the_split() -> None:
    log = [[(1 + place, user * DAY + place * HOUR) for place in range(4)] for user in range(10)]
    store = store_of(log)
    trap = traps_of(log, splits=Splits({"last-item": split_last_item(store)}, {}))["leave-one-out"]
    assert "(45.0% of them, in the mean)" in trap.found, "training of nine, eight, ... later users lies after"
    assert "leave-one-out" not in traps_of(log), "a dataset is not split yet"


def test_ties_and_duplicates() -> None:
    log = [[(1 + place, place // 2 * HOUR) for place in range(10)] for _ in range(20)]
    trap = traps_of(log)["ties"]
    assert "50.0% of the events" in trap.found
    assert "100.0% of the users end in a tie (times are whole hours)" in trap.found
    assert "duplicates" not in traps_of(log)
    twice = [[(1 + place // 2, place // 2 * HOUR) for place in range(10)] for _ in range(20)]
    assert "100 events equal another one" in traps_of(twice)["duplicates"].found
    assert "ingest dropped 7" in traps_of(calm(), rejected={"duplicate": 7})["duplicates"].found


def test_dates_in_place_of_times() -> None:
    assert "dates" in traps_of([[(1 + place, place * DAY) for place in range(9)]])
    assert "dates" not in traps_of([[(1 + place, place * DAY + MINUTE) for place in range(9)]])


def test_repeats_and_immediate_repeats() -> None:
    found = traps_of([[(1 + place % 5, place * HOUR) for place in range(10)] for _ in range(9)])
    assert "50.0% of the events" in found["repeats"].found
    assert "immediate-repeats" not in found
    runs = traps_of([[(1 + place // 2, place * HOUR) for place in range(10)] for _ in range(9)])
    assert "50.0% of the events" in runs["immediate-repeats"].found


def test_cold_items_and_new_users() -> None:
    store = store_of([[(1, 1), (2, 2)], [(3, 3), (3, 4)], [(1, 5), (2, 6)]])
    found = {
        trap.name: trap.found
        for trap in find_traps(describe(store, "timestamp", Splits({"time": split_of([2, 0, 0], [2, 0, 0])}, {}), {}))
    }
    assert "50.0% of the test cases" in found["cold-items"]
    assert "100.0% of the test cases" in found["new-users"]


def test_histories_of_an_hour_in_a_log_of_days() -> None:
    short = [[(1 + place, user * HOUR + place * MINUTE) for place in range(5)] for user in range(100)]
    assert "less than 0.1 hours in a log of 4 days" in traps_of(short)["sessions"].found
    assert "sessions" not in traps_of([history[:1] for history in short]), "single events have no span"


def test_users_with_one_event_and_users_with_most() -> None:
    few = [*calm(60), *([(1, 5 * DAY)] for _ in range(40))]
    assert "40.0% of the users" in traps_of(few)["single-events"].found
    log = [[(1, user)] for user in range(1999)]
    busy = [*log, [(2 + place, place) for place in range(500)]]
    assert "made 20.0% of the events" in traps_of(busy)["busiest-users"].found
    assert "busiest-users" not in traps_of(busy[1500:]), "of five hundred users the busiest thousandth is none"


def test_popular_items() -> None:
    log = [[(1, 2 * user), (2 + user % 150, 2 * user + 1)] for user in range(300)]
    assert "holds 50.0% of the events" in traps_of(log)["popularity"].found


def test_times_with_holes_strays_and_imports() -> None:
    late = {(user, 49): (60, 60 * DAY + user) for user in range(400)}
    assert "of the log's time" in traps_of(changed(late))["gap"].found
    stray = traps_of(changed({(0, 0): (90, 400 * DAY)}))
    assert "stray-times" in stray
    imported = {(user, 3): (70, 5 * DAY) for user in range(150)}
    assert "0.8% of all events" in traps_of(changed(imported))["one-instant"].found


def test_rows_that_were_lost() -> None:
    assert "5.0% of the rows" not in str(traps_of(calm(10), rejected={"missing item_id": 1}))
    trap = traps_of(calm(19), rejected={"missing item_id": 50, "duplicate": 0})["rejected"]
    assert trap.found == "5.0% of the rows became no event (missing item_id: 50)"


def test_a_log_that_cannot_be_split_says_so() -> None:
    trap = traps_of([[(1, 5)], [(2, 5)]])["no-split"]
    assert "none of 2 users has three events" in trap.found
