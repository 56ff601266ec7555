"""ReaRec against the authors' released network: states of every step, both losses, every gradient, in float64.

`tests/golden/rearec.json` holds what TangJiakai/ReaRec at 7f46432 computed with the weights that `weight_of` gives.
Remake it with a checkout of that commit:

    PYTHONPATH=.:tests python tests/parity/test_rearec_released.py PATH/TO/ReaRec/src

There `warmup` is 0 and `torch.randn_like` is replaced by `known_noise`, since a run with dropout and drawn noise cannot
be compared. Their softmax counts the padding row as an item: one dimension of every state is held at 5, and the padding
row lies at -100 there, so that it weighs exp(-500 / tau).
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from models.rearec import ReaRec, ReaRecConfig, ReasoningConfig
from recsys.batches import Histories, TrainBatch

GOLDEN = Path(__file__).parent.parent / "golden" / "rearec.json"
HISTORIES = [[4, 9, 2, 13, 7], [11], [3, 3, 8], [6, 12]]
TARGETS = [5, 2, 10, 1]
NUM_ITEMS, WIDTH, FFN, STEPS, LONGEST = 13, 8, 12, 2, 50
TEMPERATURE = {"erl": 0.9, "prl": 0.6}


def weight_of(name: str, shape: torch.Size) -> Tensor:
    """Numbers that need no random generator to be the same everywhere."""
    phase = sum(map(ord, name))
    flat = torch.from_numpy(0.4 * np.sin(phase + 1.7 * np.arange(shape.numel()) ** 1.1))
    weight = flat.reshape(shape)
    if name.endswith("norm.weight"):
        weight = weight + 1
    if name == "backbone.blocks.blocks.1.ffn_residual.norm.weight":
        weight[0] = 0
    if name == "backbone.blocks.blocks.1.ffn_residual.norm.bias":
        weight[0] = 5
    if name == "backbone.items.weight":
        weight[0] = 0
    return weight


def known_noise(like: Tensor) -> Tensor:
    """In place of a normal draw."""
    return torch.from_numpy(np.sin(3 + np.arange(like.numel()))).reshape(like.shape)


def ours(objective: str) -> ReaRec:
    """Post-LN with a LayerNorm of the input and the same epsilon everywhere, as released."""
    model = ReaRec(
        ReaRecConfig(
            num_items=NUM_ITEMS,
            max_len=LONGEST,
            embedding_dim=WIDTH,
            ffn_dim=FFN,
            dropout=0.0,
            norm="post",
            activation="gelu",
            input_norm=True,
            temperature=TEMPERATURE[objective],
            reasoning=ReasoningConfig(steps=STEPS, objective=objective),  # type: ignore[arg-type]
        )
    ).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weight_of(name, parameter.shape))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12
    return model


def batch() -> TrainBatch:
    """One target a row, behind its last event."""
    history, target = torch.zeros((4, 5), dtype=torch.int64), torch.zeros((4, 5), dtype=torch.int64)
    lengths = torch.tensor([len(items) for items in HISTORIES], dtype=torch.int32)
    for row, items in enumerate(HISTORIES):
        history[row, : len(items)] = torch.tensor(items)
        target[row, len(items) - 1] = TARGETS[row]
    return TrainBatch(history, torch.zeros_like(history), target, lengths)


def digest(gradient: Tensor) -> list[float]:
    """Two numbers of a gradient: its length, and its product with a direction in which no two entries are alike."""
    direction = torch.from_numpy(np.cos(np.arange(gradient.numel()))).reshape(gradient.shape)
    return [gradient.norm().item(), (gradient * direction).sum().item()]


def recorded(model: ReaRec) -> dict[str, Any]:
    """States, loss and gradients of ours."""
    given = batch()
    states = model.reason(Histories(given.history, given.timestamps, given.lengths)).transpose(0, 1)
    loss = model.loss(given)
    loss.backward()
    gradients = {name: digest(parameter.grad) for name, parameter in model.named_parameters()}  # type: ignore[arg-type]
    return {"states": states.tolist(), "loss": loss.item(), "gradients": gradients}


@pytest.mark.parametrize("objective", ["erl", "prl"])
def test_states_losses_and_gradients_are_the_released_ones(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn_like", known_noise)
    golden, found = json.loads(GOLDEN.read_text(encoding="utf-8"))[objective], recorded(ours(objective))
    assert_close(
        torch.tensor(found["states"], dtype=torch.float64),
        torch.tensor(golden["states"], dtype=torch.float64),
        rtol=1e-6,
        atol=1e-6,
    )
    assert found["loss"] == pytest.approx(golden["loss"], rel=1e-6)
    assert found["gradients"].keys() == golden["gradients"].keys()
    for name, expected in golden["gradients"].items():
        assert found["gradients"][name] == pytest.approx(expected, rel=1e-6, abs=1e-6), name


def released(source: Path, objective: str) -> dict[str, Any]:
    """The same of the authors' network, in a process of its own: their packages are named as ours."""
    model = ours(objective)
    given = {
        "objective": objective,
        "num_items": NUM_ITEMS,
        "width": WIDTH,
        "ffn": FFN,
        "steps": STEPS,
        "temperature": TEMPERATURE[objective],
        "histories": HISTORIES,
        "targets": TARGETS,
        "weights": {name: weight.tolist() for name, weight in model.state_dict().items()},
    }
    child = [sys.executable, str(Path(__file__).with_name("rearec_released.py")), str(source)]
    done = subprocess.run(child, input=json.dumps(given), stdout=subprocess.PIPE, text=True, check=True, cwd=source)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    gradients = {
        name: digest(torch.tensor(values, dtype=torch.float64)) for name, values in answer.pop("gradients").items()
    }
    return answer | {"gradients": gradients}


if __name__ == "__main__":
    figures = {objective: released(Path(sys.argv[1]), objective) for objective in ("erl", "prl")}
    GOLDEN.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
