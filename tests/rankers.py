"""Small rankers for tests, and what they are asked."""

from typing import Any, get_args

import numpy as np
import torch
from tiny import histories_of, random_histories, windows_of

from models.dare import DARE, DAREConfig, Method
from recsys.batches import Histories, TrainBatch

NUM_ITEMS, NUM_CATEGORIES = 29, 5
SMALL: dict[str, Any] = {
    "num_items": NUM_ITEMS,
    "num_categories": NUM_CATEGORIES,
    "max_len": 11,
    "kept": 4,
    "embedding_dim": 3,
    "time_buckets": 9,
    "hidden": (7, 5),
    "positives": 6,
    "hash_bits": 12,
    "cluster_bits": 2,
}
METHODS: tuple[Method, ...] = get_args(Method)


def ranker(method: str = "dare", **settings: Any) -> DARE:
    """A small one, the same every time; items take turns in having the categories 0 (none) to 5."""
    torch.manual_seed(0)
    config = DAREConfig(**SMALL | {"method": method} | settings)
    model = DARE(config)
    rows = torch.arange(config.num_items + 1)
    model.learn_categories(rows % (config.num_categories + 1))
    model.learn_popularity(rows.clamp(max=1).numpy())
    return model


def scrambled(model: DARE, seed: int = 0) -> DARE:
    """Every weight drawn anew and large, so that no fresh zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model


def asked(rows: int = 5, longest: int = 11, candidates: int = 7, seed: int = 0) -> tuple[Histories, torch.Tensor]:
    """Histories at irregular times, and candidates."""
    rng = np.random.default_rng(seed)
    histories = histories_of(random_histories(rows, NUM_ITEMS, longest, seed))
    return histories, torch.from_numpy(rng.integers(1, NUM_ITEMS + 1, (rows, candidates)))


def clicks(model: DARE, rows: int = 5, seed: int = 0) -> TrainBatch:
    """The model's own training batch of random histories of 2 to as many events as a window holds."""
    histories = random_histories(rows, model.config.num_items, model.window.length, seed, shortest=2)
    return model.training_batch(windows_of(histories), np.random.default_rng(seed))
