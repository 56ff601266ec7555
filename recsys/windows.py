"""How histories are cut into training windows, in one place; what is promised is in docs/windows.md.

    events            o o o o o o o o o         length 4
    sliding           [-----]                   as the model lays them: neighbours share what the model overlaps
                            [-----] ...
    sliding, stride 2     [t t t t]             laid every 2 events from the newest one backwards; t is taught,
                              [c c t t]         c is context: every event is taught in exactly one window
                                  [c c t t]
    last                          [-----]       the newest window alone
    session gap       [-----]   [-]   [-----]   no window reaches over a pause longer than the gap

A gap makes segments of each user's training events; each segment is then cut as if it were a user's history.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl

from recsys.batches import TrainingWindows, WindowShape
from recsys.errors import ConfigError
from recsys.sequences import IntArray
from recsys.splits import TrainingEvents

WindowKind = Literal["sliding", "last"]
MINUTE = 60_000_000


@dataclass(frozen=True, kw_only=True)
class WindowPolicy:
    """`stride`: events between neighbours, 0 for the model's own; `session_gap`: minutes of inactivity, 0 for none."""

    kind: WindowKind = "sliding"
    stride: int = 0
    session_gap: float = 0.0

    def __post_init__(self) -> None:
        if self.stride < 0 or self.session_gap < 0:
            raise ConfigError(f"windows: stride={self.stride} and session_gap={self.session_gap} must be at least 0.")
        if self.stride and self.kind == "last":
            raise ConfigError(f"windows: kind=last has one window, so stride={self.stride} has no meaning; leave it 0.")

    def check(self, shape: WindowShape) -> None:
        """Refuses a stride that would leave events untaught or without any context."""
        longest = shape.length - min(1, shape.overlap)
        if self.stride > longest:
            raise ConfigError(
                f"windows: stride={self.stride} would leave out events between windows of {shape.length}; choose at "
                f"most {longest}, or a longer model.max_len."
            )


@dataclass(frozen=True)
class Segments:
    """Runs of events that windows are cut from: events `starts:stops` of the histories of `users`; arrays [S]."""

    users: IntArray
    starts: IntArray
    stops: IntArray


def cut_windows(events: TrainingEvents, shape: WindowShape, policy: WindowPolicy) -> TrainingWindows:
    """All training windows of `events` under a policy; the default one is `TrainingWindows.cut`."""
    policy.check(shape)
    segments = segments_of(events, policy.session_gap)
    lengths = segments.stops - segments.starts
    cut = slide(lengths, shape.length, policy.stride) if policy.stride else TrainingWindows.cut(lengths, shape)
    if policy.kind == "last":
        newest = np.append(True, cut.users[1:] != cut.users[:-1])[: len(cut)]
        cut = TrainingWindows(cut.users[newest], cut.starts[newest], cut.stops[newest], cut.groups[newest])
    first = segments.starts[cut.users]
    return replace(
        cut,
        users=segments.users[cut.users],
        starts=cut.starts + first,
        stops=cut.stops + first,
        taught_from=None if cut.taught_from is None else cut.taught_from + first,
    )


def segments_of(events: TrainingEvents, session_gap: float) -> Segments:
    """Each user's training events as one segment, or parted at pauses longer than `session_gap` minutes."""
    if not session_gap:
        return Segments(np.arange(len(events.stops)), np.zeros_like(events.stops), events.stops)
    users, places = events.users, events.store.event_positions()[events.mask]
    begins = np.ones(len(users), dtype=np.bool_)
    begins[1:] = (users[1:] != users[:-1]) | (np.diff(events.timestamps) > session_gap * MINUTE)
    first = np.flatnonzero(begins)
    sizes = np.diff(first, append=len(users))
    return Segments(users[first], places[first], places[first] + sizes)


def slide(lengths: IntArray, length: int, stride: int) -> TrainingWindows:
    """Windows every `stride` events from the newest backwards, until one holds the first event.

    A window teaches its newest `stride` events, the oldest one all of its own: every event is taught exactly once.
    Histories of one event are left out.
    """
    usable = np.flatnonzero(lengths >= 2)
    per_row = 1 + np.maximum(0, -(-(lengths[usable] - length) // stride))
    rows = np.repeat(usable, per_row)
    back = np.arange(len(rows)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    stops = lengths[rows] - back * stride
    starts = np.maximum(0, stops - length)
    taught_from = np.where(back == np.repeat(per_row, per_row) - 1, 0, stops - stride)
    return TrainingWindows(users=rows, starts=starts, stops=stops, groups=np.zeros_like(rows), taught_from=taught_from)


def sessions(events: pl.DataFrame, gap: float) -> pl.DataFrame:
    """Ordered events with a `session_id`, `user/1`, `user/2`, ...: a new one after `gap` minutes without an event."""
    pause = pl.col("timestamp").diff().over("user_id") > gap * MINUTE
    number = 1 + pause.fill_null(value=False).cast(pl.Int64).cum_sum().over("user_id")
    return events.with_columns(session_id=pl.concat_str("user_id", pl.lit("/"), number))


def collapsed(events: pl.DataFrame) -> pl.DataFrame:
    """Ordered events without those whose item is that of the same user's event before: of a run the first stays."""
    again = (pl.col("item_id") == pl.col("item_id").shift()) & (pl.col("user_id") == pl.col("user_id").shift())
    return events.filter(~again.fill_null(value=False))
