"""Checkpoints: what is read is what was written, and half of one is none."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys import checkpoints
from recsys.checkpoints import Checkpoint, Progress, copy_weights, latest_checkpoint, save_checkpoint

FILES = ["average.safetensors", "best.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]


def trained(steps: int) -> tuple[nn.Module, torch.optim.AdamW]:
    """A model and its optimiser after some steps, in two groups of which one decays."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9))
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.AdamW) -> None:
    """One step of a fixed problem."""
    optimizer.zero_grad()
    model(torch.tensor([[1.0, 2.0, 4.0]])).square().sum().backward()
    optimizer.step()


def checkpoint(steps: int, epoch: int = 0) -> Checkpoint:
    """Of a model after some steps; the best weights are those of one step."""
    model, optimizer = trained(steps)
    progress = Progress(epoch=epoch, batch=3, step=steps, loss_sum=0.1 + 0.2, epochs=[{"epoch": 1, "ndcg@10": 1 / 3}])
    average, best = trained(2)[0].state_dict(), trained(1)[0].state_dict()
    return Checkpoint(progress, model.state_dict(), average, best, optimizer.state_dict())


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(5))
    loaded = latest_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.progress == checkpoint(5).progress
    assert torch.equal(loaded.best["weight"], trained(1)[0].weight)
    assert torch.equal(loaded.average["weight"], trained(2)[0].weight)
    model, optimizer = trained(0)
    model.load_state_dict(loaded.model)
    optimizer.load_state_dict(loaded.optimizer)
    expected, its_optimizer = trained(5)
    for _ in range(3):
        step(model, optimizer)
        step(expected, its_optimizer)
    assert torch.equal(model.weight, expected.weight)
    assert torch.equal(model.bias, expected.bias)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_nothing_was_saved(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    (tmp_path / ".00000001-0000").mkdir()
    assert latest_checkpoint(tmp_path) is None, "killed while the first one was being written"


def test_the_newest_stays_alone(tmp_path: Path) -> None:
    for steps, epoch in ((2, 0), (9, 0), (9, 1), (10, 1)):
        save_checkpoint(tmp_path, checkpoint(steps, epoch))
    assert [path.name for path in tmp_path.iterdir()] == ["00000010-0001"]
    assert sorted(path.name for path in (tmp_path / "00000010-0001").iterdir()) == FILES


def test_the_newest_of_two_is_read(tmp_path: Path) -> None:
    """A process killed before it removed the older one leaves both."""
    save_checkpoint(tmp_path, checkpoint(2))
    shutil.copytree(tmp_path / "00000002-0000", tmp_path / "kept")
    save_checkpoint(tmp_path, checkpoint(10))
    (tmp_path / "00000002-0000").mkdir()
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.progress.step == 10


@pytest.mark.parametrize("written", range(1, 4))
def test_half_a_checkpoint_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    """Writing breaks off after 0, 1 or 2 of the files: the one before stays, and the next one clears the rest away."""
    save_checkpoint(tmp_path, checkpoint(2))
    calls = 0

    def broken(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == written:
            raise KeyboardInterrupt
        save_file(*arguments)  # type: ignore[arg-type]

    save_file = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", broken)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, checkpoint(4))
    monkeypatch.undo()
    assert (tmp_path / ".00000004-0000").is_dir()
    before = latest_checkpoint(tmp_path)
    assert before is not None
    assert before.progress.step == 2
    save_checkpoint(tmp_path, checkpoint(4))
    assert [path.name for path in tmp_path.iterdir()] == ["00000004-0000"]


def test_a_copy_of_weights_is_not_changed_by_later_steps() -> None:
    model, optimizer = trained(1)
    copied = copy_weights(model.state_dict())
    step(model, optimizer)
    assert not torch.equal(copied["weight"], model.weight)
    assert torch.equal(copied["weight"], trained(1)[0].weight)
