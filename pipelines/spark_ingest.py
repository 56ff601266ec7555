"""`recsys ingest --engine spark`: sources are read side by side, executors write the parts."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines.ingest import IngestConfig, Written, check_alike, read_options, refuse_more_than_allowed
from pipelines.spark_engine import (
    as_batches,
    numbers_of,
    on_driver,
    slices,
    spark_session,
    tasks_for,
    whole,
    write_whole,
)
from recsys.cleaning import (
    CleanRows,
    clean,
    in_source_order,
    log_counts,
    one_item_a_row,
    order_events,
    refuse_empty,
    refuse_wrong_unit,
    without_duplicates,
)
from recsys.errors import ConfigError, DataError, RecsysError
from recsys.partitions import num_parts, part_path
from recsys.readers import read_table
from recsys.roles import event_roles
from recsys.schema import ROLES, Events, Rejected, TimeKind
from recsys.source_files import RawTable
from recsys.timestamps import TimeUnit, guess_unit

if TYPE_CHECKING:
    from pipelines.spark_engine import Batches, DataFrame, Results, SparkSession

ROWS = (
    "user_id string, item_id string, timestamp long, event_type string, value float, session_id string, "
    "`#source` string, `#row` long, `#line` long, `#order` long, reason string, content string"
)
SOURCES = (
    "number long, rows long, roles string, layout string, told string, users_are_lines boolean, unit string, "
    "problem string"
)
WRITTEN = "number long, counts string"
GOOD = "reason is null"


@dataclass(frozen=True)
class SourcePart:
    """A source, what it was found to be, and how many rows come before it."""

    path: Path
    roles: dict[str, str]
    layout: str
    told: str
    rows: int
    first_row: int
    unit: TimeUnit


@dataclass(frozen=True)
class Log:
    """All sources as they are to be read."""

    parts: list[SourcePart]
    time: TimeKind
    time_unit: TimeUnit | None


def ingest_with_spark(sources: Sequence[Path], config: IngestConfig, folder: Path) -> Written:
    """Writes the parts of all events into the new `folder`."""
    with spark_session(config.master) as session:
        log = _looked_through(session, sources, config)
        rows = session.range(0, len(log.parts), 1, slices(session, len(log.parts)))
        rows = rows.mapInArrow(partial(_cleaned, parts=log.parts, config=config), ROWS).persist()
        rejected = _rejected(rows)
        num_rows = sum(part.rows for part in log.parts)
        accepted = num_rows - len(rejected)
        refuse_wrong_unit(num_rows, rejected, log.time_unit)
        refuse_empty(accepted, rejected, sources)
        refuse_more_than_allowed(num_rows, rejected, config)
        by_user = rows.filter(GOOD).repartition(tasks_for(session, accepted), "user_id")
        events = by_user.mapInArrow(partial(_arranged, duplicates=config.duplicates), ROWS).persist()
        repeated = in_source_order(_rejected(events), sources)
        counts = _written_parts(events.filter(GOOD), folder, num_parts(accepted - len(repeated)), log.time)
    told = Counter(f"{part.layout}: {part.told}" for part in log.parts if part.told)
    layouts = dict(Counter(part.layout for part in log.parts))
    return Written(
        pl.concat([rejected, repeated]), counts, log.time_unit, log.parts[-1].roles, layouts, recognised=dict(told)
    )


def _rejected(rows: "DataFrame") -> pl.DataFrame:
    """Rows with a reason, in the columns of `Rejected`, partition after partition."""
    names = ("`#source` as source", "`#row` as row", "`#line` as line", "reason", "content")
    return on_driver(rows.filter(f"not ({GOOD})").selectExpr(*names))


def _written_parts(events: "DataFrame", folder: Path, parts: int, time: TimeKind) -> list[dict[str, Any]]:
    """Writes so many parts and returns the counts of each that has users."""
    folder.mkdir()
    numbered = events.selectExpr("*", f"crc32(encode(user_id, 'utf-8')) % {parts} as part").repartition(parts, "part")
    written = numbered.mapInArrow(partial(_write_parts, folder=folder, time=time), WRITTEN).collect()
    for half_written in folder.glob(".*"):  # of executors that were lost
        half_written.unlink()
    for number in set(range(parts)) - {row["number"] for row in written}:
        write_whole(Events.create_empty(), part_path(folder, number))
    return [json.loads(row["counts"]) for row in sorted(written)]


def _looked_through(session: "SparkSession", sources: Sequence[Path], config: IngestConfig) -> Log:
    """Every source with its roles and unit, as reading one after the other would find them."""
    numbers = session.range(0, len(sources), 1, slices(session, len(sources)))
    found = numbers.mapInArrow(partial(_look, sources=list(sources), config=config), SOURCES).collect()
    parts, roles, rows, unit = list[SourcePart](), dict[str, str](), 0, config.time_unit
    for path, row in zip(sources, found, strict=True):
        if row["problem"]:
            raise _same_error(row["problem"])
        own = json.loads(row["roles"])
        table = RawTable(path=path, layout=row["layout"], frame=pl.DataFrame(), users_are_lines=row["users_are_lines"])
        check_alike(table, own, roles, len(sources))
        roles = own
        if unit == "auto" and "timestamp" in roles:
            unit = row["unit"]
        known: TimeUnit = "s" if unit == "auto" else unit
        parts.append(SourcePart(path, roles, row["layout"], row["told"], row["rows"], rows, known))
        rows += row["rows"]
    if "timestamp" not in roles:
        return Log(parts, "order", None)
    return Log(parts, "timestamp", "iso" if unit == "auto" else unit)


def _look(batches: "Batches", sources: list[Path], config: IngestConfig) -> "Results":
    """Runs on executors: one row a source."""
    for number in numbers_of(batches):
        try:
            table = read_table(sources[number], config.format, read_options(config))
            roles = event_roles(table.columns, config.mapping, str(sources[number]))
            unit = guess_unit(table.frame[roles["timestamp"]]) if "timestamp" in roles else "auto"
            rows = len(one_item_a_row(table, roles["item_id"]).frame)
            found = (rows, json.dumps(roles), table.layout, table.told_by, table.users_are_lines, unit, "")
        except RecsysError as error:
            found = (0, "{}", "", "", False, "auto", json.dumps([type(error).__name__, str(error)]))
        names = ("rows", "roles", "layout", "told", "users_are_lines", "unit", "problem")
        yield from as_batches(pl.DataFrame([{"number": number, **dict(zip(names, found, strict=True))}]), SOURCES)


def _same_error(problem: str) -> RecsysError:
    """What an executor could not read, as the error that the Polars engine raises."""
    name, text = json.loads(problem)
    return {error.__name__: error for error in (ConfigError, DataError)}.get(name, DataError)(text)


def _cleaned(batches: "Batches", parts: list[SourcePart], config: IngestConfig) -> "Results":
    """Runs on executors: typed rows of each source, rejected ones with their reason."""
    for number in numbers_of(batches):
        part = parts[number]
        table = read_table(part.path, config.format, read_options(config))
        yield from as_batches(_with_rejected(clean(table, part.roles, part.unit, first_order=part.first_row)), ROWS)


def _arranged(batches: "Batches", duplicates: str) -> "Results":
    """Runs on executors: all events of some users, without duplicates; these come with their reason."""
    rows = whole(batches)
    if rows is None:
        return
    events = order_events(rows.drop("reason", "content"))
    if duplicates == "keep":
        yield from as_batches(_with_rejected(CleanRows(events, Rejected.create_empty())), ROWS)
    else:
        yield from as_batches(_with_rejected(without_duplicates(events)), ROWS)


def _with_rejected(rows: CleanRows) -> pl.DataFrame:
    """Events and rejected rows in one table of the columns of `ROWS`."""
    rejected = rows.rejected.rename({"source": "#source", "row": "#row", "line": "#line"})
    return pl.concat([rows.events, rejected], how="diagonal")


def _write_parts(batches: "Batches", folder: Path, time: TimeKind) -> "Results":
    """Runs on executors: whole parts as files."""
    rows = whole(batches)
    if rows is None:
        return
    for (number,), events in rows.partition_by("part", as_dict=True).items():
        done = CleanRows(Events.validate(order_events(events).select(ROLES)), Rejected.create_empty())
        write_whole(done.events, part_path(folder, int(number)))
        yield from as_batches(pl.DataFrame([{"number": number, "counts": json.dumps(log_counts(done, time))}]), WRITTEN)
