"""Long windows and large catalogues: costs by their formula, and no tensor of batch times catalogue."""

import numpy as np
import pytest
import torch
from tiny import PRIME, random_histories, windows_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from watching import LargestTensor

from models.sasrec import SASRec, SASRecConfig
from recsys.losses import LossConfig

WIDTH, FFN, BLOCKS, ROWS = 8, 16, 2, 3


def long_model(length: int) -> SASRec:
    """Reads times, too."""
    torch.manual_seed(0)
    return SASRec(
        SASRecConfig(
            num_items=PRIME,
            max_len=length,
            embedding_dim=WIDTH,
            num_blocks=BLOCKS,
            num_heads=2,
            ffn_dim=FFN,
            dropout=0.1,
            time_buckets=24,
        )
    )


def test_a_thousand_events_are_trained_on_and_encoded() -> None:
    """A step down the gradient lowers the loss, and the first event still reaches the last state."""
    model = long_model(1000)
    windows = windows_of(random_histories(ROWS, PRIME, 1001, shortest=1001))
    batch = model.training_batch(windows, np.random.default_rng(0))
    assert batch.history.shape == (ROWS, 1000)
    model.eval()
    before = model.loss(batch)
    before.backward()
    assert model.positions is not None
    assert model.positions.weight.grad is not None
    assert model.positions.weight.grad.any(dim=1).all()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad  # type: ignore[operator]
        assert model.loss(batch) < before
        states = model.hidden_states(batch.history, batch.timestamps)
        other = batch.history.clone()
        other[:, 0] = other[:, 0] % PRIME + 1
        assert (model.hidden_states(other, batch.timestamps)[:, -1] != states[:, -1]).any()


def counted_flops(length: int) -> tuple[int, int]:
    """Of the states of full windows: of matrix products with weights, and of attention."""
    model = long_model(length).eval()
    batch = model.training_batch(
        windows_of(random_histories(ROWS, PRIME, length + 1, shortest=length + 1)), np.random.default_rng(0)
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.hidden_states(batch.history, batch.timestamps)  # the counter knows no fused attention of a CPU
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    return counter.get_total_flops() - attention, attention


@pytest.mark.parametrize("length", [250, 500, 1000])
def test_costs_are_linear_in_length_but_for_attention(length: int) -> None:
    """2 flops a multiplication: 4 D^2 + 2 D F a position and block, and 2 L D for scores and mixing."""
    linear, attention = counted_flops(length)
    assert linear == ROWS * BLOCKS * length * 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * FFN)
    assert attention == ROWS * BLOCKS * length * 2 * (2 * length * WIDTH)


def test_a_million_items_are_trained_without_scoring_them_all() -> None:
    """Nothing is larger than the table, not by one row; batch times catalogue would be 40 times that."""
    items, width = 1_000_000, 4
    config = SASRecConfig(
        num_items=items,
        max_len=20,
        embedding_dim=width,
        num_blocks=1,
        num_heads=1,
        ffn_dim=8,
        loss=LossConfig(kind="sampled-softmax", negatives=256),
    )
    model = SASRec(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batch = model.training_batch(windows_of(random_histories(8, items, 21, shortest=21)), np.random.default_rng(0))
    before = model.items.weight.detach().clone()
    with LargestTensor() as largest:
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
    assert batch.num_targets * items > 30 * (items + 1) * width
    assert largest.elements == (items + 1) * width
    assert loss.item() == pytest.approx(np.log(items), rel=0.01)
    moved = (model.items.weight != before).any(dim=1).nonzero().flatten()
    assert batch.negatives is not None
    assert set(moved.tolist()) <= {*batch.history.flatten().tolist(), *batch.target.flatten().tolist()} | set(
        batch.negatives.items.tolist()
    )
    assert len(moved) > 256
