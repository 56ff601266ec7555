"""Raw rows -> events: roles become typed columns, what cannot be an event is set aside with its reason.

rows = accepted + rejected, always: a row is either in the events or in the rejected, with one reason, the first
of `REASONS` that holds.
"""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import ConfigError, DataError, GateError
from recsys.partitions import in_order
from recsys.schema import ROLES, Events, Rejected, TimeKind
from recsys.source_files import LINE, PROBLEM, ROW, RawTable, as_integers, holds_list_texts
from recsys.timestamps import EARLIEST_PLAUSIBLE, LATEST_PLAUSIBLE, TimeUnit, to_microseconds

MISSING_USER = "missing user_id"
MISSING_ITEM = "missing item_id"
MISSING_TIME = "missing timestamp"
BAD_TIME = "unreadable timestamp"
IMPLAUSIBLE_TIME = "implausible timestamp"
BAD_VALUE = "value is not a number"
DUPLICATE = "duplicate"
REASONS = (MISSING_USER, MISSING_ITEM, MISSING_TIME, BAD_TIME, IMPLAUSIBLE_TIME, BAD_VALUE, DUPLICATE)

SOURCE = "#source"
ORDER = "#order"
REASON = "#reason"
BOOKKEEPING = (SOURCE, ROW, LINE, ORDER)


@dataclass(frozen=True)
class CleanRows:
    """Rows of one source after cleaning: `events` (columns of `Events` and bookkeeping) and `rejected`."""

    events: pl.DataFrame
    rejected: pl.DataFrame


def clean(table: RawTable, roles: Mapping[str, str], unit: TimeUnit, first_order: int) -> CleanRows:
    """Types the columns that `roles` names; `first_order` rows of earlier sources come before this one.

    Without a timestamp role the row's place in source order, counted from 1 over all sources, is its timestamp.
    """
    table = one_item_a_row(table, roles["item_id"])
    rows = _typed(table, roles, unit, first_order)
    good = rows[REASON].is_null()
    events = rows.filter(good).select(*ROLES, *BOOKKEEPING)
    bad = table.frame.filter(~good)
    rejected = _rejected(rows.filter(~good), _content(bad.select(table.columns)))
    return CleanRows(events=events, rejected=rejected)


def one_item_a_row(table: RawTable, column: str) -> RawTable:
    """A row an item where the column holds lists, or in its first rows nothing but texts of lists."""
    values = table.frame[column]
    if holds_list_texts(values) if table.lists is None else column in table.lists:
        lists = pl.Series([_entries(text) for text in values], dtype=pl.List(pl.String))
    elif isinstance(values.dtype, pl.List) and not values.dtype.inner.is_nested():
        lists = values.cast(pl.List(pl.String))
    else:
        return table
    frame = table.frame.with_columns(lists.alias(column)).explode(column, empty_as_null=True, keep_nulls=True)
    return replace(table, frame=frame)


def _entries(text: str | None) -> list[str | None]:
    """What a list in a cell holds; the text itself where it is none after all."""
    if text is None:
        return []
    try:
        entries = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return [text]
    return [None if entry is None else str(entry) for entry in entries] if isinstance(entries, list) else [text]


def no_rows() -> CleanRows:
    """Rows of no source."""
    events = Events.create_empty().select(ROLES)
    bookkeeping = {SOURCE: pl.String, ROW: pl.Int64, LINE: pl.Int64, ORDER: pl.Int64}
    return CleanRows(
        events=events.with_columns(pl.lit(None, kind).alias(name) for name, kind in bookkeeping.items()),
        rejected=Rejected.create_empty(),
    )


def order_events(events: pl.DataFrame) -> pl.DataFrame:
    """By (user_id, timestamp, source order); stable, and users in the order of their ids' UTF-8 bytes."""
    return in_order(events, ORDER)


def without_duplicates(events: pl.DataFrame) -> CleanRows:
    """Of ordered events that agree in every column of `Events`, the first in source order stays."""
    tied = tied_with_previous(events)
    candidates = events.filter(tied | tied.shift(-1, fill_value=False))
    repeated = candidates.filter(~pl.struct(ROLES).is_first_distinct())
    kept = events.filter(~pl.col(ORDER).is_in(repeated[ORDER].implode()))
    rejected = _rejected(
        repeated.with_columns(pl.lit(DUPLICATE).alias(REASON)).sort(ORDER), _content(repeated.sort(ORDER).select(ROLES))
    )
    return CleanRows(events=kept, rejected=rejected)


def tied_with_previous(events: pl.DataFrame) -> pl.Series:
    """Which ordered events have the user and the timestamp of the event before them."""
    same = (pl.col("user_id") == pl.col("user_id").shift()) & (pl.col("timestamp") == pl.col("timestamp").shift())
    return events.select(same.fill_null(value=False)).to_series()


def validated(rows: CleanRows) -> CleanRows:
    """Exactly the columns of `Events` and of `Rejected`, checked."""
    return CleanRows(events=Events.validate(rows.events.select(ROLES)), rejected=Rejected.validate(rows.rejected))


def repeated_events(events: pl.DataFrame) -> int:
    """Events whose item their user had before."""
    return len(events) - events.select("user_id", "item_id").n_unique()


def log_counts(rows: CleanRows, time: TimeKind) -> dict[str, Any]:
    """What the manifest says of ordered events; shares are of all accepted events, times are as stored.

    `tied_events`: those with the timestamp of the same user's event before them, whose order is the source's.
    `repeated_events`: those whose item the user had before.
    """
    events, rejected = rows.events, rows.rejected
    tied, repeated = int(tied_with_previous(events).sum()), repeated_events(events)
    return {
        "rows": len(events) + len(rejected),
        "accepted": len(events),
        "rejected": dict(Counter(rejected["reason"]).most_common()),
        "users": events["user_id"].n_unique(),
        "items": events["item_id"].n_unique(),
        "time": time,
        "first_timestamp": events["timestamp"].min(),
        "last_timestamp": events["timestamp"].max(),
        "tied_events": tied,
        "repeated_events": repeated,
        "tied_share": round(tied / max(1, len(events)), 6),
        "repeat_share": round(repeated / max(1, len(events)), 6),
    }


def summed_counts(parts: Sequence[Mapping[str, Any]], rejected: pl.DataFrame, items: int) -> dict[str, Any]:
    """Counts of `log_counts` of a whole log, from those of its parts, which share no user."""
    added = {
        name: sum(part[name] for part in parts) for name in ("accepted", "users", "tied_events", "repeated_events")
    }
    first = [part["first_timestamp"] for part in parts if part["accepted"]]
    last = [part["last_timestamp"] for part in parts if part["accepted"]]
    return {
        "rows": added["accepted"] + len(rejected),
        **added,
        "rejected": dict(Counter(rejected["reason"]).most_common()),
        "items": items,
        "time": parts[0]["time"],
        "first_timestamp": min(first),
        "last_timestamp": max(last),
        "tied_share": round(added["tied_events"] / added["accepted"], 6),
        "repeat_share": round(added["repeated_events"] / added["accepted"], 6),
    }


def in_source_order(rejected: pl.DataFrame, sources: Sequence[Path]) -> pl.DataFrame:
    """Rejected rows by source and row."""
    order = {str(source): place for place, source in enumerate(sources)}
    places = rejected["source"].replace_strict(list(order), list(order.values()), return_dtype=pl.Int64)
    return rejected.with_columns(places.alias("#place")).sort("#place", "row", maintain_order=True).drop("#place")


def refuse_empty(num_events: int, rejected: pl.DataFrame, sources: Sequence[Path]) -> None:
    """Raises where no row became an event, with the commonest reason and one example."""
    if num_events:
        return
    where = str(sources[0]) if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"
    if rejected.is_empty():
        raise DataError(f"{where}: a header and no data rows; there is nothing to ingest.")
    reason, count = Counter(rejected["reason"]).most_common(1)[0]
    example = rejected.filter(pl.col("reason") == reason).row(0, named=True)
    raise DataError(
        f"{where}: all {len(rejected)} rows were rejected, {count} of them for: {reason} "
        f"(row {example['row']}: {example['content'][:120]}); check --format, --map, --columns and --time-unit."
    )


def most_rejected(limit: str, rows: int) -> float:
    """How many of `rows` rows `limit` allows to be rejected: a share such as `1%`, or a number."""
    text = limit.strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1
    if not 0 <= number < float("inf") or (text.endswith("%") and number > 100):
        raise ConfigError(f"--max-rejected {limit}: expected a share such as 1% or a number of rows such as 100.")
    return number / 100 * rows if text.endswith("%") else number


def refuse_too_many(rejected: pl.DataFrame, rows: int, limit: str, kept: Path) -> None:
    """Raises where more of a log's `rows` rows are no events than `limit` allows; all of them are then in `kept`."""
    if len(rejected) <= most_rejected(limit, rows):
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    rejected.write_parquet(kept)
    reason, count = Counter(rejected["reason"]).most_common(1)[0]
    example = rejected.filter(pl.col("reason") == reason).row(0, named=True)
    line = f"row {example['row']}" if example["line"] is None else f"line {example['line']}"
    raise GateError(
        f"{len(rejected)} of {rows} rows are no events, more than --max-rejected {limit} allows; {count} of them for: "
        f"{reason} ({example['source']}, {line}: {example['content'][:120]}). All are in {kept}; mend the logs, or "
        "raise the limit."
    )


def refuse_wrong_unit(num_rows: int, rejected: pl.DataFrame, unit: TimeUnit | None) -> None:
    """Raises where most rows were rejected for an implausible time, which is what a wrong `unit` makes of a log."""
    odd = rejected.filter(pl.col("reason") == IMPLAUSIBLE_TIME)
    if 2 * len(odd) <= num_rows:
        return
    example = odd.row(0, named=True)
    raise DataError(
        f"{example['source']}: times of {len(odd)} of {num_rows} rows, read with --time-unit {unit}, lie outside the "
        f"years 1900 to 2261 (row {example['row']}: {example['content'][:120]}); name the right --time-unit."
    )


def _typed(table: RawTable, roles: Mapping[str, str], unit: TimeUnit, first_order: int) -> pl.DataFrame:
    order = pl.int_range(first_order + 1, first_order + len(table.frame) + 1, dtype=pl.Int64, eager=True)
    texts = {role: _text(table, roles.get(role)) for role in ROLES if role not in {"timestamp", "value"}}
    times, has_time = _times(table, roles.get("timestamp"), unit, order)
    values, has_value = _values(table, roles.get("value"))
    frame = pl.DataFrame({**texts, "timestamp": times, "value": values}).select(ROLES)
    reason = (
        pl
        .when(table.frame[PROBLEM].is_not_null())
        .then(table.frame[PROBLEM])
        .when(pl.col("user_id").is_null())
        .then(pl.lit(MISSING_USER))
        .when(pl.col("item_id").is_null())
        .then(pl.lit(MISSING_ITEM))
        .when(~has_time)
        .then(pl.lit(MISSING_TIME))
        .when(pl.col("timestamp").is_null())
        .then(pl.lit(BAD_TIME))
        .when(~pl.col("timestamp").is_between(EARLIEST_PLAUSIBLE, LATEST_PLAUSIBLE))
        .then(pl.lit(IMPLAUSIBLE_TIME))
        .when(has_value & ~pl.col("value").is_finite().fill_null(value=False))
        .then(pl.lit(BAD_VALUE))
    )
    return frame.with_columns(
        pl.lit(str(table.path)).alias(SOURCE),
        table.frame[ROW],
        table.lines().alias(LINE),
        order.alias(ORDER),
        reason.alias(REASON),
    )


def _column(table: RawTable, column: str | None) -> pl.Series:
    """A column with every kind of nothing (blank text, NaN) as null; all null where the role is not there."""
    if column is None:
        return pl.repeat(None, len(table.frame), dtype=pl.String, eager=True)
    values = table.frame[column]
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        raise DataError(f"{table.path}: column {column!r} holds {values.dtype}, not single values; map another column.")
    if values.dtype.is_float():
        return values.fill_nan(None)
    if values.dtype != pl.String:
        return values
    blank = values.str.strip_chars() == ""
    return values.set(blank, None) if blank.any() else values


def _text(table: RawTable, column: str | None) -> pl.Series:
    """Ids exactly as written; whole floats lose their `.0`, which readers of integers with gaps put there."""
    return as_integers(_column(table, column)).cast(pl.String)


def _times(table: RawTable, column: str | None, unit: TimeUnit, order: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Timestamps (null: unreadable) and where one was written."""
    if column is None:
        return order, order.is_not_null()
    values = _column(table, column)
    try:
        return to_microseconds(values, unit), values.is_not_null()
    except DataError as error:
        raise DataError(f"{table.path}: {error}") from None


def _values(table: RawTable, column: str | None) -> tuple[pl.Series, pl.Series]:
    """Values (null or not finite: not a number) and where one was written; a NaN that was written counts."""
    values = _column(table, column)
    written = table.frame[column].is_not_null() if column and values.dtype.is_float() else values.is_not_null()
    stripped = values.str.strip_chars() if values.dtype == pl.String else values
    return stripped.cast(pl.Float32, strict=False), written


def _content(rows: pl.DataFrame) -> pl.Series:
    """Each row as one JSON object; bytes in base64."""
    if rows.is_empty():
        return pl.Series("content", [], dtype=pl.String)
    printable = rows.with_columns(pl.col(pl.Binary).bin.encode("base64"))
    return printable.select(pl.struct(pl.all()).struct.json_encode()).to_series()


def _rejected(rows: pl.DataFrame, content: pl.Series) -> pl.DataFrame:
    return rows.select(source=SOURCE, row=ROW, line=LINE, reason=REASON).with_columns(content=content)
