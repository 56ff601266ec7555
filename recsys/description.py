"""What a log is like before anything learns from it: the figures of `recsys describe`.

All are counted over a `SequenceStore`, so that a dataset and prepared data are described by the same lines.
Shares are of all events unless said otherwise; times are microseconds since 1970 UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import DataError
from recsys.schema import TimeKind
from recsys.sequences import IntArray, SequenceStore
from recsys.splits import (
    Part,
    Split,
    TrainingEvents,
    build_cases,
    instants_by_share,
    split_by_time,
    split_last_item,
)

FloatArray = npt.NDArray[np.float64]

HOUR = 3_600_000_000
DAY = 24 * HOUR
PERIODS = {"hour": HOUR, "6 hours": 6 * HOUR, "day": DAY, "week": 7 * DAY, "4 weeks": 28 * DAY, "52 weeks": 364 * DAY}
MOST_PERIODS = 120
RESOLUTIONS = {"day": DAY, "hour": HOUR, "minute": 60_000_000, "second": 1_000_000, "millisecond": 1000}
CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Events of a user. `histogram[b]`: users with 2^b to 2^(b+1) - 1 events; `single`: share of users with one event.

    `busiest_share`: share of all events that the busiest thousandth of the users (at least one) made.
    """

    mean: float
    median: float
    p90: float
    p99: float
    longest: int
    single: float
    busiest_share: float
    histogram: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Events of an item, most popular first: `counts[i]` of the item at rank `ranks[i]`, ranks spaced evenly in log.

    `top_1`, `top_10`: share of the events that the first hundredth and tenth of the items hold (at least one item).
    `once`: share of items with one event. `gini`: 0 where all items are equally popular, near 1 where one has all.
    """

    gini: float
    top_1: float
    top_10: float
    once: float
    ranks: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Events whose item the user had before: `share`, and `immediate` where it was the very event before.

    `distances[b]`: repeats that come 2^b to 2^(b+1) - 1 events after the item's last time.
    """

    share: float
    immediate: float
    distances: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Ties:
    """Events with the time of the same user's event before them: their order is that of the source.

    `share`: of all events. `last`: users whose last two events tie, so that the source's order decides what
    leave-one-out predicts (share of the users with two events or more). `duplicates`: events equal in user, item
    and time to one before (share). `resolution`: the largest unit that all times are whole multiples of.
    """

    share: float
    last: float
    duplicates: float
    resolution: str


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """When events happen: `counts` by `period` from `first_period` on, by hour of day, by day of week (Monday first).

    `longest_gap`: time without any event. `stray`: share of the log's time that its first and its last thousandth of
    the events take. `largest_instant`: share of the events at the commonest single time.
    `median_user_span`: from a user's first event to the last, users with one event left out (0 where all have one).
    """

    first: int
    last: int
    period: str
    first_period: int
    counts: tuple[int, ...]
    hours: tuple[int, ...]
    weekdays: tuple[int, ...]
    longest_gap: int
    stray: float
    largest_instant: float
    median_user_span: float


@dataclass(frozen=True, kw_only=True)
class PartShares:
    """Cases of one part of a split, and the shares of them whose user or target the training part does not know.

    `future`: share of the training events that lie after a case, mean over the cases; 0 in a split by time, None
    where the log has no times.
    """

    cases: int
    new_user: float
    cold_item: float
    future: float | None


@dataclass(frozen=True, kw_only=True)
class Description:
    """A log in figures; `ties` and `calendar` are None where it only has an order. `splits`: kind -> part -> shares.

    `sparsity`: share of all (user, item) pairs that never met. `refused`: splits that cannot be made, and why.
    `rejected`: rows that became no event, by reason.
    """

    time: TimeKind
    users: int
    items: int
    events: int
    sparsity: float
    lengths: Lengths
    popularity: Curve
    repeats: Repeats
    ties: Ties | None
    calendar: Calendar | None
    splits: dict[str, dict[Part, PartShares]]
    refused: dict[str, str]
    rejected: dict[str, int]


@dataclass(frozen=True)
class Splits:
    """What a log is split by, and why it cannot be split in other ways."""

    made: Mapping[str, Split]
    refused: Mapping[str, str]


def possible_splits(store: SequenceStore, time: TimeKind, share: float = 0.1) -> Splits:
    """Both kinds with default settings, where the log lets them be made; `share` of the events to each part."""
    made, refused = {}, {}
    try:
        made["last-item"] = split_last_item(store)
    except DataError as error:
        refused["last-item"] = str(error)
    if time == "timestamp":
        try:
            made["time"] = split_by_time(store, *instants_by_share(store.timestamp, share, share))
        except DataError as error:
            refused["time"] = str(error)
    return Splits(made, refused)


def describe(store: SequenceStore, time: TimeKind, splits: Splits, rejected: Mapping[str, int]) -> Description:
    """Figures of all events of `store`, and of what each of `splits` asks of a model."""
    if not store.num_events:
        raise DataError("describe: the log holds no event; there is nothing to describe.")
    counts = np.bincount(store.item_idx)
    pairs, distances = repeat_distances(store)
    timed = time == "timestamp"
    items = int(np.count_nonzero(counts))
    return Description(
        time=time,
        users=store.num_users,
        items=items,
        events=store.num_events,
        sparsity=1 - pairs / (store.num_users * items),
        lengths=describe_lengths(store.lengths),
        popularity=describe_popularity(counts[counts > 0]),
        repeats=Repeats(
            share=len(distances) / store.num_events,
            immediate=int((distances == 1).sum()) / store.num_events,
            distances=by_doubling(distances),
        ),
        ties=describe_ties(store) if timed else None,
        calendar=describe_calendar(store) if timed else None,
        splits={name: describe_split(store, split, len(counts), timed) for name, split in splits.made.items()},
        refused=dict(splits.refused),
        rejected=dict(rejected),
    )


def repeat_distances(store: SequenceStore) -> tuple[int, IntArray]:
    """Distinct (user, item) pairs, and for each event that repeats one how many events ago it was there last."""
    pair = store.event_users() * (int(store.item_idx.max()) + 1) + store.item_idx
    order = np.argsort(pair, kind="stable")
    again = pair[order[1:]] == pair[order[:-1]]
    return len(pair) - int(again.sum()), (order[1:] - order[:-1])[again]


def by_doubling(values: IntArray) -> tuple[int, ...]:
    """How many values (1 or more) lie in [2^b, 2^(b+1)), for b from 0 to that of the largest."""
    return tuple(np.bincount(np.frexp(values)[1] - 1).tolist()) if len(values) else ()


def describe_lengths(lengths: IntArray) -> Lengths:
    """Of events a user, [U]."""
    busiest = np.sort(lengths)[::-1][: max(1, len(lengths) // 1000)]
    median, p90, p99 = np.quantile(lengths, [0.5, 0.9, 0.99]).tolist()
    return Lengths(
        mean=float(lengths.mean()),
        median=median,
        p90=p90,
        p99=p99,
        longest=int(lengths.max()),
        single=float((lengths == 1).mean()),
        busiest_share=float(busiest.sum() / lengths.sum()),
        histogram=by_doubling(lengths),
    )


def describe_popularity(counts: IntArray) -> Curve:
    """Of events an item, those without any left out."""
    falling = np.sort(counts)[::-1]
    total, size = falling.sum(), len(falling)
    ranks = np.unique(np.geomspace(1, size, CURVE_POINTS).round().astype(np.int64))
    return Curve(
        gini=float((size + 1 - 2 * np.cumsum(falling[::-1]).sum() / total) / size),
        top_1=float(falling[: max(1, size // 100)].sum() / total),
        top_10=float(falling[: max(1, size // 10)].sum() / total),
        once=float((falling == 1).mean()),
        ranks=tuple(ranks.tolist()),
        counts=tuple(falling[ranks - 1].tolist()),
    )


def describe_ties(store: SequenceStore) -> Ties:
    """Of times as stored."""
    tied = tied_events(store)
    near = tied | np.append(tied[1:], False)
    same_time = pl.DataFrame({"run": np.cumsum(~tied)[near], "item": store.item_idx[near]})
    several = store.lengths >= 2
    return Ties(
        share=float(tied.mean()),
        last=float(tied[store.offsets[1:][several] - 1].mean()) if several.any() else 0.0,
        duplicates=(len(same_time) - same_time.n_unique()) / store.num_events,
        resolution=next((name for name, unit in RESOLUTIONS.items() if not (store.timestamp % unit).any()), "finer"),
    )


def tied_events(store: SequenceStore) -> npt.NDArray[np.bool_]:
    """True at events with the user and the time of the event before them, [E]."""
    tied = np.zeros(store.num_events, dtype=np.bool_)
    tied[1:] = store.timestamp[1:] == store.timestamp[:-1]
    tied[store.offsets[:-1]] = False
    return tied


def describe_calendar(store: SequenceStore) -> Calendar:
    """Of times in UTC: hours and days of other zones are shifted by their offset."""
    times = np.sort(store.timestamp)
    first, last = int(times[0]), int(times[-1])
    fitting = (name for name, width in PERIODS.items() if last // width - first // width < MOST_PERIODS)
    period = next(fitting, "52 weeks")
    width = PERIODS[period]
    starts = np.flatnonzero(np.append(True, times[1:] != times[:-1]))
    several = store.lengths >= 2
    spans = store.timestamp[store.offsets[1:][several] - 1] - store.timestamp[store.offsets[:-1][several]]
    return Calendar(
        first=first,
        last=last,
        period=period,
        first_period=first // width * width,
        counts=tuple(np.bincount(times // width - first // width).tolist()),
        hours=tuple(np.bincount(times // HOUR % 24, minlength=24).tolist()),
        weekdays=tuple(np.bincount((times // DAY + 3) % 7, minlength=7).tolist()),  # 1970 began on a Thursday
        longest_gap=int(np.diff(times).max(initial=0)),
        stray=_stray(times),
        largest_instant=float(np.diff(starts, append=len(times)).max() / len(times)),
        median_user_span=float(np.median(spans)) if several.any() else 0.0,
    )


def _stray(times: IntArray) -> float:
    ends = len(times) // 1000
    span = int(times[-1] - times[0])
    return 1 - int(times[len(times) - 1 - ends] - times[ends]) / span if span else 0.0


def describe_split(store: SequenceStore, split: Split, num_rows: int, timed: bool) -> dict[Part, PartShares]:
    """What validation and test ask of a model that knows the training part."""
    training = TrainingEvents(store, split.train_stop, num_rows)
    known = np.sort(training.timestamps) if timed else None
    parts: tuple[Part, ...] = ("validation", "test")
    return {part: _part_shares(build_cases(store, split, part, num_rows), known) for part in parts}


def _part_shares(cases: pl.DataFrame, known: IntArray | None) -> PartShares:
    future = None
    if known is not None:
        later = len(known) - np.searchsorted(known, cases["timestamp"].to_numpy(), side="right")
        future = float(later.mean() / len(known)) if len(cases) and len(known) else 0.0
    return PartShares(
        cases=len(cases), new_user=_share(cases["new_user"]), cold_item=_share(cases["cold_item"]), future=future
    )


def _share(flags: pl.Series) -> float:
    return int(flags.sum()) / len(flags) if len(flags) else 0.0
