"""Periods of a log, one after the other, as a backtest replays it: a length such as `1h`, cut at whole multiples."""

import re
from dataclasses import dataclass

import numpy as np

from recsys.errors import ConfigError, DataError
from recsys.metrics import IntArray

MICROSECONDS = {"m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}
MOST_PERIODS = 5_000
FEWEST_PERIODS = 2


@dataclass(frozen=True)
class Period:
    """Events from `start` until before `stop` (microseconds since 1970 UTC); `number` counts periods with events."""

    number: int
    start: int
    stop: int


def period_length(text: str) -> int:
    """Microseconds of a text such as `30m`, `1h`, `1d`, `2w`."""
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    if match is None or int(match[1]) == 0:
        raise ConfigError(
            f"every={text!r} is no length of time; give a whole number of minutes, hours, days or weeks, such as 30m, "
            "1h, 1d or 4w."
        )
    return int(match[1]) * MICROSECONDS[match[2]]


def cut_periods(timestamps: IntArray, every: str, first: int | None, until: int | None) -> tuple[Period, ...]:
    """The periods that hold events, cut at multiples of `every` since 1970 (or since `first`).

    The first begins at `first`, or else where half of all events are known; the last holds the last event before
    `until`. What lies before the first is what every model begins with.
    """
    length, last = period_length(every), int(timestamps.max()) if until is None else until - 1
    if first is None:
        middle = int(np.partition(timestamps, len(timestamps) // 2)[len(timestamps) // 2])
        first = -(-middle // length) * length
    known = int((timestamps < first).sum())
    if known == 0:
        raise DataError(
            f"periods: none of {len(timestamps)} events lies before the first period; begin later, so that there is "
            "something to learn from."
        )
    replayed = timestamps[(timestamps >= first) & (timestamps <= last)]
    numbers = np.unique((replayed - first) // length).tolist()
    if len(numbers) < FEWEST_PERIODS:
        raise DataError(
            f"periods: the {len(replayed)} events to replay lie in {len(numbers)} periods of {every}, and a model can "
            f"grow old over {FEWEST_PERIODS} or more; choose a shorter period or an earlier beginning."
        )
    if len(numbers) > MOST_PERIODS:
        raise DataError(
            f"periods: {every} cuts the log into {len(numbers)} periods with events, each with its trainings, and at "
            f"most {MOST_PERIODS} are replayed; choose a longer period, or an earlier end."
        )
    return tuple(
        Period(number, first + place * length, first + (place + 1) * length) for number, place in enumerate(numbers)
    )
