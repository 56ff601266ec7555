"""On planted noise a denoised view gives back most of what noise takes from SASRec."""

from pathlib import Path

import numpy as np
import pytest
from noisy_logs import CLUSTER_SIZE, CLUSTERS, NUM_ITEMS, write_log
from training import trained

from pipelines.denoise import DenoiseConfig, denoise
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from recsys.corrections import Limits

QUIET = Reporter(quiet=True)
USERS, LENGTH, RATE = 120, 14, 0.4
"""Fourteen events a user, any items of one cluster; of the first twelve four in ten are any items at all."""


def ndcg(folder: Path, name: str) -> float:
    """NDCG@10 of a small SASRec on the last events of a dataset's users, which are clean."""
    data = prepare(
        PrepareConfig(dataset=folder / name, out=folder / f"{name}-prepared", split="last-item", seen="keep")
    )
    settings = ("epochs=30", "patience=30", "batch_size=32", "learning_rate=0.01")
    sizes = ("model.embedding_dim=16", "model.max_len=10")
    run = trained(data, folder / f"{name}-run", *sizes, *(f"training.{setting}" for setting in settings))
    return evaluate(EvaluateConfig(runs=(run.folder,)), QUIET).runs[run.name]["metrics"]["ndcg@10"]


def test_a_view_recovers_what_noise_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_NOISE", str(tmp_path / "noise"))
    rng = np.random.default_rng(0)
    clean, noisy = [], []
    for _ in range(USERS):
        first = 1 + CLUSTER_SIZE * int(rng.integers(CLUSTERS))
        clean.append([first + int(item) for item in rng.integers(0, CLUSTER_SIZE, LENGTH)])
        noisy.append([
            int(rng.integers(1, NUM_ITEMS + 1)) if place < LENGTH - 2 and rng.random() < RATE else item
            for place, item in enumerate(clean[-1])
        ])
    write_log(tmp_path / "clean", clean)
    write_log(tmp_path / "noisy", noisy)
    denoise(
        DenoiseConfig(
            dataset=tmp_path / "noisy",
            out=tmp_path / "view",
            detector="outlier",
            action="replace",
            texts=False,
            split="last-item",
            noise_rate=0.25,
            precision=0.6,
            window=12,
            limits=Limits(max_corrections=8, max_share=1.0, protect_last=0),
        ),
        QUIET,
    )
    best, worst, recovered = (ndcg(tmp_path, name) for name in ("clean", "noisy", "view"))
    assert best - worst > 0.05
    assert (recovered - worst) / (best - worst) > 0.5
