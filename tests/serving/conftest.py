"""A real tiny bundle of two models, clients of the service, and torch's own ranking to compare with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fastapi.testclient import TestClient

from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.rearec import ReaRec, ReaRecConfig
from models.sasrec import SASRec, SASRecConfig
from recsys.batches import Histories
from recsys.bundle import ModelCard
from recsys.catalog import Catalog
from recsys.export import write_bundle_files
from recsys.steps import writing_step
from serving.app import create_app
from serving.settings import Settings

HOSTILE = "<script>alert('x')</script> & \"quoted\""
RETIRED = ("item-03", "item-17")
Client = Callable[..., TestClient]


@dataclass(frozen=True)
class Tiny:
    """A bundle and what it was made of."""

    folder: Path
    model: SASRec | BERT4Rec | ReaRec
    catalog: Catalog
    no_history: np.ndarray

    def scores(self, history: Sequence[str], **options: Any) -> np.ndarray:
        """Torch's scores [V] of every row after the last `max_len` known events; padding and retired are -inf."""
        rows = [self.catalog.rows[item_id] for item_id in history if item_id in self.catalog.rows]
        items = torch.tensor([rows[-self.model.max_len :]])
        batch = Histories(items, torch.zeros_like(items), torch.tensor([items.shape[1]], dtype=torch.int32))
        with torch.no_grad():
            scores = (self.model.encode(batch, **options) @ self.model.item_vectors().T)[0].numpy().copy()
        scores[[0, *self.catalog.retired_rows]] = -np.inf
        return scores


def random_model(name: str, num_items: int) -> SASRec | BERT4Rec | ReaRec:
    """Random weights, large enough for scores that differ."""
    torch.manual_seed(5)
    sizes: dict[str, Any] = {"num_items": num_items, "embedding_dim": 16, "num_blocks": 2, "num_heads": 2}
    models = {
        "sasrec": lambda: SASRec(SASRecConfig(max_len=10, **sizes)),
        "bert4rec": lambda: BERT4Rec(BERT4RecConfig(max_len=11, **sizes)),
        "rearec": lambda: ReaRec(ReaRecConfig(max_len=10, **sizes)),
    }
    model = models[name]()
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * torch.randn_like(weights)
        getattr(model, "backbone", model).items.weight[0].zero_()
    return model.eval()


def tiny_bundle(folder: Path, name: str, num_items: int, seen: str = "exclude") -> Tiny:
    """Writes a bundle as `recsys export` does."""
    catalog = Catalog.from_ids(["a/b", *(f"item-{number:02}" for number in range(1, num_items))]).without(RETIRED)
    model = random_model(name, num_items)
    items = pl.DataFrame({
        "item_id": catalog.item_ids,
        "title": [HOSTILE, None, *(f"Title {row}" for row in range(3, num_items + 1))],
        "categories": [["Drama", "War"] if row % 2 else None for row in range(1, num_items + 1)],
        "year": [1990 + row for row in range(num_items)],
    })
    no_history = np.random.default_rng(9).integers(0, 12, num_items + 1).astype(np.float32)
    no_history[0] = 99
    card = ModelCard(
        name=name,
        config={},
        max_len=model.max_len,
        seen=seen,
        no_history="popularity, recent",  # type: ignore[arg-type]
    )
    with writing_step("export", folder, config={}) as step:
        write_bundle_files(step.folder, model, card, catalog, items, no_history, {"test": {"ndcg_at_10": 0.25}})
    return Tiny(folder, model, catalog, no_history)


@pytest.fixture(scope="session")
def sasrec(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """53 items, window 10, seen items excluded."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "sasrec", "sasrec", 53)


@pytest.fixture(scope="session")
def bert4rec(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """41 items, window 10, seen items kept."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "bert4rec", "bert4rec", 41, seen="keep")


@pytest.fixture(scope="session")
def rearec(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """43 items, window 10, two steps, seen items kept."""
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "rearec", "rearec", 43, seen="keep")


@pytest.fixture
def client_of(tmp_path: Path) -> Iterator[Client]:
    """`client_of(tiny, history_limit=5)`: a started service whose state is `tmp_path / "state.sqlite"`."""
    with ExitStack() as stack:

        def start(tiny: Tiny, **settings: Any) -> TestClient:
            app = create_app(tiny.folder, Settings(**{"state": tmp_path / "state.sqlite", **settings}))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield start


@pytest.fixture
def client(client_of: Client, sasrec: Tiny) -> TestClient:
    """The service on the SASRec bundle."""
    return client_of(sasrec)
