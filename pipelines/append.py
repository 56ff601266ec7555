"""`recsys ingest --append`: further files join a dataset, as if they had been ingested with its others.

A file whose content is in the dataset already changes nothing. The result is a new folder like that of any step, so
the old dataset stays whole until the new one is in place; the parts that did not change are shared by both.
"""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.ingest import (
    IngestConfig,
    Log,
    read_item_table,
    read_log,
    refuse_more_than_allowed,
    tell_recognised,
    without_copies,
)
from pipelines.reporter import Reporter
from recsys.cleaning import CleanRows, refuse_empty, refuse_wrong_unit, validated
from recsys.drift import drift, part_figures
from recsys.errors import ConfigError, DataError
from recsys.increments import Increment, earlier_events, grown_counts, increment, joined_rejected
from recsys.item_table import all_items, described_items, sibling_item_table
from recsys.partitions import is_worth_rewriting, keep_events, rewrite_events, write_added, write_table
from recsys.schema import Dataset, open_dataset
from recsys.source_files import expand_sources
from recsys.steps import MANIFEST, Step, describe_input, sha256, writing_step

READ_AS_BEFORE = ("format", "mapping", "columns", "delimiter", "encoding", "time_unit", "items_mapping", "duplicates")
"""Settings that are the dataset's own where the call does not name them."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """`own`: files with content of their own; `copies`: files whose content is there already; `table`: a new one."""

    own: Sequence[Path]
    copies: Sequence[Path]
    table: Path | None


class _NothingNewError(Exception):
    """Every file is in the dataset already, so it stays as it is."""


def append(
    config: IngestConfig, base: Path, reporter: Reporter | None = None, named: Collection[str] | None = None
) -> Dataset:
    """Writes to `config.out` the dataset `base` (may be the same folder) with `config.sources` after its own.

    `named`: settings that the caller asks for, the others are the dataset's; None: those not at their defaults.
    """
    reporter = reporter or Reporter(quiet=True)
    sources = expand_sources(config.sources)
    table = config.items or sibling_item_table(sources)
    in_place = base.resolve() == config.out.resolve()
    try:
        with writing_step("ingest", config.out, config={}, overwrite=config.overwrite or in_place) as step:
            dataset = appendable(base)
            logs, tables = read_before(dataset.manifest)
            known = {entry["sha256"] for entry in logs}
            own, copies = without_copies(sources, map(sha256, sources), known)
            if table is not None and tables and sha256(table) == tables[-1]["sha256"]:
                table = None
            if in_place and not own and table is None:
                raise _NothingNewError
            settings = settings_of(dataset.manifest, config, named)
            step.config = asdict(settings)
            part = Part(own=own, copies=copies, table=table)
            write_appended(step, dataset, settings, part, reporter)
    except _NothingNewError:
        reporter.say(f"{config.out}: nothing new: the content of all {len(sources)} files is in it already")
    return open_dataset(config.out)


def write_appended(step: Step, dataset: Dataset, config: IngestConfig, part: Part, reporter: Reporter) -> None:
    """Everything of the new folder but its manifest."""
    log = read_part(config, dataset, part.own, reporter, step.folder / "scratch")
    rows = CleanRows(events=log.rows.part(0, parts=1), rejected=log.rows.rejected())
    shutil.rmtree(step.folder / "scratch")
    added = increment(earlier_events(dataset, rows), rows, config.duplicates)
    added = replace(added, rows=validated(added.rows))
    items, match_counts, new_items = joined_items(dataset, added, part.table, config)
    counts = dataset.manifest["counts"]
    step.counts.update(grown_counts(counts, added, new_items))
    step.counts["time_unit"] = log.time_unit or counts["time_unit"]
    step.counts["roles"] = log.roles or counts["roles"]
    step.counts["layouts"] = summed(counts["layouts"], log.layouts)
    step.counts["recognised"] = summed(counts["recognised"], log.recognised)
    if match_counts:
        step.counts["item_table"] = counts.get("item_table", {}) | match_counts
    file = write_events_of(step, dataset, added)
    write_table(items, step.folder / "items.parquet")
    write_table(joined_rejected(dataset.rejected(), added.rows.rejected), step.folder / "rejected.parquet")
    entry = part_entry(dataset, added, new_items) | {
        "left_out": [str(path) for path in part.copies],
        "follows": sha256(dataset.folder / MANIFEST),
        "file": file,
    }
    tell_recognised(log.recognised, reporter)
    step.counts["drift"] = entry["drift"]
    for warning in entry["drift"]["warnings"]:
        reporter.say(f"drift: {warning}")
    join_inputs(step, dataset.manifest, config.sources, part.table, entry)


def appendable(base: Path) -> Dataset:
    """The dataset, checked to be one that files can be added to."""
    dataset = open_dataset(base)
    if "history" not in dataset.manifest:
        raise DataError(
            f"{base}: was not made from log files by this version of `recsys ingest` (it may be a view or several "
            "datasets in one); append to the dataset it was made of, or ingest all logs again."
        )
    return dataset


def settings_of(manifest: Mapping[str, Any], config: IngestConfig, named: Collection[str] | None) -> IngestConfig:
    """`config` with the dataset's own reading settings in place of what is not `named`."""
    if named is None:
        plain = IngestConfig(sources=config.sources, out=config.out)
        named = {name for name in READ_AS_BEFORE if getattr(config, name) != getattr(plain, name)}
    before = manifest["config"] | {"columns": tuple(manifest["config"]["columns"])}
    if "duplicates" in named and config.duplicates != before["duplicates"]:
        raise ConfigError(
            f"ingest --append: duplicates={config.duplicates!r}, but the dataset was ingested with "
            f"{before['duplicates']}; leave it out."
        )
    same = {name: before[name] for name in READ_AS_BEFORE if name not in named}
    return replace(config, **same)


def begins(manifest: Mapping[str, Any], config: IngestConfig, inputs: Sequence[Mapping[str, Any]]) -> int:
    """How many of `inputs` (logs, then the item table) were ingested first, in a dataset that only lacks the logs after
    them; 0 where it was made otherwise."""
    if "history" not in manifest:
        return 0
    logs, tables = read_before(manifest)
    count = len(logs)
    asked = json.loads(json.dumps(asdict(config), default=str))
    alike = all(manifest["config"][name] == asked[name] for name in READ_AS_BEFORE)
    rest = [*inputs[count:]]
    return count if alike and logs == [*inputs[:count]] and tables == rest[len(rest) - len(tables) :] else 0


def read_part(
    config: IngestConfig, dataset: Dataset, sources: Sequence[Path], reporter: Reporter, scratch: Path
) -> Log:
    """The new rows; those of a log without times go on counting where the dataset ends."""
    counts = dataset.manifest["counts"]
    if config.time_unit == "auto" and counts["time_unit"] not in {None, "iso"}:
        config = replace(config, time_unit=counts["time_unit"])
    scratch.mkdir()
    log = read_log(sources, config, reporter, scratch, first_row=counts["rows"])
    if sources and log.time != dataset.time:
        has, had = ("no", "a") if log.time == "order" else ("a", "no")
        raise DataError(
            f"{sources[0]}: has {has} timestamp column, while {dataset.folder} has {had}; ingest it apart, or "
            "say which column holds the time with --map timestamp=COLUMN."
        )
    if log.users_are_lines:
        raise DataError(f"{sources[0]}: its users are line numbers, which {dataset.folder} has as well.")
    rejected = log.rows.rejected()
    refuse_wrong_unit(log.rows.num_rows, rejected, log.time_unit)
    if log.rows.num_rows:  # a file with no rows at all is a part without events
        refuse_empty(log.rows.num_events, rejected, sources)
    refuse_more_than_allowed(log.rows.num_rows, rejected, config)
    return log


def joined_items(
    dataset: Dataset, added: Increment, table: Path | None, config: IngestConfig
) -> tuple[pl.DataFrame, dict[str, Any], int]:
    """The item table with the part's items in it (what a new table says of an item counts), how events and table
    match now, and how many items of the part had no event before."""
    known, part = dataset.items(), added.rows.events.select(pl.col("item_id").unique())
    described = "item_table" in dataset.manifest["counts"]
    seen = dataset.item_ids() if described or table is not None else known.select("item_id")
    new_items = part.join(seen, on="item_id", how="anti")
    if not described and table is None:
        items, _ = all_items(pl.concat([seen, new_items]), None)
        return items, {}, len(new_items)
    rows, table_counts = read_item_table(table, config) if table is not None else (None, {})
    items, match_counts = all_items(pl.concat([seen, new_items]), described_items(known, rows))
    return items, {**({"path": str(table)} if table else {}), **table_counts, **match_counts}, len(new_items)


def write_events_of(step: Step, dataset: Dataset, added: Increment) -> str | None:
    """The old files and one more, whose name is returned; or all parts anew once that is worth it."""
    old, new = dataset.folder / "events", step.folder / "events"
    for name in keep_events(old, new):
        step.kept[f"events/{name}"] = dataset.manifest["files"][f"events/{name}"]
    name = write_added(added.rows.events, new)
    step.counts["parts"] = dataset.manifest["counts"]["parts"]
    if not is_worth_rewriting(new, step.counts["accepted"]):
        return name
    step.kept.clear()
    step.counts["parts"] = rewrite_events(new, step.counts["accepted"])
    return None


def part_entry(dataset: Dataset, added: Increment, new_items: int) -> dict[str, Any]:
    """What this part is like, and how it differs from the one before."""
    events, counts = added.rows.events, dataset.manifest["counts"]
    figures = part_figures(
        events,
        added.rows.rejected,
        users=events["user_id"].n_unique(),
        items=events["item_id"].n_unique(),
        new_users=added.new_users,
        new_items=new_items,
    )
    late = int((events["timestamp"] < counts["last_timestamp"]).sum())
    previous = dataset.manifest["history"][-1]["figures"]
    return {"figures": figures, "drift": drift(figures, previous, counts, dataset.time, late)}


def join_inputs(
    step: Step, manifest: Mapping[str, Any], sources: Sequence[Path], table: Path | None, entry: dict[str, Any]
) -> None:
    """Notes all inputs, logs in the order of their arrival and then item tables, and the part itself."""
    logs, tables = read_before(manifest)
    described = [entry for entry in map(describe_input, sources) if entry not in logs]
    step.inputs = [*logs, *described, *tables, *([describe_input(table)] if table else [])]
    step.history = [*manifest["history"], {"sources": len(described), **entry}]


def read_before(manifest: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The dataset's logs, and its item tables in the order of their arrival."""
    count = sum(part["sources"] for part in manifest["history"])
    return manifest["inputs"][:count], manifest["inputs"][count:]


def summed(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """Counts by layout, added up."""
    return {name: before.get(name, 0) + now.get(name, 0) for name in [*before, *(set(now) - set(before))]}
