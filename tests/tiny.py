"""Small data for tests: histories as lists of item rows, and prepared data on disk made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from pipelines.prepare import PrepareConfig, prepare
from recsys.batches import Histories
from recsys.partitions import write_events
from recsys.prepared import Prepared
from recsys.sequences import SequenceStore, Windows
from recsys.splits import TrainingEvents
from recsys.steps import writing_step

PRIME = 31
START_OF_TIME = 1_700_000_000_000_000


def store_of(histories: Sequence[Sequence[int]], timestamps: Sequence[int] | None = None) -> SequenceStore:
    """Histories of item rows; every event one microsecond after the one before, unless times are given."""
    offsets = np.cumsum([0, *map(len, histories)])
    return SequenceStore(
        offsets=offsets.astype(np.int64),
        item_idx=np.array([row for history in histories for row in history], dtype=np.int32),
        timestamp=np.arange(offsets[-1]) if timestamps is None else np.array(timestamps, dtype=np.int64),
        user_ids=pl.Series([f"u{user:03d}" for user in range(len(histories))], dtype=pl.String),
    )


def events_of(
    histories: Sequence[Sequence[int]],
    num_rows: int,
    stops: Sequence[int] | None = None,
    timestamps: Sequence[int] | None = None,
) -> TrainingEvents:
    """The first `stops` events of each history (all of them by default) as training events."""
    lengths = [len(history) for history in histories]
    return TrainingEvents(store_of(histories, timestamps), np.array(stops or lengths, dtype=np.int64), num_rows)


def item_table(num_items: int) -> pl.DataFrame:
    """Items with a text of two words, one of them shared by every third item."""
    rows = range(1, num_items + 1)
    return pl.DataFrame({
        "item_id": [f"i{row:02d}" for row in rows],
        "title": [f"kind{row % 3} name{row}" for row in rows],
    })


def irregular_times(length: int) -> list[int]:
    """Microseconds of the first `length` events of any history: from 1 to 4 million seconds apart, out of order."""
    gaps = [2 ** ((7 * place) % 23) for place in range(length)]
    return (START_OF_TIME + 1_000_000 * np.cumsum(gaps, dtype=np.int64)).tolist()


def windows_of(histories: Sequence[Sequence[int]], timestamps: Sequence[Sequence[int]] | None = None) -> Windows:
    """Right-padded windows of whole histories, at irregular times unless others are given."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    times = [irregular_times(length) for length in lengths] if timestamps is None else timestamps
    store = store_of(histories, [time for history in times for time in history])
    return store.windows(np.arange(len(histories)), lengths, max(1, int(lengths.max())))


def histories_of(
    histories: Sequence[Sequence[int]], width: int | None = None, timestamps: Sequence[Sequence[int]] | None = None
) -> Histories:
    """The same as a model's input, padded to `width`."""
    batch = Histories.from_windows(windows_of(histories, timestamps))
    missing = 0 if width is None else width - batch.items.shape[1]
    padded = torch.nn.functional.pad
    return Histories(padded(batch.items, (0, missing)), padded(batch.timestamps, (0, missing)), batch.lengths)


def random_histories(count: int, num_items: int, longest: int, seed: int = 0, shortest: int = 1) -> list[list[int]]:
    """`count` histories of `shortest` to `longest` items, the first one as long as may be."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, count)
    lengths[0] = longest
    return [rng.integers(1, num_items + 1, length).tolist() for length in lengths]


def cyclic_histories(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Items 1..31 with next = 7 * item + 3 (mod 31) when counted from 0: the last item decides the next."""
    rng = np.random.default_rng(seed)
    histories = []
    for start in rng.integers(0, PRIME, count):
        numbers = [int(start)]
        while len(numbers) < length:
            numbers.append((7 * numbers[-1] + 3) % PRIME)
        histories.append([number + 1 for number in numbers])
    return histories


def write_dataset(folder: Path, histories: Mapping[str, Sequence[str]]) -> Path:
    """What `recsys ingest` would write of these histories; the users' events interleave, a minute apart."""
    users = list(histories)
    events = pl.DataFrame([
        {
            "user_id": user,
            "item_id": item,
            "timestamp": START_OF_TIME + 60_000_000 * (place * len(users) + number),
        }
        for number, user in enumerate(users)
        for place, item in enumerate(histories[user])
    ]).sort("user_id", "timestamp", maintain_order=True)
    items = sorted({item for history in histories.values() for item in history})
    with writing_step("ingest", folder, config={}) as step:
        write_events(
            events.with_columns(
                event_type=pl.lit(None, pl.String), value=pl.lit(None, pl.Float32), session_id=pl.lit(None, pl.String)
            ),
            step.folder / "events",
        )
        pl.DataFrame({"item_id": items, "title": [f"title of {item}" for item in items]}).write_parquet(
            step.folder / "items.parquet"
        )
        step.counts["time"] = "timestamp"
    return folder


def tiny_prepared(folder: Path, num_users: int = 37, seed: int = 0, **settings: Any) -> Prepared:
    """Prepared data of users who mostly follow next = 7x+3 (mod 31), 3 to 11 events each; leave-one-out."""
    rng = np.random.default_rng(seed)
    histories = {
        f"user-{number:02d}": [
            f"item-{row if rng.random() < 0.9 else rng.integers(1, PRIME + 1):02d}"
            for row in cyclic_histories(1, int(rng.integers(3, 12)), seed=100 + number)[0]
        ]
        for number in range(num_users)
    }
    dataset = write_dataset(folder / "dataset", histories)
    options: dict[str, Any] = {"split": "last-item", "seen": "keep"} | settings
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", **options))


def tiny_bert(folder: Path, words: Sequence[str]) -> Path:
    """A random BERT of these words, as `save_pretrained` leaves it: weights, config and tokeniser."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast  # seconds, for the few tests that need it

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizerFast(vocab={word: place for place, word in enumerate(vocabulary)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder
