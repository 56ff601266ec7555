"""`recsys prepare --engine spark`: executors make histories and the k-core, the driver splits them."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipelines.prepare import Histories, PrepareConfig, as_histories, build_catalog, refuse_too_few
from pipelines.spark_engine import as_batches, on_driver, partition_id, spark_session, tasks_for, whole, write_whole
from recsys.catalog import Catalog
from recsys.cleaning import repeated_events
from recsys.schema import Dataset
from recsys.sequences import SequenceStore

if TYPE_CHECKING:
    from pipelines.spark_engine import Batches, DataFrame, Results

HISTORIES = "part long, owner string, user_id string, item_id string, timestamp long, weight float, place long"
WRITTEN = "number long"


def spark_histories(dataset: Dataset, config: PrepareConfig, scratch: Path) -> Histories:
    """What the Polars engine makes of every event; executors write into `scratch`, which is gone afterwards."""
    events = dataset.folder / "events"
    scratch.mkdir()
    with spark_session(config.master) as session:
        files = session.read.parquet(str(events))
        tasks = tasks_for(session, int(dataset.manifest["counts"].get("accepted", 0)))
        rows = _read(files, len(list(events.glob("part-*.parquet")))).repartitionByRange(tasks, "part", "user_id")
        found = rows.mapInArrow(partial(_histories, config=config), HISTORIES).persist()
        core = _core(found, config, scratch)
        catalog = build_catalog(dataset, on_driver(core.select("item_id").distinct())["item_id"], config)
        catalog.save(scratch / "catalog.parquet")
        ordered = found if core is found else core.repartitionByRange(tasks, "part", "owner")
        written = ordered.mapInArrow(partial(_write_histories, folder=scratch), WRITTEN).collect()
        weighed = "weight" in files.columns
    store = _store([scratch / _file(row["number"]) for row in sorted(written)], weighed)
    shutil.rmtree(scratch)
    pairs = pl.DataFrame({"user_id": store.event_users(), "item_id": store.item_idx})
    return Histories(catalog, store, repeated_events(pairs))


def _read(files: "DataFrame", parts: int) -> "DataFrame":
    """Events with what puts them in order: part, file and row."""
    return files.selectExpr(
        f"crc32(encode(user_id, 'utf-8')) % {parts} as part",
        "user_id",
        "item_id",
        "timestamp",
        "weight" if "weight" in files.columns else "cast(null as float) as weight",
        "_metadata.file_name as file",
        "_metadata.row_index as row",
    )


def _store(files: list[Path], weighed: bool) -> SequenceStore:
    """All histories, file after file."""
    rows = pl.concat([pl.read_parquet(path) for path in files])
    runs = rows.select(pl.col("user_id").rle()).unnest("user_id")
    return SequenceStore(
        offsets=np.concatenate([[0], np.cumsum(runs["len"].to_numpy())]).astype(np.int64),
        item_idx=rows["item_idx"].to_numpy(),
        timestamp=rows["timestamp"].to_numpy(),
        user_ids=runs["value"].alias("user_id"),
        weight=rows["weight"].fill_null(1).to_numpy() if weighed else None,
    )


def _file(number: int) -> str:
    return f"histories-{number:05d}.parquet"


def _histories(batches: "Batches", config: PrepareConfig) -> "Results":
    """Runs on executors: all events of some users in the order of the dataset (appended ones last), as histories."""
    rows = whole(batches)
    if rows is None:
        return
    ordered = rows.sort("part", "user_id", "timestamp", pl.col("file").str.starts_with("added-"), "file", "row")
    found = as_histories(ordered.with_columns(owner="user_id"), config).with_row_index("place")
    yield from as_batches(found, HISTORIES)


def _core(events: "DataFrame", config: PrepareConfig, scratch: Path) -> "DataFrame":
    """The k-core, as a fixed point of counts; the events themselves where none was asked for.

    Rounds go by pairs of user and item: an event is left where its pair is. Each round is written out, since plans
    that grow from round to round outgrow the driver.
    """
    least = {"user_id": config.min_user_events, "item_id": config.min_item_events}
    total, kept = events.count(), events
    if max(least.values()) > 1:
        pairs = events.groupBy(*least).count().withColumnRenamed("count", "events")
        before, left, number = -1, total, 0
        while left != before:
            before, number = left, number + 1
            _without_rare(pairs, least).write.parquet(str(scratch / f"round-{number}"))
            pairs = events.sparkSession.read.parquet(str(scratch / f"round-{number}"))
            left = int(pairs.selectExpr("coalesce(sum(events), 0) as events").collect()[0]["events"])
        for key in least:
            kept = kept.join(pairs.select(key).distinct(), key, "left_semi")
        kept = kept.select(*events.columns).persist()
    users, items = (kept.select(key).distinct().count() for key in least)
    refuse_too_few(users, items, total, config.min_user_events, config.min_item_events)
    return kept


def _without_rare(pairs: "DataFrame", least: Mapping[str, int]) -> "DataFrame":
    """Pairs whose user and item have so many events each."""
    kept = pairs
    for key, fewest in least.items():
        often = pairs.groupBy(key).sum("events").filter(f"`sum(events)` >= {fewest}").select(key)
        kept = kept.join(often, key, "left_semi")
    return kept.select(*pairs.columns)


def _write_histories(batches: "Batches", folder: Path) -> "Results":
    """Runs on executors: one file a partition, whose numbers are in the order of users."""
    rows = whole(batches)
    if rows is None:
        return
    ordered = rows.sort("part", "owner", "place")
    item_idx = Catalog.load(folder / "catalog.parquet").item_idx(ordered["item_id"])
    histories = ordered.select("user_id", "timestamp", "weight", item_idx=pl.Series(item_idx))
    write_whole(histories, folder / _file(partition_id()))
    yield from as_batches(pl.DataFrame([{"number": partition_id()}]), WRITTEN)
