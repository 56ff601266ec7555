"""Prepared data: what training and evaluation read (the output of `recsys prepare`).

catalog.parquet   items.parquet (rows in catalogue order)   sequences/   split/
validation.parquet   test.parquet   manifest.json
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.catalog import Catalog
from recsys.schema import TimeKind
from recsys.sequences import SequenceStore
from recsys.splits import FitOn, Part, Split, TrainingEvents
from recsys.steps import read_manifest

SeenRule = Literal["exclude", "keep"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Catalogue, histories and split of one dataset."""

    folder: Path
    catalog: Catalog
    store: SequenceStore
    split: Split
    items: pl.DataFrame
    manifest: dict[str, Any]

    @property
    def time(self) -> TimeKind:
        """Whether timestamps are times or only an order."""
        return self.manifest["counts"]["time"]

    @property
    def seen(self) -> SeenRule:
        """Whether items of the history may be recommended again, as decided by `recsys prepare`."""
        return self.manifest["counts"]["seen"]

    @property
    def item_sources(self) -> npt.NDArray[np.int64]:
        """[V], which of the datasets that `recsys combine` put together an item is of; zeros where it did not."""
        sources = np.zeros(self.catalog.num_rows, dtype=np.int64)
        for number, name in enumerate(self.manifest["counts"].get("sources", ())):
            sources[1:][self.catalog.item_ids.str.starts_with(f"{name}/").to_numpy()] = number
        return sources

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all files: the same for the same prepared data, whenever it was prepared."""
        content = {"files": self.manifest["files"], "seen": self.seen, "time": self.time}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def training_events(self, fit_on: FitOn = "train") -> TrainingEvents:
        """What a model may learn from."""
        return TrainingEvents(self.store, self.split.fit_stops(fit_on), self.catalog.num_rows)

    def cases(self, part: Part) -> pl.DataFrame:
        """Evaluation cases of a part; see `recsys.splits.build_cases`."""
        return pl.read_parquet(self.folder / f"{part}.parquet")


def open_prepared(folder: Path) -> Prepared:
    """Opens the output of `recsys prepare`; histories stay memory-mapped."""
    manifest = read_manifest(folder, "prepare")
    return Prepared(
        folder=folder,
        catalog=Catalog.load(folder / "catalog.parquet"),
        store=SequenceStore.load(folder / "sequences"),
        split=Split.load(folder / "split"),
        items=pl.read_parquet(folder / "items.parquet"),
        manifest=manifest,
    )
