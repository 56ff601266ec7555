"""`recsys ingest`: log files -> validated dataset. Formats, roles and rejected rows: docs/ingest.md."""

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import polars as pl

from pipelines.options import LOCAL_MASTER, Engine
from pipelines.reporter import Reporter
from recsys.cleaning import (
    CleanRows,
    clean,
    in_source_order,
    log_counts,
    most_rejected,
    no_rows,
    order_events,
    refuse_empty,
    refuse_too_many,
    refuse_wrong_unit,
    summed_counts,
    without_duplicates,
)
from recsys.drift import part_figures
from recsys.errors import ConfigError, DataError
from recsys.increments import Duplicates
from recsys.item_table import all_items, read_items, sibling_item_table
from recsys.partitions import halve_parts, item_ids, num_parts, part_files, part_path, write_table
from recsys.pieces import read_pieces
from recsys.readers import SourceFormat, read_table
from recsys.roles import event_roles
from recsys.schema import ROLES, Dataset, Events, Rejected, TimeKind, open_dataset
from recsys.source_files import RawTable, ReadOptions, expand_sources
from recsys.spill import Spill
from recsys.steps import writing_step
from recsys.timestamps import TimeUnit, guess_unit

TAB_AS_TYPED = ("\\t", "tab")
LEAST_MEMORY = 256 << 20
PIECE_SHARE, HELD_SHARE = 40, 10
"""Text is read a fortieth of the memory at a time, for it grows while it is cleaned; a tenth is held before it goes to
disk."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to read and how; every field is an option of `recsys ingest`.

    `mapping`: role -> column, an empty column says that the role is not there. `columns`: names of the fields of
    files without a header. `items`: item table; None takes a RecBole `.item` file beside its `.inter` file.
    `max_rejected`: share (`1%`) or number of rows that may be no events; duplicates do not count. `memory`: such as
    `4GB`; what would not fit lies on disk while the step runs.
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
    max_rejected: str | None = None
    memory: str | None = None
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
        if self.max_rejected is not None:
            most_rejected(self.max_rejected, 0)
        if self.memory is not None:
            as_bytes(self.memory)
            if self.engine == "spark":
                raise ConfigError(f"--memory {self.memory} bounds the Polars engine; Spark has settings of its own.")
        inside = [source for source in self.sources if source.resolve().is_relative_to(self.out.resolve())]
        if inside:
            raise ConfigError(f"--out {self.out} holds the source {inside[0]}; choose another folder.")


@dataclass(frozen=True)
class Log:
    """All sources after cleaning, still in source order."""

    rows: Spill
    time: TimeKind
    time_unit: TimeUnit | None
    layouts: dict[str, int]
    recognised: dict[str, int]
    roles: dict[str, str]
    users_are_lines: bool = False


def ingest(config: IngestConfig, reporter: Reporter | None = None) -> Dataset:
    """Writes the dataset of `config.sources` to `config.out` and opens it."""
    sources = expand_sources(config.sources)
    items_path = config.items or sibling_item_table(sources)
    inputs = [*sources, *expand_sources([items_path] if items_path else [])]
    reporter = reporter or Reporter(quiet=True)
    with writing_step("ingest", config.out, config=asdict(config), inputs=inputs, overwrite=config.overwrite) as step:
        own, copies = without_copies(sources, [entry["sha256"] for entry in step.inputs[: len(sources)]])
        folder = step.folder / "events"
        found = written_events(own, config, folder, reporter)
        rejected = Rejected.validate(found.rejected)
        write_table(rejected, step.folder / "rejected.parquet")
        seen = item_ids(folder)
        step.counts.update(summed_counts(found.parts, rejected, len(seen)), time_unit=found.time_unit)
        step.counts.update(roles=found.roles, layouts=found.layouts, recognised=found.recognised)
        step.counts.update(parts=len(part_files(folder)))
        table, table_counts = read_item_table(items_path, config)
        items, match_counts = all_items(seen, table)
        write_table(items, step.folder / "items.parquet")
        if items_path:
            step.counts["item_table"] = {"path": str(items_path), **table_counts, **match_counts}
        step.history = [
            {
                "sources": len(sources),
                "left_out": [str(path) for path in copies],
                "follows": None,
                "file": None,
                "figures": figures_of(folder, rejected, step.counts),
            }
        ]
    tell_recognised(found.recognised, reporter)
    return open_dataset(config.out)


@dataclass(frozen=True)
class Written:
    """What is said of a log whose events are written: all rejected rows, counts of each part, what the sources were."""

    rejected: pl.DataFrame
    parts: list[dict[str, Any]]
    time_unit: TimeUnit | None
    roles: dict[str, str]
    layouts: dict[str, int]
    recognised: dict[str, int]


def written_events(sources: Sequence[Path], config: IngestConfig, folder: Path, reporter: Reporter) -> Written:
    """Writes all events into the new `folder`, by the engine that was asked for."""
    if config.engine == "spark":
        from pipelines.spark_ingest import ingest_with_spark

        return ingest_with_spark(sources, config, folder)
    scratch = folder.with_name("scratch")
    scratch.mkdir()
    log = read_log(sources, config, reporter, scratch)
    rejected = log.rows.rejected()
    refuse_wrong_unit(log.rows.num_rows, rejected, log.time_unit)
    refuse_empty(log.rows.num_events, rejected, sources)
    refuse_more_than_allowed(log.rows.num_rows, rejected, config)
    repeated, parts = write_parts(log, folder, config.duplicates)
    shutil.rmtree(scratch)
    rejected = pl.concat([rejected, in_source_order(repeated, sources)])
    return Written(rejected, parts, log.time_unit, log.roles, log.layouts, log.recognised)


def write_parts(log: Log, folder: Path, duplicates: Duplicates) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Writes ordered events, part by part; returns duplicates that were left out, and the counts of each part.

    Row numbers as times never agree, so order-only logs have no duplicates.
    """
    folder.mkdir()
    number_of_parts, repeated, counts = num_parts(log.rows.num_events), list[pl.DataFrame](), list[dict[str, Any]]()
    for number in range(number_of_parts):
        ordered = order_events(log.rows.part(number, number_of_parts))
        rows = without_duplicates(ordered) if duplicates == "drop" else CleanRows(ordered, no_rows().rejected)
        del ordered
        events = Events.validate(rows.events.select(ROLES))
        write_table(events, part_path(folder, number))
        repeated.append(rows.rejected)
        counts.append(log_counts(CleanRows(events, rows.rejected), log.time))
    while num_parts(sum(part["accepted"] for part in counts)) < len(part_files(folder)):
        halve_parts(folder)  # so many were duplicates
    return pl.concat(repeated), counts


def figures_of(folder: Path, rejected: pl.DataFrame, counts: Mapping[str, Any]) -> dict[str, Any]:
    """What the first part of a log is like: everything in it is new."""
    columns = pl.concat([pl.read_parquet(path, columns=["timestamp", "value"]) for path in part_files(folder)])
    users, items = counts["users"], counts["items"]
    return part_figures(columns, rejected, users=users, items=items, new_users=users, new_items=items)


def without_copies(
    sources: Sequence[Path], hashes: Iterable[str], known: Set[str] = frozenset()
) -> tuple[list[Path], list[Path]]:
    """Files with content of their own, and those whose content has a known hash or that of a file before them."""
    seen = set(known)
    own, copies = list[Path](), list[Path]()
    for source, content in zip(sources, hashes, strict=True):
        (copies if content in seen else own).append(source)
        seen.add(content)
    return own, copies


def read_log(
    sources: Sequence[Path], config: IngestConfig, reporter: Reporter, scratch: Path, first_row: int = 0
) -> Log:
    """Reads and cleans one source after the other; the first one with numbers for times decides their unit.

    `first_row` rows came before these: where there are no times, the number of a row stands in for them. What would not
    fit into `config.memory` lies in `scratch` until it is removed.
    """
    options = read_options(config)
    memory = None if config.memory is None else as_bytes(config.memory)
    piece_bytes = memory and memory // PIECE_SHARE
    unit, rows, users_are_lines = config.time_unit, Spill(scratch / "spill", memory and memory // HELD_SHARE), False
    layouts, recognised, roles, began = Counter[str](), Counter[str](), dict[str, str](), time.perf_counter()
    with reporter.task("ingest", len(sources)) as advance:
        for source in sources:
            for piece, table in enumerate(read_pieces(source, config.format, options, piece_bytes, scratch)):
                if piece:
                    table = with_columns_of(table, roles)
                found = roles if piece else event_roles(table.columns, config.mapping, str(source))
                check_alike(table, found, roles, len(sources))
                roles = found
                if unit == "auto" and "timestamp" in roles:
                    unit = guess_unit(table.frame[roles["timestamp"]])
                rows.add(clean(table, roles, "s" if unit == "auto" else unit, first_order=first_row + rows.num_rows))
                users_are_lines |= table.users_are_lines
                if piece == 0:
                    layouts[table.layout] += 1
                    recognised.update([f"{table.layout}: {table.told_by}"] if table.told_by else [])
                speed = rows.num_rows / (time.perf_counter() - began)
                advance(0, f"{rows.num_rows:,} rows, {speed:,.0f} rows/s")
            advance(1)
    has_time = "timestamp" in roles
    return Log(
        rows=rows,
        time="timestamp" if has_time else "order",
        time_unit=("iso" if unit == "auto" else unit) if has_time else None,
        layouts=dict(layouts),
        recognised=dict(recognised),
        roles=roles,
        users_are_lines=users_are_lines,
    )


def read_options(config: IngestConfig) -> ReadOptions:
    """How the sources are to be read."""
    delimiter = "\t" if config.delimiter in TAB_AS_TYPED else config.delimiter
    return ReadOptions(columns=config.columns, delimiter=delimiter, encoding=config.encoding)


def with_columns_of(table: RawTable, roles: Mapping[str, str]) -> RawTable:
    """A further piece of a source, with empty columns for what only the first piece has."""
    missing = [column for column in roles.values() if column not in table.columns]
    return replace(table, frame=table.frame.with_columns(pl.lit(None, pl.String).alias(name) for name in missing))


def as_bytes(text: str) -> int:
    """`4GB` as a number of bytes; KB, MB, GB and TB are powers of 1024."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?\s*", text.upper())
    size = float(match[1]) * 1024 ** " KMGT".index(match[2] or " ") if match else 0
    if size < LEAST_MEMORY:
        raise ConfigError(f"--memory {text}: expected a size of at least {LEAST_MEMORY >> 20} MB, such as 4GB.")
    return int(size)


def tell_recognised(recognised: Mapping[str, int], reporter: Reporter) -> None:
    """Says of how many files what was recognised, and by what."""
    for told, files in recognised.items():
        reporter.say(f"{files} {'file' if files == 1 else 'files'} read as {told}")


def refuse_more_than_allowed(num_rows: int, rejected: pl.DataFrame, config: IngestConfig) -> None:
    """Ends the step where more rows than `config.max_rejected` are no events; they are kept beside `config.out`."""
    if config.max_rejected is not None:
        kept = config.out.with_name(f"{config.out.name}.rejected.parquet")
        refuse_too_many(rejected, num_rows, config.max_rejected, kept)


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
