"""Bundles of large made catalogues, for what only depends on sizes and on how vectors lie.

Item vectors are in clusters, as a trained model's are: a centre of its cluster plus noise. The network is a SASRec with
small random weights, whose state after a history stays near its latest items, so searches go where clusters are, and
what an index must do is like what it must do for a trained model. Popularity falls as in a log (Zipf). A user has a few
clusters and reads around in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from models.sasrec import SASRec, SASRecConfig
from recsys.approximate import IndexChoice, choose_index
from recsys.batches import Histories
from recsys.bundle import APPROXIMATE_INDEX, INDEX, ModelCard
from recsys.catalog import Catalog
from recsys.export import write_bundle_files
from recsys.index import FloatArray, ItemIndex
from recsys.sequences import IntArray
from recsys.steps import writing_step

WIDTH, MAX_LEN, NOISE, ITEMS_A_CLUSTER = 64, 200, 0.7, 100
TASTES, SHORTEST, LONGEST = 4, 5, 400
SEED, QUERIES = 0, 200


@dataclass(frozen=True)
class Made:
    """A catalogue of so many items; rows of one cluster follow one another."""

    num_items: int

    @property
    def clusters(self) -> int:
        """How many."""
        return self.num_items // ITEMS_A_CLUSTER

    def vectors(self) -> FloatArray:
        """[V, D], zeros for padding; length about 1."""
        rng = np.random.default_rng(SEED)
        centres = rng.normal(size=(self.clusters, WIDTH)).astype(np.float32)
        vectors = np.repeat(centres, ITEMS_A_CLUSTER, axis=0)
        vectors += NOISE * rng.standard_normal(vectors.shape, dtype=np.float32)
        vectors /= np.sqrt(WIDTH * (1 + NOISE**2), dtype=np.float32)
        return np.concatenate([np.zeros((1, WIDTH), dtype=np.float32), vectors])

    def popularity(self) -> FloatArray:
        """[V]: Zipf's, of items in random order."""
        ranks = np.random.default_rng(SEED + 1).permutation(self.num_items) + 1
        return np.concatenate([[0.0], 1e6 / ranks]).astype(np.float32)

    def histories(self, users: int) -> list[IntArray]:
        """Item rows, oldest first, as many events as logs have: few of most, many of some."""
        rng = np.random.default_rng(SEED + 2)
        lengths = np.clip(rng.lognormal(3.6, 1.0, users), SHORTEST, LONGEST).astype(int)
        tastes = rng.integers(0, self.clusters, (users, TASTES))
        return [
            1 + rng.choice(own, length) * ITEMS_A_CLUSTER + rng.integers(0, ITEMS_A_CLUSTER, length)
            for own, length in zip(tastes, lengths.tolist(), strict=True)
        ]

    def write(self, folder: Path) -> None:
        """The bundle, as `recsys export` writes one; beyond 200,000 items with the index that its `auto` chooses."""
        config = SASRecConfig(num_items=self.num_items, max_len=MAX_LEN, embedding_dim=WIDTH, positions="none")
        torch.manual_seed(SEED)
        model = SASRec(config).eval()
        with torch.no_grad():
            model.items.weight.copy_(torch.from_numpy(self.vectors()))
        catalog = Catalog.from_ids(map(str, range(1, self.num_items + 1)))
        items = pl.DataFrame({"item_id": catalog.item_ids})
        card = ModelCard(name="sasrec", config={}, max_len=MAX_LEN, seen="exclude", no_history="popularity")
        choice = IndexChoice()
        with writing_step("export", folder, config={"made": self.num_items}) as step:
            write_bundle_files(step.folder, model, card, catalog, items, self.popularity(), {})
            step.counts["index"] = {"kind": "flat", "recall": 1.0}
            if choice.kinds(self.num_items):
                chosen = choose_index(
                    choice, ItemIndex.load(step.folder / INDEX), encoded(model, self.histories(QUERIES))
                )
                ItemIndex(chosen.index).save(step.folder / APPROXIMATE_INDEX)
                step.counts["index"] = chosen.as_dict() | {"queries": QUERIES}


@torch.no_grad()
def encoded(model: SASRec, histories: Sequence[IntArray]) -> FloatArray:
    """[B, D]."""
    items = torch.zeros((len(histories), MAX_LEN), dtype=torch.int64)
    windows = [history[-MAX_LEN:] for history in histories]
    for row, window in zip(items, windows, strict=True):
        row[: len(window)] = torch.from_numpy(window)
    lengths = torch.tensor([len(window) for window in windows], dtype=torch.int32)
    return model.encode(Histories(items, torch.zeros_like(items), lengths)).numpy()
