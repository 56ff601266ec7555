"""The chunked cross-entropy against torch's own, in value, gradients and memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701 - torch has no other name for it

from recsys import losses
from recsys.losses import next_item_cross_entropy


def problem(batch: int, length: int, width: int, items: int, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """States and item vectors in float64 that ask for gradients, and targets of which about `share` are there."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, length, width, generator=generator, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(items + 1, width, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(1, items + 1, (batch, length), generator=generator)
    return states, vectors, target * (torch.rand(batch, length, generator=generator) < share)


def plain(states: Tensor, vectors: Tensor, target: Tensor) -> Tensor:
    """The definition: all logits at once, padding cut off the classes."""
    logits = states.flatten(0, 1) @ vectors[1:].T
    return F.cross_entropy(logits, target.flatten() - 1, ignore_index=-1)


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from([0.3, 0.7, 1.0]),
    st.integers(1, 70),
    st.integers(0, 2**32),
)
def test_it_is_cross_entropy(
    batch: int, length: int, width: int, items: int, share: float, chunk: int, seed: int
) -> None:
    """With chunks from less than one row's logits to more than all."""
    states, vectors, target = problem(batch, length, width, items, share, seed)
    if not target.any():
        target[0, 0] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK_LOGITS", chunk)
        ours = next_item_cross_entropy(states, vectors, target)
    theirs = plain(states, vectors, target)
    assert_close(ours, theirs)
    for mine, reference in zip(
        torch.autograd.grad(ours, (states, vectors)), torch.autograd.grad(theirs, (states, vectors)), strict=True
    ):
        assert_close(mine, reference)


@pytest.mark.parametrize("chunk", [1, 13, 1 << 22])
def test_gradients_agree_with_finite_differences(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    states, vectors, target = problem(2, 4, 3, 5, 0.7, seed=1)
    assert torch.autograd.gradcheck(lambda s, v: next_item_cross_entropy(s, v, target), (states, vectors))


def test_the_gradient_of_a_scaled_loss_is_scaled() -> None:
    states, vectors, target = problem(2, 4, 3, 5, 0.7, seed=1)
    once = torch.autograd.grad(next_item_cross_entropy(states, vectors, target), (states, vectors))
    thrice = torch.autograd.grad(3 * next_item_cross_entropy(states, vectors, target), (states, vectors))
    for first, second in zip(once, thrice, strict=True):
        assert_close(3 * first, second)


def test_padding_is_no_class() -> None:
    """However well row 0 fits, neither the loss nor any gradient knows of it."""
    states, vectors, target = problem(2, 4, 3, 5, 1.0, seed=2)
    loss = next_item_cross_entropy(states, vectors, target)
    with torch.no_grad():
        vectors[0] = 1e6
    assert next_item_cross_entropy(states, vectors, target).item() == loss.item()
    assert not torch.autograd.grad(next_item_cross_entropy(states, vectors, target), vectors)[0][0].any()


def test_without_targets_loss_and_gradients_are_zero() -> None:
    states, vectors, target = problem(2, 4, 3, 5, 0.0, seed=3)
    loss = next_item_cross_entropy(states, vectors, target)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (states, vectors)))


def test_equal_logits_cost_ln_of_the_catalogue() -> None:
    zeros = torch.zeros(2, 3, 4)
    loss = next_item_cross_entropy(zeros, torch.randn(3417, 4), torch.ones((2, 3), dtype=torch.int64))
    assert loss.item() == pytest.approx(8.136, abs=1e-3)


def test_large_logits_do_not_overflow() -> None:
    states, vectors, target = (1e4 * torch.ones(1, 2, 3)), torch.randn(6, 3), torch.tensor([[1, 2]])
    assert_close(next_item_cross_entropy(states, vectors, target), plain(states, vectors, target))


def test_bfloat16_stays_close() -> None:
    states, vectors, target = problem(4, 9, 16, 50, 0.8, seed=4)
    exact = next_item_cross_entropy(states, vectors, target)
    low_states, low_vectors = (tensor.detach().float().requires_grad_() for tensor in (states, vectors))
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_item_cross_entropy(low_states, low_vectors, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    ours = torch.autograd.grad(loss, (low_states, low_vectors))
    theirs = torch.autograd.grad(exact, (states, vectors))
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine - reference).norm() < 0.02 * reference.norm()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest_tensor(rows: int) -> int:
    """Of loss and gradients with `rows` targets over 400 items."""
    states, vectors, target = problem(rows, 1, 3, 400, 1.0, seed=5)
    with LargestTensor() as largest:
        next_item_cross_entropy(states, vectors, target).backward()
    return largest.elements


def test_memory_does_not_grow_with_batch_times_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 2000)
    assert largest_tensor(rows=20) <= 2000
    assert largest_tensor(rows=500) <= 2000  # 200,000 logits in all
