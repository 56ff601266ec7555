"""Times as written -> microseconds since 1970 UTC, against Python's own datetime."""

import logging
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.timestamps import TimeUnit, guess_unit, to_microseconds

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(1950, 1, 1), datetime(2090, 1, 1))
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def microseconds(moment: datetime) -> int:
    """Exact, without floats."""
    return (moment - EPOCH) // timedelta(microseconds=1)


@given(st.lists(st.tuples(MOMENTS, OFFSETS), min_size=1))
def test_iso_texts_with_any_offset_equal_pythons_datetime(moments: list[tuple[datetime, timezone]]) -> None:
    aware = [moment.replace(tzinfo=offset) for moment, offset in moments]
    read = to_microseconds(pl.Series([moment.isoformat() for moment in aware]), "iso")
    assert read.to_list() == [microseconds(moment) for moment in aware]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2020-01-02", datetime(2020, 1, 2, tzinfo=UTC)),
        ("2020-01-02T03:04", datetime(2020, 1, 2, 3, 4, tzinfo=UTC)),
        ("2020-01-02 03:04:05.25Z", datetime(2020, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)),
        (" 2020-01-02t03:04:05z ", datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2020-01-02 03:04:05-02", datetime(2020, 1, 2, 5, 4, 5, tzinfo=UTC)),
        ("2020-01-02 03:04:05 +0130", datetime(2020, 1, 2, 1, 34, 5, tzinfo=UTC)),
    ],
)
def test_iso_forms(text: str, moment: datetime) -> None:
    assert to_microseconds(pl.Series([text]), "s").to_list() == [microseconds(moment)]


@pytest.mark.parametrize(
    "text", ["2020-13-01", "2020-02-30", "yesterday", "01/02/2020", "nan", "inf", "1e30", "9" * 25]
)
def test_unreadable_texts_are_null(text: str) -> None:
    assert to_microseconds(pl.Series([text, "12"]), "s").to_list() == [None, 12_000_000]


@pytest.mark.parametrize(
    ("unit", "expected"), [("min", 90 * 10**6), ("s", 1_500_000), ("ms", 1_500), ("us", 2), ("ns", 0)]
)
def test_units_scale_fractions(unit: str, expected: int) -> None:
    assert to_microseconds(pl.Series(["1.5"]), unit).to_list() == [expected]  # type: ignore[arg-type]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_whole_seconds_are_exact_or_null(seconds: list[int]) -> None:
    inside = (2**63 - 1) // 10**6
    expected = [second * 10**6 if abs(second) <= inside else None for second in seconds]
    assert to_microseconds(pl.Series(seconds, dtype=pl.Int64), "s").to_list() == expected
    assert to_microseconds(pl.Series([str(second) for second in seconds]), "s").to_list() == expected


def test_iso_unit_refuses_numbers() -> None:
    assert to_microseconds(pl.Series(["20200102", "2020-01-02"]), "iso").to_list() == [None, 1_577_923_200_000_000]


def test_date_columns_ignore_the_unit() -> None:
    eastern = pl.Series([datetime(2020, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))])
    assert to_microseconds(eastern, "min").to_list() == [1_577_836_800_000_000]
    assert to_microseconds(pl.Series([date(2020, 1, 1), None]), "ms").to_list() == [1_577_836_800_000_000, None]


def test_columns_that_hold_no_times_are_refused() -> None:
    with pytest.raises(DataError, match="column 'flag' holds Boolean, not times"):
        to_microseconds(pl.Series("flag", [True]), "s")


@pytest.mark.parametrize(
    ("number", "unit"), [(1.6e9, "s"), (1.6e12, "ms"), (1.6e15, "us"), (1.6e18, "ns"), (-1.6e12, "ms")]
)
def test_unit_is_guessed_by_magnitude(number: float, unit: str) -> None:
    assert guess_unit(pl.Series([number] * 3 + [5e18, float("nan")])) == unit
    assert guess_unit(pl.Series([str(int(number))] * 3 + ["", "2020-01-01"])) == unit


def test_no_numbers_leave_the_unit_open() -> None:
    assert guess_unit(pl.Series(["2020-01-01", None])) == "auto"
    assert guess_unit(pl.Series([date(2020, 1, 1)])) == "auto"


def test_numbers_too_small_for_seconds_are_remarked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert guess_unit(pl.Series([458_435, 20])) == "s"
    assert "pass --time-unit" in caplog.text


@pytest.mark.parametrize(
    ("unit", "written", "days"),
    [
        ("mmdd", ["0829", 829, "229", "0230", "x", None], ["2000-08-29", "2000-08-29", "2000-02-29", None, None, None]),
        ("yyyymmdd", ["20260301", 20260301, "2026031", "", None], ["2026-03-01", "2026-03-01", None, None, None]),
    ],
)
def test_days_written_as_digits(unit: TimeUnit, written: list[Any], days: list[str | None]) -> None:
    times = pl.Series([None if value is None else str(value) for value in written], dtype=pl.String)
    expected = pl.Series(days, dtype=pl.String).str.to_datetime("%Y-%m-%d", time_unit="us").dt.epoch("us")
    assert to_microseconds(times, unit).to_list() == expected.to_list()
    numbers = pl.Series([value for value in written if isinstance(value, int)])
    assert to_microseconds(numbers, unit).to_list() == expected.to_list()[1:2]
