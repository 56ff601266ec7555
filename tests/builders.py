"""Small datasets and folders that several test files start from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import strategies as st

from recsys.bundle import ModelCard
from recsys.catalog import Catalog
from recsys.index import ItemIndex
from recsys.sequences import SequenceStore
from recsys.splits import Split
from recsys.steps import write_json, writing_step

Row = tuple[str, str, int]

HISTORIES = st.lists(
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 12)), min_size=1, max_size=9), min_size=1, max_size=7
).map(lambda users: [sorted(user, key=lambda event: event[1]) for user in users])
"""Per user the events (item row 1-7, time), in time order; few items and times on purpose: ties are the hard part."""


def events_of(rows: Sequence[Row]) -> pl.DataFrame:
    """Rows (user, item, time) in the order of a dataset: by user and time, ties as given."""
    table = pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row")
    return table.sort("user_id", "timestamp", maintain_order=True)


def store_of(histories: Sequence[Sequence[tuple[int, int]]]) -> SequenceStore:
    """A store of users' events (item row, time), without a catalogue."""
    events = [event for user in histories for event in user]
    return SequenceStore(
        offsets=np.cumsum([0, *(len(user) for user in histories)]).astype(np.int64),
        item_idx=np.array([item for item, _ in events], dtype=np.int32),
        timestamp=np.array([time for _, time in events], dtype=np.int64),
        user_ids=pl.Series("user_id", [f"u{row}" for row in range(len(histories))], dtype=pl.String),
    )


def split_of(train: Sequence[int], validation: Sequence[int]) -> Split:
    """A split from its two positions of each user."""
    return Split(np.array(train, dtype=np.int64), np.array(validation, dtype=np.int64))


def write_dataset(
    folder: Path, rows: Sequence[Row], items: pl.DataFrame | None = None, time: str = "timestamp"
) -> Path:
    """A dataset as `recsys ingest` leaves it."""
    events = events_of(rows)
    if items is None:
        items = events.select(pl.col("item_id").unique().sort())
    with writing_step("ingest", folder, config={}) as step:
        (step.folder / "events").mkdir()
        events.write_parquet(step.folder / "events" / "part-00000.parquet")
        items.write_parquet(step.folder / "items.parquet")
        step.counts["time"] = time
    return folder


def random_rows(seed: int, users: int, items: int, events: int) -> list[Row]:
    """Users walk from item to the next one (or anywhere, one time in four); all times differ."""
    rng = np.random.default_rng(seed)
    rows, last = [], rng.integers(items, size=users)
    for time in range(events):
        user = time if time < users else int(rng.integers(users))
        last[user] = rng.integers(items) if rng.random() < 0.25 else (last[user] + 1) % items
        rows.append((f"u{user:03}", f"i{last[user]:03}", time * 1_000_000))
    return rows


def write_bundle(folder: Path, seed: int = 0, mlflow_run_id: str | None = None) -> Path:
    """A bundle that verifies and opens; its encoder is a placeholder, so nothing here needs an exporter."""
    rng = np.random.default_rng(seed)
    catalog = Catalog.from_ids(["a", "b", "c", "d", "e"])
    card = ModelCard(name="sasrec", config={"embedding_dim": 3}, max_len=4, seen="exclude", no_history="popularity")
    with writing_step("export", folder, config={}) as step:
        write_json(step.folder / "model.json", vars(card))
        write_json(step.folder / "metrics.json", {})
        (step.folder / "model.safetensors").write_bytes(rng.bytes(64))
        (step.folder / "encoder.onnx").write_bytes(rng.bytes(64))
        ItemIndex.build(rng.normal(size=(catalog.num_rows, 3)).astype(np.float32)).save(step.folder / "index.faiss")
        catalog.save(step.folder / "catalog.parquet")
        pl.DataFrame({"item_id": catalog.item_ids}).write_parquet(step.folder / "items.parquet")
        step.counts["mlflow_run_id"] = mlflow_run_id
        np.save(step.folder / "no_history.npy", rng.random(catalog.num_rows).astype(np.float32))
    return folder
