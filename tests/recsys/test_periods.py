"""Cutting a log into periods."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import ConfigError, DataError
from recsys.periods import Period, cut_periods, period_length

HOUR = 3_600_000_000


def test_lengths() -> None:
    assert [period_length(text) for text in ("30m", "1h", "2d", "4w")] == [HOUR // 2, HOUR, 48 * HOUR, 672 * HOUR]


@pytest.mark.parametrize("text", ["1", "h", "0h", "1.5h", "1y", "-1h", "1 h"])
def test_what_is_no_length_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"every='{text}' is no length of time; give a whole number of minutes"):
        period_length(text)


def test_periods_begin_at_whole_hours_where_half_is_known_and_skip_empty_ones() -> None:
    minutes = np.array([10, 20, 30, 40, 61, 62, 125, 260, 299])
    found = cut_periods(minutes * 60_000_000, "1h", first=None, until=None)
    assert found == (Period(0, 2 * HOUR, 3 * HOUR), Period(1, 4 * HOUR, 5 * HOUR))


def test_given_instants_are_kept_to() -> None:
    minutes = np.arange(0, 600, 7) * 60_000_000
    found = cut_periods(minutes, "1h", first=HOUR + 5, until=4 * HOUR + 5)
    assert [(period.number, period.start - 5) for period in found] == [(0, HOUR), (1, 2 * HOUR), (2, 3 * HOUR)]


@given(st.lists(st.integers(0, 40 * HOUR), min_size=4, max_size=60), st.integers(1, 9))
def test_every_event_from_the_first_period_on_lies_in_one(times: list[int], hours: int) -> None:
    timestamps = np.array(times)
    try:
        found = cut_periods(timestamps, f"{hours}h", first=None, until=None)
    except DataError:
        return
    lying = sum(((timestamps >= period.start) & (timestamps < period.stop)).astype(int) for period in found)
    assert np.array_equal(lying, (timestamps >= found[0].start).astype(int))
    assert all((timestamps[(timestamps >= period.start)] < period.stop).any() for period in found)
    assert [period.number for period in found] == list(range(len(found)))


@pytest.mark.parametrize(
    ("every", "first", "until", "message"),
    [
        ("1w", None, None, "the 0 events to replay lie in 0 periods of 1w, and a model can grow old over 2 or more"),
        ("1h", 0, None, "none of 86 events lies before the first period; begin later"),
        ("1h", HOUR, 2 * HOUR, "lie in 1 periods of 1h"),
    ],
)
def test_too_few_periods(every: str, first: int | None, until: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cut_periods(np.arange(0, 600, 7) * 60_000_000, every, first, until)


def test_too_many_periods() -> None:
    with pytest.raises(DataError, match="1m cuts the log into 5500 periods with events"):
        cut_periods(np.arange(0, 11_000) * 60_000_000, "1m", first=5500 * 60_000_000, until=None)
