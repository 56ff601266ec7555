"""Small runs of `recsys train` for tests, and what they hold."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.plan import TrainConfig
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.prepared import Prepared
from recsys.runs import Run

SMALL = (
    "model.max_len=6",
    "model.embedding_dim=8",
    "model.num_blocks=1",
    "model.ffn_dim=12",
    "training.epochs=3",
    "training.batch_size=8",
    "training.warmup_steps=2",
)
FILES_OF_A_CHECKPOINT = 4
"""Tensor files: model, average, best, optimizer."""


def trained(
    prepared: Prepared, out: Path, *settings: str, model: str = "sasrec", tracking: bool = False, **options: Any
) -> Run:
    """A run of a small model in this process."""
    return run_of(prepared, out, model, (*SMALL, *settings), tracking=tracking, **options)


def run_of(
    prepared: Prepared, out: Path, model: str, settings: tuple[str, ...] = (), tracking: bool = False, **options: Any
) -> Run:
    """A run with these settings alone."""
    config = TrainConfig(data=prepared.folder, model=model, out=out, settings=settings, tracking=tracking, **options)
    run = train(config, Reporter(quiet=True))
    assert run is not None
    return run


def epochs(run: Run) -> list[dict[str, float]]:
    """Figures of every epoch but its seconds."""
    lines = (run.folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def assert_same_weights(first: Run, second: Run) -> None:
    """Bit for bit."""
    ours, theirs = load_file(first.folder / "model.safetensors"), load_file(second.folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@contextmanager
def cut_at(owner: type, method: str, call: int) -> Iterator[None]:
    """A training within is interrupted by call number `call` (from 1) of a method; that it was is checked."""
    original, calls = getattr(owner, method), 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, dying)
        try:
            yield
        except KeyboardInterrupt:
            return
    pytest.fail(f"{owner.__name__}.{method} was called {calls} times, and call {call} was to interrupt")


def killed_while_saving(number: int) -> str:
    """A program: `recsys` as its arguments say, killed before tensor file `number` (from 1) of its checkpoints."""
    return f"""
import os, runpy, signal
from recsys import checkpoints

saved = 0

def dying(*arguments):
    global saved
    saved += 1
    if saved == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(*arguments)

save_file, checkpoints.save_file = checkpoints.save_file, dying
runpy.run_module("pipelines.cli", run_name="__main__")
"""
