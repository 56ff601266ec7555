"""Checkpoints: safetensors for tensors, JSON for the rest; nothing is ever unpickled.

Named by step and epoch:

    checkpoints/00000420-0003/   {model,average,best,optimizer}.safetensors  state.json

A checkpoint appears by one rename, and only then is the one before it removed.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class Progress:
    """How far training is. Random numbers are functions of (seed, epoch, batch), so no generator is kept."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    targets: int = 0
    seconds: float = 0.0
    best_metric: float = -1.0
    best_epoch: int = 0
    stopped: bool = False
    epochs: list[dict[str, int | float]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training goes on from."""

    progress: Progress
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    """Empty where weights are not averaged."""
    best: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Adds a checkpoint to `folder` and removes older ones."""
    name = f"{checkpoint.progress.step:08d}-{checkpoint.progress.epoch:04d}"
    writing = folder / f".{name}"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    save_file(_contiguous(checkpoint.model), writing / "model.safetensors")
    save_file(_contiguous(checkpoint.average), writing / "average.safetensors")
    save_file(_contiguous(checkpoint.best), writing / "best.safetensors")
    tensors, settings = _flatten_optimizer(checkpoint.optimizer)
    save_file(tensors, writing / "optimizer.safetensors")
    state = {"progress": asdict(checkpoint.progress), "optimizer": settings}
    (writing / "state.json").write_text(json.dumps(state), encoding="utf-8")
    writing.rename(folder / name)
    for other in folder.iterdir():
        if other.name != name:
            shutil.rmtree(other)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint, or None."""
    complete = sorted(path for path in folder.glob("*") if not path.name.startswith("."))
    if not complete:
        return None
    newest = complete[-1]
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(
        progress=Progress(**state["progress"]),
        model=load_file(newest / "model.safetensors"),
        average=load_file(newest / "average.safetensors"),
        best=load_file(newest / "best.safetensors"),
        optimizer=_unflatten_optimizer(load_file(newest / "optimizer.safetensors"), state["optimizer"]),
    )


def _contiguous(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {
        f"{parameter}.{name}": value.detach().cpu().contiguous()
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def _unflatten_optimizer(tensors: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": settings["param_groups"]}


def copy_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A snapshot that later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def on_device(weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The weights on `device`."""
    return {name: tensor.to(device) for name, tensor in weights.items()}
