"""Logs with planted noise: users stay within one cluster of items, and some events come from others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys.partitions import write_events
from recsys.sequences import SequenceStore
from recsys.splits import TrainingEvents
from recsys.steps import writing_step

CLUSTERS, CLUSTER_SIZE = 6, 10
NUM_ITEMS = CLUSTERS * CLUSTER_SIZE
NOUNS = ("river", "engine", "guitar", "carrot", "galaxy", "puppy")


@dataclass(frozen=True)
class NoisyLog:
    """Item rows of each user without and with noise; `noisy` is True where they differ."""

    clean: list[list[int]]
    seen: list[list[int]]
    noisy: list[list[bool]]

    @property
    def events(self) -> TrainingEvents:
        """All noisy events, over rows of `NUM_ITEMS` items."""
        return training_events(self.seen)


def cluster_of(row: int) -> int:
    """Cluster of an item row."""
    return (row - 1) // CLUSTER_SIZE


def clustered_log(num_users: int = 150, length: int = 11, rate: float = 0.1, seed: int = 0) -> NoisyLog:
    """In a cluster an item is followed by the next but one; noise comes from another cluster."""
    rng = np.random.default_rng(seed)
    clean, seen, noisy = [], [], []
    for _ in range(num_users):
        cluster, start = rng.integers(CLUSTERS), rng.integers(CLUSTER_SIZE)
        row = [1 + int(cluster) * CLUSTER_SIZE + int(start + 3 * step) % CLUSTER_SIZE for step in range(length)]
        mask = (rng.random(length) < rate).tolist()
        others = [item for item in range(1, NUM_ITEMS + 1) if cluster_of(item) != cluster]
        clean.append(row)
        noisy.append(mask)
        seen.append([int(rng.choice(others)) if bad else item for item, bad in zip(row, mask, strict=True)])
    return NoisyLog(clean, seen, noisy)


def training_events(histories: Sequence[Sequence[int]], num_items: int = NUM_ITEMS) -> TrainingEvents:
    """Everything of these histories."""
    lengths = [len(history) for history in histories]
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    store = SequenceStore(
        offsets=offsets,
        item_idx=np.array([row for history in histories for row in history], dtype=np.int32),
        timestamp=np.arange(offsets[-1]),
        user_ids=pl.Series([f"u{user:03d}" for user in range(len(histories))], dtype=pl.String),
    )
    return TrainingEvents(store, np.array(lengths, dtype=np.int64), num_items + 1)


def write_log(folder: Path, histories: Sequence[Sequence[int]], titled: bool = True) -> Path:
    """The histories as `recsys ingest` leaves them, a second apart; titles name the cluster."""
    rows = [
        (f"u{user:03d}", f"i{row:02d}", 1_000_000 * (step * len(histories) + user))
        for user, history in enumerate(histories)
        for step, row in enumerate(history)
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{row:02d}" for row in range(1, NUM_ITEMS + 1)]})
    if titled:
        names = [f"{NOUNS[cluster_of(row)]} number {row}" for row in range(1, NUM_ITEMS + 1)]
        items = items.with_columns(title=pl.Series(names))
    with writing_step("ingest", folder, config={}) as step:
        write_events(events, step.folder / "events")
        items.write_parquet(step.folder / "items.parquet")
        step.counts["time"] = "timestamp"
    return folder
