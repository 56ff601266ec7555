"""`recsys prepare`: a dataset becomes a catalogue, CSR histories, a split and its evaluation cases."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from pipelines.options import LOCAL_MASTER, Engine
from recsys.catalog import Catalog
from recsys.cleaning import repeated_events
from recsys.errors import ConfigError, DataError
from recsys.growth import grown
from recsys.increments import added_since
from recsys.partitions import write_table
from recsys.prepared import Prepared, SeenRule, open_prepared
from recsys.schema import Dataset, open_dataset
from recsys.sequences import SequenceStore, joined
from recsys.splits import (
    Split,
    SplitKind,
    build_cases,
    instants_by_share,
    split_by_time,
    split_last_item,
    split_sizes,
)
from recsys.steps import writing_step
from recsys.windows import collapsed, sessions

REPEAT_SHARE_TO_KEEP_SEEN = 0.01


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of `recsys prepare`; instants are ISO dates or times in UTC.

    `retire`: a text file of item ids, one a line, that no answer may hold any more; they keep their rows.
    `repeats`: `collapse` leaves the first of a run of the same item; `session_gap` minutes without an event part a
    user's events into sessions, each a history of its own (0: no sessions).
    """

    dataset: Path
    out: Path
    split: SplitKind = "time"
    validation_share: float = 0.1
    test_share: float = 0.1
    validation_from: str | None = None
    test_from: str | None = None
    min_user_events: int = 1
    min_item_events: int = 1
    repeats: Literal["keep", "collapse"] = "keep"
    session_gap: float = 0.0
    seen: Literal["auto", "exclude", "keep"] = "auto"
    extend: Path | None = None
    retire: Path | None = None
    engine: Engine = "polars"
    master: str = LOCAL_MASTER
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.validation_share and 0 < self.test_share and self.validation_share + self.test_share < 1):
            raise ConfigError(
                f"prepare: validation_share={self.validation_share} and test_share={self.test_share} must be above 0 "
                "and leave something to train on."
            )
        if (self.validation_from is None) != (self.test_from is None):
            raise ConfigError("prepare: give both --validation-from and --test-from, or neither.")
        if self.split == "last-item" and self.test_from is not None:
            raise ConfigError("prepare: --validation-from and --test-from belong to --split time, not to last-item.")
        if self.session_gap < 0:
            raise ConfigError(f"prepare: --session-gap {self.session_gap} must be at least 0 minutes (0: no sessions).")


def prepare(config: PrepareConfig) -> Prepared:
    """Writes prepared data to `config.out` and opens it."""
    dataset = open_dataset(config.dataset)
    settings = {key: value for key, value in asdict(config).items() if key not in {"overwrite", "out"}}
    retired = read_item_ids(config.retire) if config.retire is not None else []
    if config.session_gap and dataset.time == "order":
        raise DataError(
            f"{dataset.folder}: its events have an order but no time, so --session-gap {config.session_gap} cannot "
            "tell sessions; leave it out, or ingest a source with timestamps."
        )
    inputs = [path for path in (config.dataset, config.extend, config.retire) if path is not None]
    with writing_step("prepare", config.out, config=settings, inputs=inputs, overwrite=config.overwrite) as step:
        found = grown_histories(dataset, config) or all_histories(dataset, config, step.folder)
        catalog, store = found.catalog.without(retired), found.store
        split, instants = make_split(store, dataset, config)
        catalog.save(step.folder / "catalog.parquet")
        write_table(catalog_items(dataset, catalog), step.folder / "items.parquet")
        store.save(step.folder / "sequences")
        split.save(step.folder / "split")
        cases = {part: build_cases(store, split, part, catalog.num_rows) for part in ("validation", "test")}
        for part, table in cases.items():
            write_table(table, step.folder / f"{part}.parquet")
        train, validation, test = split_sizes(store, split)
        repeats = found.repeated / store.num_events
        step.counts.update({
            "users": store.num_users,
            "items": catalog.num_items,
            "retired_items": len(catalog.retired),
            "events": store.num_events,
            "train_events": train,
            "validation_cases": validation,
            "test_cases": test,
            **{f"test_{tag}_cases": int(cases["test"][tag].sum()) for tag in ("new_user", "cold_item")},
            **instants,
            "time": dataset.time,
            **({"sources": dataset.manifest["counts"]["sources"]} if "sources" in dataset.manifest["counts"] else {}),
            "repeated_events": found.repeated,
            "repeat_share": repeats,
            "seen": seen_rule(config.seen, repeats),
        })
    return open_prepared(config.out)


def as_histories(events: pl.DataFrame, config: PrepareConfig) -> pl.DataFrame:
    """Ordered events whose `user_id` names the history they are of; needs all events of a user, not all users."""
    if config.session_gap:  # before any event is left out: each is activity
        events = sessions(events, config.session_gap).with_columns(user_id="session_id")
    return collapsed(events) if config.repeats == "collapse" else events


@dataclass(frozen=True)
class Histories:
    """Catalogue, histories, and how many events repeat an item of their user's."""

    catalog: Catalog
    store: SequenceStore
    repeated: int


def all_histories(dataset: Dataset, config: PrepareConfig, folder: Path) -> Histories:
    """From every event of the dataset, part by part; a k-core needs all of them at once.

    Spark keeps what its executors write below `folder` until it is read.
    """
    if config.engine == "spark":
        from pipelines.spark_prepare import spark_histories

        return spark_histories(dataset, config, folder / "scratch")
    if config.min_user_events > 1 or config.min_item_events > 1:
        events = k_core(as_histories(dataset.events(), config), config.min_user_events, config.min_item_events)
        catalog = build_catalog(dataset, events["item_id"], config)
        return Histories(catalog, SequenceStore.from_events(events, catalog), repeated_events(events))
    ids = dataset.item_ids()["item_id"]
    catalog = build_catalog(dataset, ids, config)
    stores, repeated = list[SequenceStore](), 0
    for part in dataset.parts():
        events = as_histories(part, config)
        stores.append(SequenceStore.from_events(events, catalog))
        repeated += repeated_events(events)
    store = joined(stores)
    refuse_too_few(store.num_users, len(ids), store.num_events)
    return Histories(catalog, store, repeated)


def grown_histories(dataset: Dataset, config: PrepareConfig) -> Histories | None:
    """The histories of `config.extend` with what was appended to the dataset since, equal to `all_histories`.

    None where that would not be exact: another dataset, one whose parts were written anew since, a k-core, in which an
    event of one user can bring back or keep out events of any other, or histories that are not all events of a user.
    """
    if config.extend is None or not keeps_all_events(asdict(config)):
        return None
    before = open_prepared(config.extend)
    counts = before.manifest["counts"]
    added = added_since(dataset, before.manifest["inputs"][0]["sha256"])
    if added is None or not keeps_all_events(before.manifest["config"]):
        return None
    catalog = build_catalog(dataset, dataset.items()["item_id"], config)  # every item of the events is in it
    if not any(map(len, added)):
        return Histories(catalog, before.store, counts["repeated_events"])
    growth = grown(before.store, added, catalog, dataset.manifest["counts"]["parts"])
    return Histories(catalog, growth.store, counts["repeated_events"] + growth.more_repeated)


def keeps_all_events(settings: Mapping[str, Any]) -> bool:
    """Whether histories made with these settings, which a manifest may hold, are all events of one user each."""
    whole = settings["min_user_events"] <= 1 and settings["min_item_events"] <= 1
    return whole and settings.get("repeats", "keep") == "keep" and not settings.get("session_gap")


def k_core(events: pl.DataFrame, min_user_events: int, min_item_events: int) -> pl.DataFrame:
    """Events of users and items that keep at least these many events, repeated until nothing more falls out."""
    kept = events
    while True:
        before = len(kept)
        kept = kept.filter(
            (pl.len().over("user_id") >= min_user_events) & (pl.len().over("item_id") >= min_item_events)
        )
        if len(kept) == before:
            break
    refuse_too_few(
        kept["user_id"].n_unique(), kept["item_id"].n_unique(), len(events), min_user_events, min_item_events
    )
    return kept


def refuse_too_few(users: int, items: int, num_events: int, min_user_events: int = 1, min_item_events: int = 1) -> None:
    """Raises where nothing is left to rank or to learn from."""
    if users < 2 or items < 2:
        raise DataError(
            f"prepare: {users} users and {items} items are left of {num_events} events with min_user_events="
            f"{min_user_events} and min_item_events={min_item_events}; at least 2 of each are needed. Lower the "
            "minimums or bring more logs."
        )


def build_catalog(dataset: Dataset, ids: pl.Series, config: PrepareConfig) -> Catalog:
    """All items of the kept events (`ids`); items known only by their description join when no k-core was asked for."""
    if config.min_item_events <= 1:
        ids = pl.concat([ids, dataset.items()["item_id"]])
    if config.extend is None:
        return Catalog.from_ids(ids)
    return open_prepared(config.extend).catalog.extended(ids)


def read_item_ids(path: Path) -> list[str]:
    """The lines of a text file."""
    if not path.is_file():
        raise DataError(f"prepare: {path}: no such file; --retire needs a text file of item ids, one a line.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def catalog_items(dataset: Dataset, catalog: Catalog) -> pl.DataFrame:
    """The item table in catalogue order, one row an item."""
    return pl.DataFrame({"item_id": catalog.item_ids}).join(
        dataset.items(), on="item_id", how="left", maintain_order="left"
    )


def make_split(store: SequenceStore, dataset: Dataset, config: PrepareConfig) -> tuple[Split, dict[str, str]]:
    """The split, and for `time` its two instants as ISO text."""
    if config.split == "last-item":
        return split_last_item(store), {}
    if dataset.time == "order":
        raise DataError(
            f"{dataset.folder}: its events have an order but no time, and a split by time needs one; "
            "use --split last-item, or ingest a source with timestamps."
        )
    if config.validation_from is not None and config.test_from is not None:
        validation_from, test_from = instant(config.validation_from), instant(config.test_from)
    else:
        validation_from, test_from = instants_by_share(
            np.asarray(store.timestamp), config.validation_share, config.test_share
        )
    as_text = {"validation_from": iso(validation_from), "test_from": iso(test_from)}
    return split_by_time(store, validation_from, test_from), as_text


def instant(text: str, command: str = "prepare") -> int:
    """Microseconds since 1970 of an ISO date or time; UTC where it names no zone. Errors begin with the command."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{command}: {text!r} is not an ISO date or time such as 2026-03-01 or 2026-03-01T12:00."
        ) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000)


def iso(timestamp: int) -> str:
    """ISO text of microseconds since 1970, UTC; numpy also writes years that `datetime` cannot hold."""
    seconds, microseconds = divmod(timestamp, 1_000_000)
    fraction = f".{microseconds:06}" if microseconds else ""
    return f"{np.datetime64(seconds, 's')}{fraction}+00:00"


def seen_rule(asked: Literal["auto", "exclude", "keep"], repeats: float) -> SeenRule:
    """What was asked for; with `auto`, seen items are excluded unless users do repeat them."""
    if asked != "auto":
        return asked
    return "keep" if repeats >= REPEAT_SHARE_TO_KEEP_SEEN else "exclude"
