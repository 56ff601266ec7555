"""`recsys ingest`: log files -> validated dataset. Formats, roles and rejected rows: docs/ingest.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from pipelines.options import LOCAL_MASTER, Engine
from pipelines.reporter import Reporter
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
from recsys.errors import ConfigError, DataError
from recsys.item_table import all_items, read_items, sibling_item_table
from recsys.partitions import write_events, write_table
from recsys.readers import SourceFormat, read_table
from recsys.roles import event_roles
from recsys.schema import ROLES, Dataset, TimeKind, open_dataset
from recsys.source_files import RawTable, ReadOptions, expand_sources
from recsys.steps import writing_step
from recsys.timestamps import TimeUnit, guess_unit

Duplicates = Literal["drop", "keep"]
TAB_AS_TYPED = ("\\t", "tab")


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to read and how; every field is an option of `recsys ingest`.

    `mapping`: role -> column, an empty column says that the role is not there. `columns`: names of the fields of
    files without a header. `items`: item table; None takes a RecBole `.item` file beside its `.inter` file.
    """

    sources: tuple[Path, ...]
    out: Path
    format: SourceFormat = "auto"
    mapping: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str = "utf-8"
    time_unit: TimeUnit = "auto"
    items: Path | None = None
    items_mapping: Mapping[str, str] = field(default_factory=dict)
    duplicates: Duplicates = "drop"
    engine: Engine = "polars"
    master: str = LOCAL_MASTER
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("ingest: no source was named; give at least one log file.")
        for name, choices in (("format", SourceFormat), ("time_unit", TimeUnit), ("duplicates", Duplicates)):
            if (value := getattr(self, name)) not in get_args(choices):
                raise ConfigError(f"ingest: {name}={value!r} is not known; choose from {', '.join(get_args(choices))}.")
        if unknown := [role for role in self.mapping if role not in ROLES]:
            raise ConfigError(f"--map {unknown[0]}=...: not a role; choose from {', '.join(ROLES)}.")
        if not self.delimiter and self.delimiter is not None:
            raise ConfigError("ingest: delimiter='' splits nothing; leave it out, or name one such as ';'.")
        inside = [source for source in self.sources if source.resolve().is_relative_to(self.out.resolve())]
        if inside:
            raise ConfigError(f"--out {self.out} holds the source {inside[0]}; choose another folder.")


@dataclass(frozen=True)
class Log:
    """All sources after cleaning, still in source order."""

    rows: CleanRows
    time: TimeKind
    time_unit: TimeUnit | None
    layouts: dict[str, int]
    roles: dict[str, str]


def ingest(config: IngestConfig, reporter: Reporter | None = None) -> Dataset:
    """Writes the dataset of `config.sources` to `config.out` and opens it."""
    sources = expand_sources(config.sources)
    items_path = config.items or sibling_item_table(sources)
    inputs = [*sources, *expand_sources([items_path] if items_path else [])]
    with writing_step("ingest", config.out, config=asdict(config), inputs=inputs, overwrite=config.overwrite) as step:
        found = written_events(sources, config, step.folder, reporter or Reporter(quiet=True))
        step.counts.update(found.counts)
        table, table_counts = read_item_table(items_path, config)
        items, match_counts = all_items(found.item_ids, table)
        if items_path:
            step.counts["item_table"] = {"path": str(items_path), **table_counts, **match_counts}
        write_table(items, step.folder / "items.parquet")
        write_table(found.rejected, step.folder / "rejected.parquet")
    return open_dataset(config.out)


@dataclass(frozen=True)
class Written:
    """What is said of a log whose events are written: counts, rejected rows, distinct `item_id`."""

    counts: dict[str, Any]
    rejected: pl.DataFrame
    item_ids: pl.DataFrame


def written_events(sources: Sequence[Path], config: IngestConfig, folder: Path, reporter: Reporter) -> Written:
    """Writes all events into `folder / "events"`, by the engine that was asked for."""
    if config.engine == "spark":
        from pipelines.spark_ingest import ingest_with_spark

        return ingest_with_spark(sources, config, folder)
    log = read_log(sources, config, reporter)
    refuse_wrong_unit(log.rows, log.time_unit)
    refuse_empty(log.rows, sources)
    rows = validated(arrange(log, config.duplicates))
    counts = log_counts(rows, log.time) | {"time_unit": log.time_unit, "roles": log.roles, "layouts": log.layouts}
    counts["parts"] = write_events(rows.events, folder / "events")
    return Written(counts, rows.rejected, rows.events.select(pl.col("item_id").unique()))


def read_log(sources: Sequence[Path], config: IngestConfig, reporter: Reporter) -> Log:
    """Reads and cleans one source after the other; the first one with numbers for times decides their unit."""
    options = read_options(config)
    unit, rows, cleaned = config.time_unit, 0, list[CleanRows]()
    layouts, roles = Counter[str](), dict[str, str]()
    with reporter.task("ingest", len(sources)) as advance:
        for source in sources:
            table = read_table(source, config.format, options)
            found = event_roles(table.columns, config.mapping, str(source))
            check_alike(table, found, roles, len(sources))
            roles = found
            if unit == "auto" and "timestamp" in roles:
                unit = guess_unit(table.frame[roles["timestamp"]])
            cleaned.append(clean(table, roles, "s" if unit == "auto" else unit, first_order=rows))
            rows += len(table.frame)
            layouts[table.layout] += 1
            advance(1, f"{rows} rows")
    has_time = "timestamp" in roles
    return Log(
        rows=CleanRows(
            events=pl.concat([part.events for part in cleaned], rechunk=True),
            rejected=pl.concat([part.rejected for part in cleaned]),
        ),
        time="timestamp" if has_time else "order",
        time_unit=("iso" if unit == "auto" else unit) if has_time else None,
        layouts=dict(layouts),
        roles=roles,
    )


def read_options(config: IngestConfig) -> ReadOptions:
    """How the sources are to be read."""
    delimiter = "\t" if config.delimiter in TAB_AS_TYPED else config.delimiter
    return ReadOptions(columns=config.columns, delimiter=delimiter, encoding=config.encoding)


def arrange(log: Log, duplicates: Duplicates) -> CleanRows:
    """Events in dataset order; duplicates join the rejected (row numbers as times never agree, so order-only logs
    have none)."""
    rows = CleanRows(events=order_events(log.rows.events), rejected=log.rows.rejected)
    if duplicates == "keep":
        return rows
    unique = without_duplicates(rows.events)
    return CleanRows(events=unique.events, rejected=pl.concat([rows.rejected, unique.rejected]))


def read_item_table(path: Path | None, config: IngestConfig) -> tuple[pl.DataFrame | None, dict[str, Any]]:
    """The item table, its format always told from the file itself."""
    if path is None:
        if config.items_mapping:
            raise ConfigError("--items-map needs an item table; name it with --items.")
        return None, {}
    return read_items(read_table(path, "auto", ReadOptions(encoding=config.encoding)), config.items_mapping)


def check_alike(table: RawTable, roles: Mapping[str, str], before: Mapping[str, str], num_sources: int) -> None:
    """Sources of one dataset share their kind of time and their user ids."""
    if before and ("timestamp" in roles) != ("timestamp" in before):
        has, had = ("a", "no") if "timestamp" in roles else ("no", "a")
        raise DataError(
            f"{table.path}: has {has} timestamp column, while the sources before it have {had}; "
            "ingest them apart, or leave times out with --map timestamp=."
        )
    if table.users_are_lines and num_sources > 1:
        raise DataError(
            f"{table.path}: its users are line numbers, which repeat in the other {num_sources - 1} sources; "
            "join the files into one first."
        )
