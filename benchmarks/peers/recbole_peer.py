"""RecBole 1.2.1: the same events, window and width; its own data path, model, optimiser step and evaluator.

Every prefix of a history is one sample. SASRec predicts its one target; BERT4Rec masks a fifth of the prefix, so that
an event is masked again in every prefix that holds it.
"""

import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.cells import (
    BLOCKS,
    DROPOUT,
    FFN,
    HEADS,
    LEARNING_RATE,
    LIST_LENGTH,
    MASK_SHARE,
    WIDTH,
    Measurement,
    Stopwatch,
    Task,
    answer,
    median_seconds,
)

BATCH_SIZE = 128
EVALUATION_BATCH_SIZE = 512
CLASSES = {"sasrec": "SASRec", "bert4rec": "BERT4Rec"}
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


def measure(task: Task) -> Measurement:
    """Prepares, trains for `task.seconds`, then evaluates (speed) or writes lists (quality)."""
    warnings.filterwarnings("ignore")
    for name, alias in REMOVED_ALIASES.items():
        if not hasattr(np, name):
            setattr(np, name, alias)
    import recbole
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    model_class = CLASSES[task.model]
    config = Config(model=model_class, dataset=task.dataset, config_dict=settings(task))
    init_seed(0, True)
    began = time.perf_counter()
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    prepare_seconds = time.perf_counter() - began
    model = get_model(model_class)(config, dataset)
    watch = trained(model, train, target_counter(task), Stopwatch(task.seconds, warm_up=int(task.kind == "speed")))
    evaluate_seconds = 0.0
    if task.kind == "quality":
        write_lists(task, model.eval(), dataset, test)
    else:
        with contextlib.chdir(tempfile.mkdtemp()):  # RecBole's trainer opens a log in the working folder
            trainer = get_trainer(config["MODEL_TYPE"], model_class)(config, model)
        evaluate_seconds = median_seconds(lambda: trainer.evaluate(test, load_best_model=False))
    return Measurement(
        version=recbole.__version__,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        prepare_seconds=prepare_seconds,
        train_seconds=watch.seconds,
        train_targets=watch.targets,
        train_batches=watch.batches,
        pass_batches=len(train),
        evaluate_seconds=evaluate_seconds,
        cases=test.sample_size,
    )


def settings(task: Task) -> dict[str, Any]:
    """Leave-one-out, full softmax, full ranking; what is not named is RecBole's default."""
    return {
        "data_path": str(task.log.parent.parent),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": task.window,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "hidden_size": WIDTH,
        "inner_size": FFN,
        "n_layers": BLOCKS,
        "n_heads": HEADS,
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": DROPOUT,
        "mask_ratio": MASK_SHARE,
        "ft_ratio": 0,  # batches that mask only the last item: many samples, few targets
        "train_batch_size": BATCH_SIZE,
        "eval_batch_size": EVALUATION_BATCH_SIZE,
        "use_gpu": False,
        "show_progress": False,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "metrics": ["NDCG", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "state": "ERROR",
        "checkpoint_dir": tempfile.mkdtemp(),
    }


def target_counter(task: Task) -> Callable[[Any], int]:
    """How many predictions a batch makes; RecBole's BERT4Rec counts no mask in the first place of a window."""
    if task.model == "sasrec":
        return len
    return lambda batch: int((batch["MASK_INDEX"] > 0).sum())


def trained(model: Any, train: Any, targets: Callable[[Any], int], watch: Stopwatch) -> Stopwatch:
    """Plain steps of Adam until the watch is done: what RecBole's trainer does, without its log and checkpoints."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for batch in chain.from_iterable(repeat(train)):
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        watch.lap(targets(batch))
        if watch.done:
            break
    return watch


@torch.no_grad()
def write_lists(task: Task, model: Any, dataset: Any, test: Any) -> None:
    """The best items of each test user; RecBole would rank seen items too, here they are left out."""
    log = pd.read_csv(task.log, sep="\t", dtype=str, header=0, names=["user", "item", "place"])
    seen = log.groupby("user")["item"].agg(list)
    users, items = [], []
    for batch, *_ in test:
        scores = model.full_sort_predict(batch)
        scores[:, 0] = -torch.inf
        names = dataset.id2token(dataset.uid_field, batch[dataset.uid_field].numpy())
        for row, (name, target) in enumerate(zip(names, batch[dataset.iid_field], strict=True)):
            history = torch.from_numpy(dataset.token2id(dataset.iid_field, seen[name]))
            scores[row, history[history != target]] = -torch.inf
        users.append(names)
        items.append(dataset.id2token(dataset.iid_field, scores.topk(LIST_LENGTH).indices.numpy()))
    np.savez(Path(task.lists), users=np.concatenate(users).astype(str), items=np.concatenate(items).astype(str))


if __name__ == "__main__":
    answer(measure)
