"""The native dataset: `events/*.parquet`, `items.parquet`, `rejected.parquet`, `manifest.json`.

Events are ordered by (user, timestamp, source order): ties keep the order of the source, since an unstable
sort would change which event is a user's last.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dataframely as dy
import polars as pl

from recsys.errors import DataError
from recsys.partitions import events_of_users, item_ids, part_files, read_part
from recsys.steps import read_manifest

TimeKind = Literal["timestamp", "order"]

ROLES = ("user_id", "item_id", "timestamp", "event_type", "value", "session_id")
REQUIRED_ROLES = ("user_id", "item_id")


class Events(dy.Schema):
    """One interaction. `timestamp` is microseconds since 1970 UTC, or the row number for sources without times."""

    user_id = dy.String(nullable=False, min_length=1)
    item_id = dy.String(nullable=False, min_length=1)
    timestamp = dy.Int64(nullable=False)
    event_type = dy.String(nullable=True)
    value = dy.Float32(nullable=True, allow_nan=False, allow_inf=False)
    session_id = dy.String(nullable=True)


class Items(dy.Schema):
    """One catalogue entry; further columns are free text attributes of the source."""

    item_id = dy.String(nullable=False, min_length=1, primary_key=True)


class Rejected(dy.Schema):
    """One row that did not become an event: where it stood (1-based data row, and line of the file where it has lines),
    why, and what it held."""

    source = dy.String(nullable=False)
    row = dy.Int64(nullable=False)
    line = dy.Int64(nullable=True)
    reason = dy.String(nullable=False)
    content = dy.String(nullable=False)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A validated dataset on disk."""

    folder: Path
    time: TimeKind
    manifest: dict[str, Any]

    def events(self) -> pl.DataFrame:
        """All events by (user, timestamp, source order); columns of `Events`."""
        return pl.concat(self.parts())

    def parts(self) -> Iterator[pl.DataFrame]:
        """The same part by part: each holds all events of its users."""
        folder = self.folder / "events"
        return (read_part(folder, number) for number in range(len(part_files(folder))))

    def events_of(self, user_ids: pl.Series) -> pl.DataFrame:
        """All events of some users, by (user, timestamp, source order)."""
        return events_of_users(self.folder / "events", user_ids)

    def item_ids(self) -> pl.DataFrame:
        """Distinct `item_id` of the events, in no order."""
        return item_ids(self.folder / "events")

    def rejected(self) -> pl.DataFrame:
        """Rows that are no events; columns of `Rejected`."""
        return pl.read_parquet(self.folder / "rejected.parquet")

    def items(self) -> pl.DataFrame:
        """Item attributes; columns of `Items` and the source's own."""
        return pl.read_parquet(self.folder / "items.parquet")


def open_dataset(folder: Path) -> Dataset:
    """Opens the output of `recsys ingest`."""
    manifest = read_manifest(folder, "ingest")
    if not part_files(folder / "events"):
        raise DataError(f"{folder}: has no events/part-*.parquet; run `recsys ingest` again.")
    return Dataset(folder=folder, time=manifest["counts"]["time"], manifest=manifest)
