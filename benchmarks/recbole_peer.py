"""RecBole 1.2.1 on the same file, window and width as ours: the peer of benchmarks/path.py."""

import contextlib
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

REMOVED_ALIASES: Mapping[str, Any] = {
    "float": float,
    "int": int,
    "bool": bool,
    "object": object,
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
}
"""Names that numpy 2 dropped and RecBole still uses."""


@dataclass(frozen=True)
class PeerTimes:
    """Seconds of RecBole; the epoch is measured batches scaled up to all of them."""

    prepare: float
    epoch: float
    evaluate: float
    batches_timed: int
    batches: int


def time_recbole(log: Path, window: int, width: int, batches: int) -> PeerTimes:
    """Prepares, trains `batches` batches of SASRec with cross-entropy, and evaluates all users by full ranking."""
    warnings.filterwarnings("ignore")
    for name, alias in REMOVED_ALIASES.items():
        if not hasattr(np, name):
            setattr(np, name, alias)
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    config = Config(model="SASRec", dataset=log.stem, config_dict=settings(log, window, width))
    init_seed(0, True)
    began = time.perf_counter()
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    prepared = time.perf_counter()
    model = get_model("SASRec")(config, train._dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    started = time.perf_counter()
    for number, batch in zip(range(batches + 1), train, strict=False):
        if number == 1:
            started = time.perf_counter()  # the first batch warms up
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
    trained = time.perf_counter()
    with contextlib.chdir(tempfile.mkdtemp()):  # RecBole's trainer opens a log in the working folder
        get_trainer(config["MODEL_TYPE"], "SASRec")(config, model).evaluate(test, load_best_model=False)
    return PeerTimes(
        prepare=prepared - began,
        epoch=(trained - started) / batches * len(train),
        evaluate=time.perf_counter() - trained,
        batches_timed=batches,
        batches=len(train),
    )


def settings(log: Path, window: int, width: int) -> dict[str, Any]:
    """Leave-one-out, every prefix one sample, full softmax, full ranking."""
    return {
        "data_path": str(log.parent.parent),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": window,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "hidden_size": width,
        "inner_size": 4 * width,
        "n_layers": 2,
        "n_heads": 2,
        "train_batch_size": 2048,
        "eval_batch_size": 512,
        "use_gpu": False,
        "show_progress": False,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "metrics": ["NDCG", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "state": "ERROR",
        "checkpoint_dir": tempfile.mkdtemp(),
    }
