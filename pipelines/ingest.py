"""`recsys ingest`: log files -> validated dataset. Formats, roles and rejected rows: docs/ingest.md."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import polars as pl

from pipelines.reporter import Reporter
from recsys.cleaning import (
    CleanRows,
    clean,
    log_counts,
    most_rejected,
    no_rows,
    order_events,
    refuse_empty,
    refuse_too_many,
    refuse_wrong_unit,
    validated,
    without_duplicates,
)
from recsys.drift import part_figures
from recsys.errors import ConfigError, DataError
from recsys.increments import Duplicates
from recsys.item_table import all_items, read_items, sibling_item_table
from recsys.partitions import write_events
from recsys.readers import SourceFormat, read_table
from recsys.roles import event_roles
from recsys.schema import ROLES, Dataset, TimeKind, open_dataset
from recsys.source_files import RawTable, ReadOptions, expand_sources
from recsys.steps import writing_step
from recsys.timestamps import TimeUnit, guess_unit

TAB_AS_TYPED = ("\\t", "tab")


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to read and how; every field is an option of `recsys ingest`.

    `mapping`: role -> column, an empty column says that the role is not there. `columns`: names of the fields of
    files without a header. `items`: item table; None takes a RecBole `.item` file beside its `.inter` file.
    `max_rejected`: share (`1%`) or number of rows that may be no events; duplicates do not count.
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
    max_rejected: str | None = None
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
    recognised: dict[str, int]
    roles: dict[str, str]
    users_are_lines: bool = False


def ingest(config: IngestConfig, reporter: Reporter | None = None) -> Dataset:
    """Writes the dataset of `config.sources` to `config.out` and opens it."""
    sources = expand_sources(config.sources)
    items_path = config.items or sibling_item_table(sources)
    inputs = [*sources, *expand_sources([items_path] if items_path else [])]
    with writing_step("ingest", config.out, config=asdict(config), inputs=inputs, overwrite=config.overwrite) as step:
        own, copies = without_copies(sources, [entry["sha256"] for entry in step.inputs[: len(sources)]])
        log = read_log(own, config, reporter or Reporter(quiet=True))
        refuse_wrong_unit(log.rows, log.time_unit)
        refuse_empty(log.rows, sources)
        refuse_more_than_allowed(log, config)
        rows = validated(arrange(log, config.duplicates))
        step.counts.update(log_counts(rows, log.time), time_unit=log.time_unit, roles=log.roles, layouts=log.layouts)
        step.counts["recognised"] = log.recognised
        table, table_counts = read_item_table(items_path, config)
        seen = rows.events.select(pl.col("item_id").unique())
        items, match_counts = all_items(seen, table)
        if items_path:
            step.counts["item_table"] = {"path": str(items_path), **table_counts, **match_counts}
        step.counts["parts"] = write_events(rows.events, step.folder / "events")
        items.write_parquet(step.folder / "items.parquet")
        rows.rejected.write_parquet(step.folder / "rejected.parquet")
        figures = part_figures(rows.events, rows.rejected, step.counts["users"], step.counts["items"])
        left_out = [str(path) for path in copies]
        step.history = [
            {"sources": len(sources), "left_out": left_out, "follows": None, "file": None, "figures": figures}
        ]
    return open_dataset(config.out)


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


def read_log(sources: Sequence[Path], config: IngestConfig, reporter: Reporter, first_row: int = 0) -> Log:
    """Reads and cleans one source after the other; the first one with numbers for times decides their unit.

    `first_row` rows came before these: where there are no times, the number of a row stands in for them.
    """
    delimiter = "\t" if config.delimiter in TAB_AS_TYPED else config.delimiter
    options = ReadOptions(columns=config.columns, delimiter=delimiter, encoding=config.encoding)
    unit, rows, cleaned, users_are_lines = config.time_unit, first_row, [no_rows()], False
    layouts, recognised, roles = Counter[str](), Counter[str](), dict[str, str]()
    with reporter.task("ingest", len(sources)) as advance:
        for source in sources:
            table = read_table(source, config.format, options)
            found = event_roles(table.columns, config.mapping, str(source))
            _check_alike(table, found, roles, len(sources))
            roles = found
            if unit == "auto" and "timestamp" in roles:
                unit = guess_unit(table.frame[roles["timestamp"]])
            cleaned.append(clean(table, roles, "s" if unit == "auto" else unit, first_order=rows))
            rows += len(cleaned[-1].events) + len(cleaned[-1].rejected)
            users_are_lines |= table.users_are_lines
            layouts[table.layout] += 1
            if table.told_by and not recognised[told := f"{table.layout}: {table.told_by}"]:
                reporter.say(f"{source}: read as {told}")
            if table.told_by:
                recognised[f"{table.layout}: {table.told_by}"] += 1
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
        recognised=dict(recognised),
        roles=roles,
        users_are_lines=users_are_lines,
    )


def refuse_more_than_allowed(log: Log, config: IngestConfig) -> None:
    """Ends the step where more rows than `config.max_rejected` are no events; they are kept beside `config.out`."""
    if config.max_rejected is not None:
        rows = len(log.rows.events) + len(log.rows.rejected)
        kept = config.out.with_name(f"{config.out.name}.rejected.parquet")
        refuse_too_many(log.rows.rejected, rows, config.max_rejected, kept)


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


def _check_alike(table: RawTable, roles: Mapping[str, str], before: Mapping[str, str], num_sources: int) -> None:
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
