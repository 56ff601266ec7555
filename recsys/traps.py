"""Known traps of logs: what `recsys describe` warns of, why, and what to do.

A trap is found by a rule over a `Description`; each rule gives one sentence with the log's own figure and one
with what to do, or nothing. Thresholds are where public datasets that are known to mislead begin, not laws.
"""

from collections.abc import Callable
from dataclasses import dataclass

from recsys.description import DAY, HOUR, Description

TIED_SHARE = 0.01
REPEAT_SHARE = 0.01
IMMEDIATE_SHARE = 0.05
COLD_SHARE = 0.1
NEW_USER_SHARE = 0.5
SINGLE_SHARE = 0.3
BUSIEST_SHARE = 0.1
TOP_SHARE = 0.5
GAP_SHARE = 0.1
STRAY_SHARE = 0.2
INSTANT_SHARE = 0.005
FEWEST_INSTANT_EVENTS = 10
REJECTED_SHARE = 0.01
FEWEST_CASES = 1000
SESSION_SPAN = 6 * HOUR
FUTURE_SHARE = 0.01


@dataclass(frozen=True)
class Trap:
    """A name for machines, what was found, and what to do about it."""

    name: str
    found: str
    advice: str


def find_traps(log: Description) -> list[Trap]:
    """Those that `log` holds, in the order of `RULES`."""
    return [trap for rule in RULES if (trap := rule(log)) is not None]


def order_only(log: Description) -> Trap | None:
    """No times."""
    if log.time != "order":
        return None
    return Trap(
        "order-only",
        "events have an order but no time: row numbers stand in for times",
        "no split by time is possible, and intervals mean nothing; ingest a source with times, or read figures of "
        "--split last-item as parity with papers only",
    )


def tied_times(log: Description) -> Trap | None:
    """Times that do not order a history."""
    if log.ties is None or log.ties.share < TIED_SHARE:
        return None
    return Trap(
        "ties",
        f"{log.ties.share:.1%} of the events have the time of their user's event before, and {log.ties.last:.1%} of "
        f"the users end in a tie (times are whole {log.ties.resolution}s)",
        "their order is that of the source: never sort these files again by time alone; bring finer times, and prefer "
        "--split time, which no tie at a history's end can turn around",
    )


def whole_days(log: Description) -> Trap | None:
    """Dates in place of times."""
    if log.ties is None or log.ties.resolution != "day":
        return None
    return Trap(
        "dates",
        "every time is midnight: the source knew days, not times",
        "hours of the day mean nothing here, sessions cannot be told by gaps below a day, and events of one day are in "
        "the order of the source",
    )


def duplicated(log: Description) -> Trap | None:
    """Events written more than once."""
    dropped = log.rejected.get("duplicate", 0)
    kept = 0 if log.ties is None else round(log.ties.duplicates * log.events)
    if not dropped and not kept:
        return None
    return Trap(
        "duplicates",
        f"{kept} events equal another one in user, item and time, and ingest dropped {dropped} that were equal in all",
        "find out whether the source writes events twice; those kept differ in event type, value or session (or came "
        "with --duplicates keep) and stand in a history twice: windows can collapse them (docs/windows.md)",
    )


def leave_one_out(log: Description) -> Trap | None:
    """A model that has seen the future of what it predicts."""
    shares = log.splits.get("last-item")
    if shares is None or set(log.splits) != {"last-item"}:
        return None
    future = shares["test"].future
    if future is not None and future < FUTURE_SHARE:
        return None
    how_much = "how much cannot be told without times" if future is None else f"{future:.1%} of them, in the mean"
    return Trap(
        "leave-one-out",
        f"the split is last-item, so training events lie after the test events that they help to predict ({how_much})",
        "use it for parity with papers; decide what ships with --split time",
    )


def repeated(log: Description) -> Trap | None:
    """Items that come again."""
    if log.repeats.share < REPEAT_SHARE:
        return None
    return Trap(
        "repeats",
        f"{log.repeats.share:.1%} of the events repeat an item of their user",
        "excluding seen items makes these targets misses by rule; `recsys prepare` keeps seen items here unless "
        "--seen exclude says otherwise, and figures of the two rules cannot be compared",
    )


def immediately_repeated(log: Description) -> Trap | None:
    """The item before as the answer."""
    if log.repeats.immediate < IMMEDIATE_SHARE:
        return None
    return Trap(
        "immediate-repeats",
        f"{log.repeats.immediate:.1%} of the events have the item of the event before them",
        "answering with the last item is right that often: look at floors first, and collapse such runs where one "
        "event was logged several times (docs/windows.md)",
    )


def cold_items(log: Description) -> Trap | None:
    """Targets that no id-based model can name."""
    worst, kind = max(((shares["test"].cold_item, kind) for kind, shares in log.splits.items()), default=(0.0, ""))
    if worst < COLD_SHARE:
        return None
    return Trap(
        "cold-items",
        f"the targets of {worst:.1%} of the test cases have no training event (split {kind})",
        "models of ids alone cannot answer these: use one that reads texts (recformer, items: gated), train more "
        "often, and compare models by the segment of cold items",
    )


def new_users(log: Description) -> Trap | None:
    """Cases whose user was never trained on."""
    worst, kind = max(((shares["test"].new_user, kind) for kind, shares in log.splits.items()), default=(0.0, ""))
    if worst < NEW_USER_SHARE:
        return None
    return Trap(
        "new-users",
        f"the users of {worst:.1%} of the test cases have no training event (split {kind})",
        "models that learn a vector a user do not fit; those of histories do, and `recsys evaluate --segments` shows "
        "new users apart",
    )


def users_are_sessions(log: Description) -> Trap | None:
    """Histories of some hours in a log of many days."""
    if log.calendar is None or not 0 < log.calendar.median_user_span < SESSION_SPAN:
        return None
    if log.calendar.last - log.calendar.first < 2 * DAY:
        return None
    return Trap(
        "sessions",
        f"half of the users are seen for less than {log.calendar.median_user_span / HOUR:.1f} hours in a log of "
        f"{(log.calendar.last - log.calendar.first) / DAY:.0f} days",
        "user ids may be those of sessions or cookies: map a stable id where there is one (--map user_id=COLUMN), and "
        "expect a split by time to leave mostly new users",
    )


def single_events(log: Description) -> Trap | None:
    """Users who teach nothing."""
    if log.lengths.single < SINGLE_SHARE:
        return None
    return Trap(
        "single-events",
        f"{log.lengths.single:.1%} of the users have one event",
        "they teach a sequential model nothing and make no case with a history; --min-user-events leaves them out, "
        "which looks ahead, so keep them where figures decide what ships",
    )


def busiest_users(log: Description) -> Trap | None:
    """Robots and shared accounts."""
    if log.lengths.busiest_share < BUSIEST_SHARE or log.users < 1000:
        return None
    return Trap(
        "busiest-users",
        f"the busiest thousandth of the users made {log.lengths.busiest_share:.1%} of the events (longest history "
        f"{log.lengths.longest}, median {log.lengths.median:.0f})",
        "look for robots and shared accounts before training; comparisons resample users, so a few such users make "
        "intervals wide",
    )


def popular_items(log: Description) -> Trap | None:
    """A catalogue of which a few items are most of the log."""
    if log.popularity.top_1 < TOP_SHARE or log.items < 100:
        return None
    return Trap(
        "popularity",
        f"a hundredth of the items holds {log.popularity.top_1:.1%} of the events",
        "metrics over sampled candidates mislead most here: rank the full catalogue, and read the popularity floor "
        "before any model",
    )


def empty_times(log: Description) -> Trap | None:
    """A hole in the log."""
    if log.calendar is None or log.calendar.last == log.calendar.first:
        return None
    share = log.calendar.longest_gap / (log.calendar.last - log.calendar.first)
    if share < GAP_SHARE:
        return None
    return Trap(
        "gap",
        f"no event for {log.calendar.longest_gap / DAY:.1f} days, {share:.0%} of the log's time",
        "a file may be missing, or a few stray times lie far from the others; look at events over time, and choose "
        "the instants of the split yourself (--validation-from, --test-from)",
    )


def stray_times(log: Description) -> Trap | None:
    """A few events far from all others."""
    if log.calendar is None or log.calendar.stray < STRAY_SHARE or log.events < 1000:
        return None
    return Trap(
        "stray-times",
        f"the first and the last thousandth of the events take {log.calendar.stray:.0%} of the log's time",
        "clocks may be wrong there, or sessions left open: test cases at the end then lie far apart; choose the "
        "instants of the split yourself (--validation-from, --test-from), or cut the log",
    )


def one_instant(log: Description) -> Trap | None:
    """An import or a default in place of a time."""
    if log.calendar is None or log.calendar.largest_instant < INSTANT_SHARE:
        return None
    if log.calendar.largest_instant * log.events < FEWEST_INSTANT_EVENTS:
        return None
    return Trap(
        "one-instant",
        f"{log.calendar.largest_instant:.1%} of all events have one and the same time",
        "an import or a default value stands there in place of the time: leave these rows out, or bring their times",
    )


def no_split(log: Description) -> Trap | None:
    """A log that cannot be evaluated as it is."""
    if not log.refused:
        return None
    return Trap(
        "no-split", "; ".join(log.refused.values()).rstrip("."), "bring more of the log, or choose the instants"
    )


def few_cases(log: Description) -> Trap | None:
    """A test that cannot tell models apart."""
    fewest, kind = min(((parts["test"].cases, kind) for kind, parts in log.splits.items()), default=(FEWEST_CASES, ""))
    if fewest >= FEWEST_CASES:
        return None
    return Trap(
        "few-cases",
        f"the test part has {fewest} cases (split {kind})",
        "differences of a few percent will not be seen: `recsys compare` says which would be; bring more of the log, "
        "or enlarge --test-share",
    )


def rejected_rows(log: Description) -> Trap | None:
    """Rows that were lost on the way, duplicates apart."""
    lost = {reason: count for reason, count in log.rejected.items() if reason != "duplicate"}
    share = sum(lost.values()) / (log.events + sum(log.rejected.values()))
    if share < REJECTED_SHARE:
        return None
    reasons = ", ".join(f"{reason}: {count}" for reason, count in lost.items())
    return Trap(
        "rejected",
        f"{share:.1%} of the rows became no event ({reasons})",
        "see rejected.parquet; what is missing there is missing in every figure here",
    )


RULES: tuple[Callable[[Description], Trap | None], ...] = (
    order_only,
    tied_times,
    whole_days,
    duplicated,
    leave_one_out,
    repeated,
    immediately_repeated,
    cold_items,
    new_users,
    users_are_sessions,
    single_events,
    busiest_users,
    popular_items,
    empty_times,
    stray_times,
    one_instant,
    no_split,
    few_cases,
    rejected_rows,
)
