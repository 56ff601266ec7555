"""The divergence between steps against its formula, written out with torch's own log-softmax."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import recsys.divergence as module
from recsys.divergence import step_divergence


def released(states: Tensor, items: Tensor) -> Tensor:
    """Ordered pairs, the second held still."""
    log_p = (states @ items[1:].T).log_softmax(dim=2)
    pairs = [
        (p.exp() * (p - q.detach())).sum(dim=1).mean()
        for i, p in enumerate(log_p)
        for j, q in enumerate(log_p)
        if i != j
    ]
    return torch.stack(pairs).mean()


def paper(states: Tensor, items: Tensor) -> Tensor:
    """Pairs in order, none held still."""
    log_p = (states @ items[1:].T).log_softmax(dim=2)
    pairs = [(p.exp() * (p - q)).sum(dim=1).mean() for i, p in enumerate(log_p) for q in log_p[i + 1 :]]
    return torch.stack(pairs).sum()


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"released": released, "paper": paper}


def inputs(steps: int = 4, count: int = 7, width: int = 5, rows: int = 12) -> tuple[Tensor, Tensor]:
    """Random states and item vectors in float64."""
    torch.manual_seed(0)
    return (
        torch.randn(steps, count, width, dtype=torch.float64, requires_grad=True),
        torch.randn(rows, width, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.parametrize("logits", [1, 100, 1 << 21])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_its_formula_and_so_are_its_gradients(form: str, logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one chunk, in some, and in one chunk a history."""
    monkeypatch.setattr(module, "CPU_LOGITS", logits)
    states, items = inputs()
    ours, expected = step_divergence(states, items, form), FORMS[form](states, items)
    assert_close(ours, expected)
    both = [torch.autograd.grad(3 * value, (states, items)) for value in (ours, expected)]
    for one, other in zip(*both, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(("form", "expected"), [("released", (0.1438 + 0.1308) / 2), ("paper", 0.1438)])
def test_two_distributions_by_hand(form: str, expected: float) -> None:
    """Logits (0, 0) and (ln 3, 0): KL .1438 one way, .1308 the other."""
    states = torch.tensor([[[0.0]], [[math.log(3)]]])
    items = torch.tensor([[9.0], [1.0], [0.0]])
    assert step_divergence(states, items, form).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_equal_steps_do_not_differ_and_have_no_gradient(form: str) -> None:
    states, items = inputs(steps=1)
    same = states.expand(3, -1, -1)
    divergence = step_divergence(same, items, form)
    assert divergence.item() == pytest.approx(0, abs=1e-12)
    for gradient in torch.autograd.grad(divergence, (states, items)):
        assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 5), (3, 0)])
def test_one_step_or_no_history_is_zero(form: str, shape: tuple[int, int]) -> None:
    states, items = inputs(*shape)
    divergence = step_divergence(states, items, form)
    assert divergence.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(divergence, (states, items)))


def test_memory_does_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk holds more logits than it may, unless one history does."""
    sizes = []
    monkeypatch.setattr(module, "CPU_LOGITS", 300)
    original = module._released
    monkeypatch.setattr(module, "_released", lambda p, log_p: sizes.append(p.numel()) or original(p, log_p))
    step_divergence(*inputs(steps=3, count=50, rows=21))
    assert len(sizes) == 10
    assert max(sizes) <= 300
