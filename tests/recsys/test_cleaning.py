"""Rows become events or are rejected, none is lost; order and duplicates against plain Python."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.cleaning import (
    CleanRows,
    clean,
    log_counts,
    order_events,
    refuse_empty,
    refuse_wrong_unit,
    validated,
    without_duplicates,
)
from recsys.errors import DataError
from recsys.source_files import RawTable, with_rows

ROLES = {"user_id": "u", "item_id": "i", "timestamp": "t", "value": "v", "event_type": "e"}
USERS = st.sampled_from(["a", "b", "ä", "a ", "", " ", None])
ITEMS = st.sampled_from(["x", "y", None])
TIMES = st.sampled_from(["1", "2", "2.0", "2020-01-01", "never", "99999999999", "-99999999999", None])
VALUES = st.sampled_from(["1", "1.0", "nan", "inf", "many", "", None])
TYPES = st.sampled_from(["buy", None])
ROWS = st.lists(st.tuples(USERS, ITEMS, TIMES, VALUES, TYPES), min_size=1, max_size=40)
Row = tuple[str | None, str | None, str | None, str | None, str | None]


def table(rows: list[Row]) -> RawTable:
    """Text rows as a source."""
    frame = pl.DataFrame(rows, schema=dict.fromkeys("uitve", pl.String), orient="row")
    return RawTable(path=Path("log.csv"), layout="csv", frame=with_rows(frame))


def columns(**values: list[object]) -> RawTable:
    """Typed columns as a source."""
    return RawTable(path=Path("log.parquet"), layout="parquet", frame=with_rows(pl.DataFrame(values)))


def reason_by_hand(row: Row) -> str | None:
    """The first thing that is wrong with a row."""
    user, item, time, value, _ = row
    if user is None or not user.strip():
        return "missing user_id"
    if item is None:
        return "missing item_id"
    if time is None:
        return "missing timestamp"
    if time == "never":
        return "unreadable timestamp"
    if time.strip("-") == "99999999999":
        return "implausible timestamp"
    return "value is not a number" if value in {"nan", "inf", "many"} else None


@given(ROWS)
def test_every_row_is_an_event_or_rejected_for_its_reason(rows: list[Row]) -> None:
    cleaned = clean(table(rows), ROLES, "s", first_order=0)
    reasons = [reason_by_hand(row) for row in rows]
    bad = [(place, reason) for place, reason in enumerate(reasons, start=1) if reason]
    assert cleaned.rejected.select("row", "reason").rows() == bad
    assert cleaned.events["#row"].to_list() == [place for place, reason in enumerate(reasons, start=1) if not reason]


@given(ROWS)
def test_order_and_duplicates_equal_plain_python(rows: list[Row]) -> None:
    events = clean(table(rows), ROLES, "s", first_order=0).events
    unique = without_duplicates(order_events(events))
    by_hand = sorted(events.rows(named=True), key=lambda row: (row["user_id"].encode(), row["timestamp"]))
    seen, kept, repeated = set(), [], []
    for row in by_hand:
        event = (row["user_id"], row["item_id"], row["timestamp"], row["event_type"], row["value"])
        (repeated if event in seen else kept).append(row["#row"])
        seen.add(event)
    assert unique.events["#row"].to_list() == kept
    assert unique.rejected["row"].to_list() == sorted(repeated)
    assert set(unique.rejected["reason"]) <= {"duplicate"}


def test_rows_of_later_sources_go_on_counting() -> None:
    rows: list[Row] = [("a", "x", None, None, None), ("a", None, None, None, None), ("a", "y", None, None, None)]
    events = clean(table(rows), {"user_id": "u", "item_id": "i"}, "s", first_order=10).events
    assert events.select("item_id", "timestamp").rows() == [("x", 11), ("y", 13)]


def test_unreadable_rows_keep_the_readers_reason() -> None:
    source = table([("a", "x", "1", None, None), (None, None, None, None, None)])
    frame = source.frame.with_columns(pl.Series("#problem", [None, "wrong number of fields"], dtype=pl.String))
    cleaned = clean(RawTable(path=source.path, layout="csv", frame=frame), ROLES, "s", first_order=0)
    assert cleaned.rejected.rows() == [
        ("log.csv", 2, None, "wrong number of fields", '{"u":null,"i":null,"t":null,"v":null,"e":null}')
    ]


def test_typed_columns() -> None:
    source = columns(
        u=[1.0, 2.0, None, float("nan")], i=[7, 8, 9, 9], t=[1, 2, 3, 4], v=[0.5, float("nan"), 1e300, 2.0]
    )
    cleaned = clean(source, {"user_id": "u", "item_id": "i", "timestamp": "t", "value": "v"}, "s", first_order=0)
    assert cleaned.events.select("user_id", "item_id", "timestamp", "value").rows() == [("1", "7", 1_000_000, 0.5)]
    assert cleaned.rejected["reason"].to_list() == ["value is not a number", "missing user_id", "missing user_id"]


def test_float_ids_that_are_no_whole_numbers_stay_as_they_are() -> None:
    source = columns(u=[1.5, 2.0], i=[float("inf"), 7.0])
    events = clean(source, {"user_id": "u", "item_id": "i"}, "s", first_order=0).events
    assert events["user_id"].to_list() == ["1.5", "2.0"]
    assert events["item_id"].to_list() == ["inf", "7.0"]


def test_columns_of_lists_cannot_be_ids() -> None:
    with pytest.raises(DataError, match=r"log.parquet: column 'i' holds List\(List\(String\)\), not single values"):
        clean(columns(u=["a"], i=[[["x"]]]), {"user_id": "u", "item_id": "i"}, "s", first_order=0)


def test_columns_of_other_things_cannot_be_times() -> None:
    with pytest.raises(DataError, match=r"log.parquet: column 't' holds Boolean, not times"):
        clean(
            columns(u=["a"], i=["x"], t=[True]), {"user_id": "u", "item_id": "i", "timestamp": "t"}, "s", first_order=0
        )


def test_the_bounds_of_plausible_times() -> None:
    texts = ["1899-12-31T23:59:59.999999Z", "1900-01-01", "2261-12-31T23:59:59.999999Z", "2262-01-01"]
    rows: list[Row] = [("a", "x", text, None, None) for text in texts]
    cleaned = clean(table(rows), ROLES, "s", first_order=0)
    assert cleaned.events["#row"].to_list() == [2, 3]
    assert cleaned.rejected["reason"].to_list() == ["implausible timestamp"] * 2


def test_a_unit_that_makes_most_times_implausible_is_refused() -> None:
    rows: list[Row] = [("a", "x", time, None, None) for time in ("5", "1600000000000", "1600000000001")]
    half, most = (clean(table(rows[:count]), ROLES, "s", first_order=0) for count in (2, 3))
    refuse_wrong_unit(len(half.events) + len(half.rejected), half.rejected, "s")
    with pytest.raises(
        DataError,
        match=r"log.csv: times of 2 of 3 rows, read with --time-unit s, lie outside the years 1900 to 2261 \(row 2: .*"
        "1600000000000.*name the right --time-unit",
    ):
        refuse_wrong_unit(3, most.rejected, "s")


def test_bytes_in_a_rejected_row_are_shown() -> None:
    cleaned = clean(columns(u=[None, "a"], i=["x", "y"], b=[b"\xff", b""]), {"user_id": "u", "item_id": "i"}, "s", 0)
    assert cleaned.rejected["content"].to_list() == ['{"u":null,"i":"x","b":"/w=="}']


def test_counts_by_hand() -> None:
    rows: list[Row] = [("b", "x", "5", None, None), ("a", "x", "1", None, None), ("a", "y", "1", None, None)]
    cleaned = clean(table([*rows, ("a", "x", "2", "?", None), ("a", "x", "3", None, None)]), ROLES, "s", first_order=0)
    counts = log_counts(validated(CleanRows(order_events(cleaned.events), cleaned.rejected)), "timestamp")
    assert counts == {
        "rows": 5,
        "accepted": 4,
        "rejected": {"value is not a number": 1},
        "users": 2,
        "items": 2,
        "time": "timestamp",
        "first_timestamp": 1_000_000,
        "last_timestamp": 5_000_000,
        "tied_events": 1,
        "repeated_events": 1,
        "tied_share": 0.25,
        "repeat_share": 0.25,
    }


def test_nothing_accepted_says_the_commonest_reason() -> None:
    rows: list[Row] = [("a", None, "1", None, None), ("a", "x", "?", None, None), ("b", "x", "?", None, None)]
    cleaned = clean(table(rows), ROLES, "s", first_order=0)
    with pytest.raises(
        DataError, match=r"log.csv: all 3 rows were rejected, 2 of them for: unreadable timestamp \(row 2: "
    ):
        refuse_empty(0, cleaned.rejected, [Path("log.csv")])
    with pytest.raises(DataError, match=r"log.csv and 1 more: a header and no data rows"):
        refuse_empty(0, cleaned.rejected.clear(), [Path("log.csv"), Path("b.csv")])


@pytest.mark.parametrize(
    "lists",
    [['["x", "y"]', "['z', 7]", "[]", None], [["x", "y"], ["z", "7"], [], None], ["['x', 'y']", "[oops]", "", "[]"]],
)
def test_a_row_of_several_items_is_an_event_each(lists: list[Any]) -> None:
    cleaned = clean(columns(u=list("abcd"), i=lists), {"user_id": "u", "item_id": "i"}, "s", first_order=10)
    if "[oops]" in lists:
        assert cleaned.events["item_id"].to_list() == [lists[0], lists[1], lists[3]], "not all are lists"
        return
    assert cleaned.events.select("user_id", "item_id", "timestamp").rows() == [
        ("a", "x", 11),
        ("a", "y", 12),
        ("b", "z", 13),
        ("b", "7", 14),
    ]
    assert cleaned.rejected.select("row", "reason").rows() == [(3, "missing item_id"), (4, "missing item_id")]
