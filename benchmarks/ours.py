"""This platform's side of the benchmark: our models in our training loop and evaluator, and the floor under them."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
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
from benchmarks.floor import BatchShape, ModelShape, epoch_seconds
from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.sasrec import SASRec, SASRecConfig
from pipelines.ingest import IngestConfig, ingest
from pipelines.prepare import PrepareConfig, prepare
from recsys import __version__
from recsys.batches import Histories, TrainingWindows
from recsys.evaluation import rank_cases, seen_mask
from recsys.memory import keep_freed_memory
from recsys.prepared import Prepared, open_prepared
from recsys.ranking import FullRanking, RetrieverScorer
from recsys.training import Trainer, TrainingConfig

EPOCHS = 1_000_000
CASES_PER_BATCH = 512


class _TimeIsUpError(Exception):
    """Ends a training between two steps."""


def measure(task: Task) -> Measurement:
    """What `task` asks for."""
    torch.manual_seed(0)
    return {"prepare": prepare_speed, "floor": floor, "speed": speed, "quality": quality}[task.kind](task)


def measured(**figures: Any) -> Measurement:
    """A measurement of this process."""
    return Measurement(version=__version__, torch=torch.__version__, threads=torch.get_num_threads(), **figures)


def prepare_speed(task: Task) -> Measurement:
    """Seconds from the log to split sequences."""

    def prepare_all() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare_log(task.log, Path(folder))

    return measured(prepare_seconds=median_seconds(prepare_all))


def prepare_log(log: Path, folder: Path) -> Prepared:
    """`recsys ingest` and `recsys prepare`, leave-one-out."""
    ingest(IngestConfig(sources=(log,), out=folder / "dataset"))
    return prepare(
        PrepareConfig(dataset=folder / "dataset", out=folder / "prepared", split="last-item", seen="exclude")
    )


def speed(task: Task) -> Measurement:
    """Whole epochs until `task.seconds` are over, three at most; the median one. Then the ranking of all test cases."""
    prepared = open_prepared(Path(task.folder) / "prepared")
    trainer, folder = make_trainer(task, prepared)
    epochs: list[tuple[float, int]] = []
    targets = 0

    def count() -> None:
        nonlocal targets
        targets = trainer.progress.targets

    while len(epochs) < 3 and sum(seconds for seconds, _ in epochs) < task.seconds:
        trainer.fit(None, "", on_epoch=lambda _: None, on_batch=count, stop_after=len(epochs) + 1)
        epochs.append((trainer.progress.epochs[-1]["seconds"], targets))
    seconds, targets = sorted(epochs)[len(epochs) // 2]
    model, cases, num_rows = trainer.retriever.eval(), prepared.cases("test"), prepared.catalog.num_rows

    def evaluate() -> None:
        with trainer.accelerator.autocast():
            scorer = RetrieverScorer(model, torch.zeros(num_rows))
            rank_cases(scorer, prepared.store, cases, num_rows, prepared.seen, (10,))

    evaluate_seconds = median_seconds(evaluate)
    shutil.rmtree(folder)
    return measured(
        train_seconds=seconds,
        train_targets=targets,
        train_batches=trainer.batches_per_epoch,
        pass_batches=trainer.batches_per_epoch,
        evaluate_seconds=evaluate_seconds,
        cases=len(cases),
    )


def make_model(task: Task, prepared: Prepared) -> SASRec | BERT4Rec:
    """The shared architecture; everything else as the model's config has it."""
    shape: dict[str, Any] = {
        "num_items": prepared.catalog.num_items,
        "max_len": task.window,
        "embedding_dim": WIDTH,
        "num_blocks": BLOCKS,
        "num_heads": HEADS,
        "ffn_dim": FFN,
    }
    if task.model == "sasrec":
        model: SASRec | BERT4Rec = SASRec(SASRecConfig(**shape, dropout=DROPOUT))
    else:
        model = BERT4Rec(BERT4RecConfig(**shape, dropout=DROPOUT, mask_share=MASK_SHARE, last_item_share=0.0))
    model.learn_popularity(prepared.training_events().item_counts())
    return model


def make_trainer(task: Task, prepared: Prepared) -> tuple[Trainer, Path]:
    """The trainer with its defaults, and the folder of its checkpoints, which no epoch's seconds hold."""
    keep_freed_memory()
    model = make_model(task, prepared)
    config = TrainingConfig(
        epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        precision=task.precision,
        device="cpu",
        checkpoint_seconds=float("inf"),
    )
    folder = Path(tempfile.mkdtemp())
    windows = TrainingWindows.cut(prepared.split.train_stop, model.window)
    return Trainer(model, prepared.store, windows, config, seed=0, folder=folder), folder


def floor(task: Task) -> Measurement:
    """Seconds of the matrix products of one epoch, on the batches that the trainer would make."""
    prepared = open_prepared(Path(task.folder) / "prepared")
    model = make_model(task, prepared)
    rows, vector = model.item_vectors().shape
    shape = ModelShape(
        width=WIDTH,
        heads=HEADS,
        inner=FFN,
        blocks=BLOCKS,
        items=rows - 1,  # without padding
        vector=vector,
        head=isinstance(model, BERT4Rec),
    )
    windows, rng = TrainingWindows.cut(prepared.split.train_stop, model.window), np.random.default_rng(0)
    batches = []
    for chosen in windows.epoch(TrainingConfig().batch_size, rng):
        batch = model.training_batch(windows.load(prepared.store, chosen), rng)
        batches.append(
            BatchShape(
                windows=batch.history.shape[0],
                length=batch.history.shape[1],
                events=int(batch.lengths.sum()),
                targets=batch.num_targets,
            )
        )
    dtype = torch.float32 if task.precision == "fp32" else torch.bfloat16
    return measured(
        train_seconds=epoch_seconds(batches, shape, dtype),
        train_targets=sum(batch.targets for batch in batches),
        train_batches=len(batches),
        pass_batches=len(batches),
    )


def quality(task: Task) -> Measurement:
    """Trains for `task.seconds` and writes the lists of the last state."""
    prepared = open_prepared(Path(task.folder) / "prepared")
    trainer, folder = make_trainer(task, prepared)
    watch = Stopwatch(task.seconds, warm_up=0)
    before = 0

    def stop_in_time() -> None:
        nonlocal before
        done = trainer.progress.targets
        watch.lap(done - before if done >= before else done)
        before = done
        if watch.done:
            raise _TimeIsUpError

    try:
        trainer.fit(None, "", on_epoch=lambda _: None, on_batch=stop_in_time)
    except _TimeIsUpError:
        write_lists(task, prepared, trainer)
    shutil.rmtree(folder)
    return measured(
        train_seconds=watch.seconds,
        train_targets=watch.targets,
        train_batches=watch.batches,
        pass_batches=trainer.batches_per_epoch,
    )


def write_lists(task: Task, prepared: Prepared, trainer: Trainer) -> None:
    """The best unseen items of each test user, as the peers write theirs."""
    num_rows, cases = prepared.catalog.num_rows, prepared.cases("test")
    recommender = FullRanking(RetrieverScorer(trainer.retriever.eval(), torch.zeros(num_rows)))
    names = np.array(["", *prepared.catalog.item_ids], dtype=str)
    users, items = [], []
    for part in cases.iter_slices(CASES_PER_BATCH):
        rows, positions = (part[name].to_numpy().astype(np.int64) for name in ("user_idx", "position"))
        histories = Histories.from_windows(prepared.store.windows(rows, positions, trainer.retriever.max_len))
        mask = seen_mask(prepared.store, rows, positions, num_rows)
        items.append(names[recommender.recommend(histories, LIST_LENGTH, mask).items.numpy()])
        users += prepared.store.user_ids[rows].to_list()
    np.savez(Path(task.lists), users=np.array(users, dtype=str), items=np.concatenate(items))


if __name__ == "__main__":
    answer(measure)
