"""`make bench`: the path's speed beside RecBole's, one run on one machine; writes docs/benchmarks.md.

MovieLens-100K, leave-one-out, SASRec of width 64 with window 50: ours predicts every target once an epoch from
windows laid side by side, so that the first targets of a window see little of the past; RecBole makes one sample of
every prefix. Same targets, same candidates, less context for some of ours; speed only, no quality is compared here.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch

from models.sasrec import SASRec, SASRecConfig
from pipelines.ingest import IngestConfig, ingest
from pipelines.movielens import movielens_100k
from pipelines.prepare import PrepareConfig, prepare
from recsys.batches import TrainingWindows
from recsys.evaluation import rank_cases
from recsys.prepared import Prepared
from recsys.ranking import RetrieverScorer
from recsys.steps import git_commit
from recsys.training import Trainer, TrainingConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
WINDOW, WIDTH = 50, 64
REPEATS = 3
PEER_BATCHES = 3


def main() -> None:
    """Measures, prints and writes the table."""
    with tempfile.TemporaryDirectory() as folder:
        log = movielens_100k(Path(folder) / "log")
        ours = time_ours(log, Path(folder))
        peer = time_peer(log)
    page = table(ours, peer)
    print(page)
    PAGE.write_text(page, encoding="utf-8")


def time_ours(log: Path, folder: Path) -> dict[str, float]:
    """Seconds: prepare (ingest included), one epoch, one evaluation of all users; medians of repeats."""

    def prepare_all() -> Prepared:
        ingest(IngestConfig(sources=(log,), out=folder / "dataset", overwrite=True))
        return prepare(
            PrepareConfig(dataset=folder / "dataset", out=folder / "prepared", split="last-item", overwrite=True)
        )

    prepare_seconds = median_seconds(prepare_all)
    prepared = prepare_all()
    model = SASRec(
        SASRecConfig(num_items=prepared.catalog.num_items, max_len=WINDOW, embedding_dim=WIDTH, ffn_dim=4 * WIDTH)
    )
    windows = TrainingWindows.cut(prepared.split.train_stop, model.window)
    config = TrainingConfig(epochs=REPEATS, checkpoint_seconds=1e9)
    trainer = Trainer(model, prepared.store, windows, config, seed=0, folder=folder)
    trainer.fit(None, "ndcg@10", on_epoch=lambda _: None, on_batch=lambda: None)
    epoch_seconds = sorted(epoch["seconds"] for epoch in trainer.progress.epochs)[REPEATS // 2]
    scorer = RetrieverScorer(model.eval(), torch.zeros(prepared.catalog.num_rows))
    cases = prepared.cases("test")
    evaluate_seconds = median_seconds(
        lambda: rank_cases(scorer, prepared.store, cases, prepared.catalog.num_rows, "exclude", (10,))
    )
    return {"prepare": prepare_seconds, "epoch": epoch_seconds, "evaluate": evaluate_seconds}


def median_seconds(work: Callable[[], object]) -> float:
    """Median of `REPEATS` runs."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[REPEATS // 2]


def time_peer(log: Path) -> dict[str, float] | None:
    """RecBole's seconds, or None where it is not installed."""
    if find_spec("recbole") is None:
        return None
    from benchmarks.recbole_peer import time_recbole

    times = time_recbole(log, WINDOW, WIDTH, PEER_BATCHES)
    return {"prepare": times.prepare, "epoch": times.epoch, "evaluate": times.evaluate}


def table(ours: dict[str, float], peer: dict[str, float] | None) -> str:
    """Markdown."""
    labels = {"prepare": "log to split sequences", "epoch": "SASRec epoch", "evaluate": "full ranking, 943 users"}
    rows = [
        f"| {label} | {ours[key]:.3f} | "
        + (f"{peer[key]:.2f} | {peer[key] / ours[key]:.0f} x |" if peer else "- | - |")
        for key, label in labels.items()
    ]
    return "\n".join([
        "# Benchmarks",
        "",
        "Written by `make bench`; do not edit. MovieLens-100K, leave-one-out, window 50, width 64, full softmax, full",
        f"ranking; seconds, ours the median of {REPEATS}; RecBole's epoch is {PEER_BATCHES} of its batches scaled up.",
        "Same targets and candidates; RecBole gives every target 50 events of context, our windows lie side by side.",
        "Speed only: quality is in [results.md](results.md).",
        "",
        "| step | recsys s | RecBole 1.2.1 s | ratio |",
        "|---|---|---|---|",
        *rows,
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, no accelerator; torch "
        f"{torch.__version__}; commit {(git_commit() or 'unknown')[:12]}; {datetime.now(UTC).date()}.",
        "",
    ])


if __name__ == "__main__":
    main()
