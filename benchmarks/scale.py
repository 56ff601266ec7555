"""How memory grows with the catalogue and the batch: `python -m benchmarks.scale`; writes docs/scale.md.

Each cell is a process of its own that trains SASRec (width 64, window 50) for some steps on random histories, for
only sizes matter here, and reports its largest resident set.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import torch

from models.sasrec import SASRec, SASRecConfig
from recsys.batches import TrainingWindows
from recsys.losses import LossConfig
from recsys.sequences import SequenceStore
from recsys.steps import git_commit, peak_memory_mib
from recsys.training import Trainer, TrainingConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
STEPS, LENGTH = 8, 51
CATALOGUES = (10_000, 100_000, 1_000_000)
BATCHES = (64, 256, 1024)


def main() -> None:
    """All cells, then the page; or one cell, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs=3, metavar=("LOSS", "ITEMS", "BATCH"), help="measure one and print it")
    arguments = parser.parse_args()
    if arguments.cell:
        kind, items, batch = arguments.cell
        print(json.dumps(measure(kind, int(items), int(batch))))
        return
    sampled = [cell("sampled-softmax", items, 128) for items in CATALOGUES]
    full = [cell("softmax", 10_000, batch) for batch in BATCHES]
    PAGE.write_text(page(sampled, full), encoding="utf-8")


def cell(kind: str, items: int, batch: int) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--cell", kind, str(items), str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"items": items, "batch": batch}


def measure(kind: str, items: int, batch: int) -> dict[str, float]:
    """Peak MiB before and after training, and the MiB of weights, gradients, Adam's moments and the best copy."""
    rng = np.random.default_rng(0)
    store = SequenceStore(
        offsets=np.arange(0, (STEPS * batch + 1) * LENGTH, LENGTH, dtype=np.int64),
        item_idx=rng.integers(1, items + 1, STEPS * batch * LENGTH).astype(np.int32),
        timestamp=np.arange(STEPS * batch * LENGTH, dtype=np.int64),
        user_ids=pl.Series("user_id", np.arange(STEPS * batch).astype(str)),
    )
    loss = LossConfig(kind=kind, negatives=2048)  # type: ignore[arg-type]
    model = SASRec(SASRecConfig(num_items=items, max_len=LENGTH - 1, loss=loss))
    windows = TrainingWindows.cut(store.lengths, model.window)
    before = peak_memory_mib()
    config = TrainingConfig(epochs=1, batch_size=batch, device="cpu", checkpoint_seconds=1e9)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, store, windows, config, seed=0, folder=Path(folder))
        trainer.fit(None, "ndcg@10", on_epoch=lambda _: None, on_batch=lambda: None)
    weights = sum(weight.numel() for weight in model.parameters()) * 4 / 2**20
    return {"before": before, "peak": peak_memory_mib(), "state": round(5 * weights)}


def page(sampled: list[dict[str, float]], full: list[dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        "# Memory",
        "",
        "Written by `python -m benchmarks.scale`; do not edit. SASRec, width 64, window 50, random histories, "
        f"{STEPS} steps; MiB of resident memory at its largest. *Start* is the process with the model before training, "
        "*state* what training must hold whatever the loss: weights, gradients, Adam's two moments, the best weights.",
        "",
        "## Sampled softmax, 2,048 negatives, 128 windows a batch",
        "",
        "| items | start | state | peak |",
        "|---|---|---|---|",
        *(row(entry, "items") for entry in sampled),
        "",
        "## Full softmax in chunks, 10,000 items",
        "",
        "| windows a batch | start | state | peak |",
        "|---|---|---|---|",
        *(row(entry, "batch") for entry in full),
        "",
        "*Start* already holds the weights and what drawing them took. What grows with the batch in the second table "
        "are the activations of the blocks; all logits of 1,024 windows at once would take 2,000 MiB more, and their "
        "gradient as much again. That no tensor of the loss grows with batch or catalogue is a test "
        "(tests/recsys/test_losses.py).",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}; commit "
        f"{(git_commit() or 'unknown')[:12]}; {datetime.now(UTC).date()}.",
        "",
    ]
    return "\n".join(lines)


def row(entry: dict[str, float], first: str) -> str:
    """A line of a table."""
    return f"| {entry[first]:,} | {entry['before']:.0f} | {entry['state']:.0f} | {entry['peak']:.0f} |"


if __name__ == "__main__":
    main()
