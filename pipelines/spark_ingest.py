"""`recsys ingest --engine spark`: sources are read side by side, executors write the parts."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines.ingest import IngestConfig, Written, check_alike, read_options
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
    log_counts,
    order_events,
    refuse_empty,
    refuse_wrong_unit,
    validated,
    without_duplicates,
)
from recsys.errors import ConfigError, DataError, RecsysError
from recsys.partitions import num_parts, part_path
from recsys.readers import read_table
from recsys.roles import event_roles
from recsys.schema import Events, Rejected, TimeKind
from recsys.source_files import RawTable
from recsys.timestamps import TimeUnit, guess_unit

if TYPE_CHECKING:
    from pipelines.spark_engine import Batches, DataFrame, Results, SparkSession

ROWS = (
    "user_id string, item_id string, timestamp long, event_type string, value float, session_id string, "
    "`#source` string, `#row` long, `#order` long, reason string, content string"
)
SOURCES = "number long, rows long, roles string, layout string, users_are_lines boolean, unit string, problem string"
WRITTEN = "number long, counts string"
GOOD = "reason is null"


@dataclass(frozen=True)
class SourcePart:
    """A source, what it was found to be, and how many rows come before it."""

    path: Path
    roles: dict[str, str]
    layout: str
    rows: int
    first_row: int
    unit: TimeUnit


@dataclass(frozen=True)
class Log:
    """All sources as they are to be read."""

    parts: list[SourcePart]
    time: TimeKind
    time_unit: TimeUnit | None

    def counts(self) -> dict[str, Any]:
        """What the manifest says of the sources."""
        layouts = dict(Counter(part.layout for part in self.parts))
        return {"time_unit": self.time_unit, "roles": self.parts[-1].roles, "layouts": layouts}


def ingest_with_spark(sources: Sequence[Path], config: IngestConfig, folder: Path) -> Written:
    """Writes the parts of all events into `folder / "events"`."""
    with spark_session(config.master) as session:
        log = _looked_through(session, sources, config)
        rows = session.range(0, len(log.parts), 1, slices(session, len(log.parts)))
        rows = rows.mapInArrow(partial(_cleaned, parts=log.parts, config=config), ROWS).persist()
        rejected = _rejected(rows)
        accepted = sum(part.rows for part in log.parts) - len(rejected)
        _refuse(accepted, rejected, log, sources)
        by_user = rows.filter(GOOD).repartition(tasks_for(session, accepted), "user_id")
        events = by_user.mapInArrow(partial(_arranged, duplicates=config.duplicates), ROWS).persist()
        places = {str(part.path): number for number, part in enumerate(log.parts)}
        again = _rejected(events).sort(pl.col("source").replace_strict(places, return_dtype=pl.Int64), "row")
        item_ids = on_driver(events.filter(GOOD).select("item_id").distinct())
        parts = num_parts(accepted - len(again))
        counted = _written_parts(events.filter(GOOD), folder / "events", parts, log.time)
    everything = Rejected.validate(pl.concat([rejected, again]))
    counts = _merged_counts(counted, everything, len(item_ids), log.time)
    return Written(counts | log.counts() | {"parts": parts}, everything, item_ids)


def _rejected(rows: "DataFrame") -> pl.DataFrame:
    """Rows with a reason, in the columns of `Rejected`, partition after partition."""
    return on_driver(
        rows.filter(f"not ({GOOD})").selectExpr("`#source` as source", "`#row` as row", "reason", "content")
    )


def _refuse(accepted: int, rejected: pl.DataFrame, log: Log, sources: Sequence[Path]) -> None:
    """What the Polars engine refuses before it looks at single events."""
    events = pl.DataFrame({"user_id": pl.repeat(None, accepted, dtype=pl.Null, eager=True)})
    refuse_wrong_unit(CleanRows(events, rejected), log.time_unit)
    refuse_empty(CleanRows(events, rejected), sources)


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
        parts.append(SourcePart(path, roles, row["layout"], row["rows"], rows, "s" if unit == "auto" else unit))
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
            found = (len(table.frame), json.dumps(roles), table.layout, table.users_are_lines, unit, "")
        except RecsysError as error:
            found = (0, "{}", "", False, "auto", json.dumps([type(error).__name__, str(error)]))
        names = ("rows", "roles", "layout", "users_are_lines", "unit", "problem")
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
    rejected = rows.rejected.rename({"source": "#source", "row": "#row"})
    return pl.concat([rows.events, rejected], how="diagonal")


def _write_parts(batches: "Batches", folder: Path, time: TimeKind) -> "Results":
    """Runs on executors: whole parts as files."""
    rows = whole(batches)
    if rows is None:
        return
    for (number,), events in rows.partition_by("part", as_dict=True).items():
        done = validated(CleanRows(order_events(events), Rejected.create_empty()))
        write_whole(done.events, part_path(folder, int(number)))
        yield from as_batches(pl.DataFrame([{"number": number, "counts": json.dumps(log_counts(done, time))}]), WRITTEN)


def _merged_counts(parts: list[dict[str, Any]], rejected: pl.DataFrame, items: int, time: TimeKind) -> dict[str, Any]:
    """`log_counts` of a log from those of its parts, which share no user."""
    events = sum(part["accepted"] for part in parts)
    sums = {name: sum(part[name] for part in parts) for name in ("users", "tied_events", "repeated_events")}
    return {
        "rows": events + len(rejected),
        "accepted": events,
        "rejected": dict(Counter(rejected["reason"]).most_common()),
        "users": sums["users"],
        "items": items,
        "time": time,
        "first_timestamp": min(part["first_timestamp"] for part in parts),
        "last_timestamp": max(part["last_timestamp"] for part in parts),
        "tied_events": sums["tied_events"],
        "repeated_events": sums["repeated_events"],
        "tied_share": round(sums["tied_events"] / events, 6),
        "repeat_share": round(sums["repeated_events"] / events, 6),
    }
