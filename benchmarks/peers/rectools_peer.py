"""RecTools: the same events, window and width; its own data path, Lightning loop and recommendation path.

A user is one sample, cut to the newest events of the window: older ones are never trained on. Runs inside the
environment of rectools.txt and imports nothing else.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
import rectools
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG, calc_metrics
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from rectools.models.nn.transformers.net_blocks import PreLNTransformerLayers
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers

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

EPOCHS = 1_000_000
CUTOFF = 10
REPORT_COLUMNS = {"user_id:token": Columns.User, "item_id:token": Columns.Item, "timestamp:float": Columns.Datetime}


class Clock(pytorch_lightning.Callback):
    """Counts batches and ends the training when the watch is done."""

    def __init__(self, seconds: float, warm_up: int) -> None:
        self.seconds, self.warm_up = seconds, warm_up
        self.watch = Stopwatch(seconds, warm_up)
        self.pass_batches = 0

    def on_train_start(self, trainer: pytorch_lightning.Trainer, *_: Any) -> None:
        """Time starts here, after the dataset is made."""
        self.pass_batches = int(trainer.num_training_batches)
        self.watch = Stopwatch(self.seconds, self.warm_up)

    def on_train_batch_end(self, trainer: pytorch_lightning.Trainer, *others: Any) -> None:
        """A lap."""
        batch = others[2]
        self.watch.lap(int((batch["y"] != 0).sum()))
        trainer.should_stop = self.watch.done


def measure(task: Task) -> Measurement:
    """Trains for `task.seconds`, then recommends to all users and scores (speed) or writes the lists (quality)."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    train, test = read_split(task.log)
    pytorch_lightning.seed_everything(0)
    model = make_model(task)
    model.fit(Dataset.construct(train[train["part"] == "train"].drop(columns="part")))
    clock = next(callback for callback in model.fit_trainer.callbacks if isinstance(callback, Clock))
    history = Dataset.construct(train.drop(columns="part"))
    users = test[Columns.User].to_numpy()
    evaluate_seconds = 0.0
    if task.kind == "quality":
        write_lists(task, recommended(model, history, users, LIST_LENGTH))
    else:
        evaluate_seconds = median_seconds(
            lambda: calc_metrics({"ndcg": NDCG(CUTOFF)}, recommended(model, history, users, CUTOFF), test)
        )
    return Measurement(
        version=rectools.__version__,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        train_seconds=clock.watch.seconds,
        train_targets=clock.watch.targets,
        train_batches=clock.watch.batches,
        pass_batches=clock.pass_batches,
        evaluate_seconds=evaluate_seconds,
        cases=len(users),
    )


def read_split(log: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Known events, with `part` train or validation, and the test events: each user's last one."""
    events = pd.read_csv(log, sep="\t", dtype={"user_id:token": str, "item_id:token": str})
    events = events.rename(columns=REPORT_COLUMNS)
    after = events.groupby(Columns.User).cumcount(ascending=False)
    events[Columns.Datetime] = pd.to_datetime(events[Columns.Datetime], unit="s")
    events[Columns.Weight] = 1.0
    known = events[after > 0].assign(part=np.where(after[after > 0] == 1, "validation", "train"))
    return known, events[after == 0]


def make_model(task: Task) -> Any:
    """Its default layers for quality; for speed those whose feed-forward layer has our width."""
    speed = task.kind == "speed"
    shared: dict[str, Any] = {
        "n_blocks": BLOCKS,
        "n_heads": HEADS,
        "n_factors": WIDTH,
        "dropout_rate": DROPOUT,
        "session_max_len": task.window,
        "loss": "softmax",
        "lr": LEARNING_RATE,
        "item_net_block_types": (IdEmbeddingsItemNet,),
        "transformer_layers_type": PreLNTransformerLayers,
        "transformer_layers_kwargs": {"ff_factors_multiplier": FFN // WIDTH},
        "get_trainer_func": make_trainer,
        "get_trainer_func_kwargs": {"seconds": task.seconds, "warm_up": int(speed)},
    }
    if task.model == "bert4rec":
        return BERT4RecModel(mask_prob=MASK_SHARE, **shared)
    if not speed:
        shared |= {"transformer_layers_type": SASRecTransformerLayers, "transformer_layers_kwargs": None}
    return SASRecModel(**shared)


def make_trainer(seconds: float, warm_up: int) -> pytorch_lightning.Trainer:
    """Lightning without progress bar, log and checkpoints."""
    return pytorch_lightning.Trainer(
        max_epochs=EPOCHS,
        min_epochs=0,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[Clock(seconds, warm_up)],
    )


def recommended(model: Any, history: Dataset, users: Any, k: int) -> pd.DataFrame:
    """The k best unseen items of each user, from its whole history."""
    return model.recommend(users=users, dataset=history, k=k, filter_viewed=True)


def write_lists(task: Task, reco: pd.DataFrame) -> None:
    """Rows of item ids, best first, padded with blanks."""
    lists = reco.sort_values([Columns.User, Columns.Rank]).groupby(Columns.User)[Columns.Item].agg(list)
    items = [row + [""] * (LIST_LENGTH - len(row)) for row in lists]
    np.savez(Path(task.lists), users=np.array(lists.index, dtype=str), items=np.array(items, dtype=str))


if __name__ == "__main__":
    answer(measure)
