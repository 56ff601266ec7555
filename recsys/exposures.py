"""What a service showed, and what users then did: the log's columns, and how the two are joined.

LOG/answers/part-*.parquet    one row an answer that was shown: `Exposures`
LOG/shadow/part-*.parquet     the same columns: answers of shadow variants, which nobody saw
LOG/outcomes/part-*.parquet   one row an event that clients sent: `Outcomes`

Parts appear by one rename, so whatever is there can be read. docs/exposures.md says what the columns mean.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import dataframely as dy
import polars as pl

from recsys.errors import ConfigError, DataError

Kind = Literal["answers", "shadow", "outcomes"]
DAY = 24 * 3_600 * 1_000_000
"""In microseconds."""
EVENT = ("user_id", "item_id", "timestamp", "event_type")


class Exposures(dy.Schema):
    """One answer: the ranked list that a request got, and by which chance it got this one.

    `timestamp` is microseconds since 1970 UTC. `propensity`: the probability with which the user was given to
    `variant`, its share of the weights at that time. `item_ids` stand best first, on places `position`,
    `position` + 1, ... of the whole list (1 but for further pages), and each has a score. `propensities`: for each
    the probability that the variant puts it on its place; null where the variant ranks without chance.
    `history`: the newest events that the answer was made of, oldest first. `wishes`: what else was asked for, as JSON;
    null for nothing.
    """

    request_id = dy.String(nullable=False, min_length=1)
    timestamp = dy.Int64(nullable=False)
    user_id = dy.String(nullable=True)
    session_id = dy.String(nullable=True)
    variant = dy.String(nullable=False, min_length=1)
    propensity = dy.Float64(nullable=False, min_exclusive=0, max=1)
    model_version = dy.String(nullable=False)
    source = dy.String(nullable=False)
    position = dy.Int32(nullable=False, min=1)
    item_ids = dy.List(dy.String(nullable=False), nullable=False)
    scores = dy.List(dy.Float32(nullable=False), nullable=False)
    propensities = dy.List(dy.Float64(nullable=False), nullable=True)
    history = dy.List(dy.String(nullable=False), nullable=False)
    wishes = dy.String(nullable=True)


class Outcomes(dy.Schema):
    """One event that a client sent, with the request whose answer it followed where the client knew."""

    user_id = dy.String(nullable=False, min_length=1)
    item_id = dy.String(nullable=False, min_length=1)
    timestamp = dy.Int64(nullable=False)
    event_type = dy.String(nullable=True)
    value = dy.Float32(nullable=True, allow_nan=False, allow_inf=False)
    event_id = dy.String(nullable=True)
    request_id = dy.String(nullable=True)


class Impressions(dy.Schema):
    """One item that was shown, and what came of it: the two joined.

    `position` counts from 1. `outcomes`: how many different events it is credited with; `outcome_timestamp`: of the
    first; `value`: the sum of their values. `complete`: whether answers were logged up to the end of the item's window:
    only events that come later than their own time can still change the row.
    """

    request_id = dy.String(nullable=False, min_length=1)
    timestamp = dy.Int64(nullable=False)
    user_id = dy.String(nullable=True)
    session_id = dy.String(nullable=True)
    variant = dy.String(nullable=False, min_length=1)
    propensity = dy.Float64(nullable=False, min_exclusive=0, max=1)
    model_version = dy.String(nullable=False)
    source = dy.String(nullable=False)
    item_id = dy.String(nullable=False, min_length=1)
    position = dy.Int32(nullable=False, min=1)
    score = dy.Float32(nullable=False)
    item_propensity = dy.Float64(nullable=True)
    outcomes = dy.Int32(nullable=False, min=0)
    outcome_timestamp = dy.Int64(nullable=True)
    value = dy.Float64(nullable=False)
    complete = dy.Bool(nullable=False)


SCHEMAS: dict[Kind, type[dy.Schema]] = {"answers": Exposures, "shadow": Exposures, "outcomes": Outcomes}


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Which events count as outcomes of what was shown: within `window` microseconds, of `event_types` (None: all)."""

    window: int = DAY
    event_types: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.window <= 0:
            raise ConfigError(f"Attribution: window={self.window} microseconds holds no event; give more than 0.")


def is_exposure_log(folder: Path) -> bool:
    """Whether a service has logged its answers there."""
    return (folder / "answers").is_dir()


def log_parts(folder: Path, kind: Kind) -> list[Path]:
    """Files of one kind, in the order in which they were begun by each process."""
    return sorted((folder / kind).glob("part-*.parquet"))


def read_exposures(folder: Path, *, shadow: bool = False) -> pl.DataFrame:
    """`Exposures` that were shown, or those of shadow variants, in order of time; one a request id, the first."""
    if not is_exposure_log(folder):
        raise DataError(f"{folder}: holds no answers/; name the folder that RECSYS_EXPOSURES named.")
    logged = Exposures.validate(_read(folder, "shadow" if shadow else "answers").sort("timestamp", maintain_order=True))
    once = ["request_id", "variant"] if shadow else ["request_id"]
    return logged.unique(once, keep="first", maintain_order=True)


def read_outcomes(folder: Path) -> pl.DataFrame:
    """`Outcomes` in order of time, each once: by user and `event_id`, or without one where they agree wholly."""
    events = Outcomes.validate(_read(folder, "outcomes").sort("timestamp", maintain_order=True))
    key = pl.when(pl.col("event_id").is_null()).then(pl.struct(*EVENT, "value", "request_id"))
    first = pl.struct("user_id", "event_id", key.alias("content")).is_first_distinct()
    return events.filter(first)


def join_outcomes(
    exposures: pl.DataFrame,
    outcomes: pl.DataFrame,
    attribution: Attribution = Attribution(),
    until: int | None = None,
) -> pl.DataFrame:
    """`Impressions`: every item that was shown, in order, with the events that it is credited with.

    An event that names its request belongs to that answer's item, and to nothing where that answer does not hold it;
    any other to the latest answer that had shown the item to the same user. Either only within the window. `until`: the
    instant up to which the log holds all events; by default `end_of`.
    """
    shown = _shown(exposures)
    counted = outcomes if attribution.event_types is None else outcomes.filter(_is_of(attribution.event_types))
    credited = _credited(shown, counted, attribution.window)
    gathered = credited.group_by("impression").agg(
        pl.len().cast(pl.Int32).alias("outcomes"),
        pl.col("outcome_timestamp").min(),
        pl.col("value").cast(pl.Float64).sum(),
    )
    joined = shown.join(gathered, on="impression", how="left", maintain_order="left").with_columns(
        pl.col("outcomes").fill_null(0),
        pl.col("value").fill_null(0.0),
        complete=pl.col("timestamp") + attribution.window <= (end_of(exposures) if until is None else until),
    )
    return Impressions.validate(joined.select(Impressions.column_names()))


def read_impressions(folder: Path, attribution: Attribution = Attribution(), until: int | None = None) -> pl.DataFrame:
    """The log of a folder, joined."""
    return join_outcomes(read_exposures(folder), read_outcomes(folder), attribution, until)


def end_of(exposures: pl.DataFrame) -> int:
    """The time of the last answer, 0 without any: by the service's clock; clients' clocks may be ahead."""
    return int(exposures["timestamp"].to_numpy().max(initial=0))


def erase_users(folder: Path, user_ids: Collection[str]) -> dict[Path, Exception]:
    """Takes users out of all parts of a log, each replaced by one rename; parts that refuse, and why.

    One process at a time.
    """
    left: dict[Path, Exception] = {}
    for part in (part for kind in SCHEMAS for part in log_parts(folder, kind)):
        try:
            theirs = pl.read_parquet(part, columns=["user_id"])["user_id"].is_in(list(user_ids)).fill_null(False)
            if theirs.any():
                write_part(pl.read_parquet(part).filter(~theirs), part)
        except FileNotFoundError:  # somebody moved it away meanwhile
            continue
        except (OSError, pl.exceptions.PolarsError) as error:
            left[part] = error
    return left


def write_part(rows: pl.DataFrame, part: Path) -> None:
    """Whole or not at all; an `OSError` where the disk refuses, which polars would call something else."""
    content = BytesIO()
    rows.write_parquet(content)
    write_whole(content.getbuffer(), part)


def write_whole(content: bytes | memoryview, path: Path) -> None:
    """Whole or not at all, whatever happens to the process or the machine."""
    unfinished = path.with_name(f".{path.name}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    """A rename is on disk when its folder is."""
    names = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(names)
    finally:
        os.close(names)


def _read(folder: Path, kind: Kind) -> pl.DataFrame:
    parts = log_parts(folder, kind)
    try:
        return pl.concat([SCHEMAS[kind].create_empty(), *map(pl.read_parquet, parts)])
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{folder / kind}: holds parts that no service of this version wrote ({str(error).splitlines()[0]}); "
            "read the logs of another version apart."
        ) from None


def _shown(exposures: pl.DataFrame) -> pl.DataFrame:
    """One row an item, numbered."""
    lists = ("item_ids", "scores", "propensities", "places")
    places = pl.int_ranges("position", pl.col("position") + pl.col("item_ids").list.len(), dtype=pl.Int32)
    unknown = pl.lit(None, pl.Float64).repeat_by(pl.col("item_ids").list.len())
    rows = exposures.filter(pl.col("item_ids").list.len() > 0).with_columns(
        places.alias("places"), pl.col("propensities").fill_null(unknown)
    )
    names = {"item_ids": "item_id", "scores": "score", "propensities": "item_propensity", "places": "position"}
    return rows.drop("position", "history", "wishes").explode(lists).rename(names).with_row_index("impression")


def _is_of(event_types: Collection[str]) -> pl.Expr:
    return pl.col("event_type").is_in(list(event_types))


def _credited(shown: pl.DataFrame, outcomes: pl.DataFrame, window: int) -> pl.DataFrame:
    """Of each event that belongs to something shown: the numbers of both, its time and value."""
    events = outcomes.with_row_index("outcome").with_columns(outcome_timestamp=pl.col("timestamp"))
    named, other = (events.filter(pl.col("request_id").is_null() != names) for names in (True, False))
    columns = ("impression", "outcome", "outcome_timestamp", "value")
    return pl.concat([_named(shown, named, window).select(columns), _latest(shown, other, window).select(columns)])


def _named(shown: pl.DataFrame, events: pl.DataFrame, window: int) -> pl.DataFrame:
    """Events that name their request; clocks may put them before it."""
    answers = shown.select("impression", "request_id", "item_id", shown_at="timestamp", shown_to="user_id")
    same_user = pl.col("shown_to").is_null() | (pl.col("shown_to") == pl.col("user_id"))
    in_time = pl.col("outcome_timestamp") - pl.col("shown_at") <= window
    return answers.join(events, on=["request_id", "item_id"]).filter(same_user & in_time)


def _latest(shown: pl.DataFrame, events: pl.DataFrame, window: int) -> pl.DataFrame:
    """All other events."""
    return (
        events
        .sort("timestamp", maintain_order=True)
        .join_asof(
            shown.select("impression", "user_id", "item_id", "timestamp").sort("timestamp", maintain_order=True),
            on="timestamp",
            by=["user_id", "item_id"],
            strategy="backward",
            tolerance=window,
            check_sortedness=False,
        )
        .filter(pl.col("impression").is_not_null())
    )
