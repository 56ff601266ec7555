"""A log with titled items, and an encoder small enough to be trained on it."""

from pathlib import Path

import polars as pl
import torch
from builders import random_rows, write_dataset
from tiny import tiny_bert

from pipelines.prepare import PrepareConfig, prepare
from recsys.prepared import Prepared

COLOURS = ("red", "blue", "green", "old", "new")
THINGS = ("shoe", "hat", "book", "saw", "lamp", "cup", "door")


def shop_encoder(folder: Path) -> Path:
    """A random network that knows the words of all titles."""
    torch.manual_seed(0)
    return tiny_bert(folder, ("title", "brand", *COLOURS, *THINGS))


def shop(folder: Path, seed: int, users: int = 40, items: int = 25) -> Prepared:
    """Items with a colour and a thing for a title; one of them without."""
    rows = random_rows(seed, users, items, 700)
    names = sorted({item for _, item, _ in rows})
    titles = [None if number == 3 else f"{COLOURS[number % 5]} {THINGS[number % 7]}" for number in range(len(names))]
    dataset = write_dataset(folder / "dataset", rows, pl.DataFrame({"item_id": names, "title": titles}))
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared"))


def small(encoder: Path) -> tuple[str, ...]:
    """Settings of the tiny encoder."""
    sizes = ("vocab_size=19", "embedding_dim=12", "num_blocks=1", "num_heads=2", "ffn_dim=8", "max_tokens=40")
    model = tuple(f"model.{size}" for size in (*sizes, "max_len=6", f"text_encoder={encoder}"))
    training = ("epochs=2", "batch_size=8", "learning_rate=0.001", "precision=fp32")
    return (*model, *(f"training.{setting}" for setting in training))
