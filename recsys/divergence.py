"""How much the steps of a reasoning differ in what they would recommend. S steps, N histories, D width, I items.

With p_s the softmax of step s over the catalogue:

    released    mean over ordered pairs s != t of KL(p_s || p_t), no gradient through p_t
    paper       sum over s < t of KL(p_s || p_t), gradients through both

ReaRec (Tang et al., arXiv:2503.22675) rewards it; its paper and its code differ as above.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.losses import CPU_LOGITS, DEVICE_LOGITS

Form = Literal["released", "paper"]


def step_divergence(
    states: Float[Tensor, "S N D"], item_vectors: Float[Tensor, "V D"], form: Form = "released"
) -> Float[Tensor, ""]:
    """Mean over histories; zero, with zero gradients, for one step. Padding row 0 is no class."""
    divergence: Tensor = _ChunkedDivergence.apply(states, item_vectors[1:], form)  # type: ignore[no-untyped-call]
    return divergence


class _ChunkedDivergence(torch.autograd.Function):
    """The S x N distributions exist only chunk by chunk; gradients are made in the forward pass.

    For f = sum_v p(v) c(v) with c held still, df / dlogits = p (c - f); what c adds through log p cancels, since
    probabilities sum to one.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Float[Tensor, "S N D"], vectors: Float[Tensor, "I D"], form: Form
    ) -> Float[Tensor, ""]:
        steps, count, _ = states.shape
        kind = states.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        wide = torch.promote_types(states.dtype, torch.float32)
        matrix = vectors.to(narrow)
        pairs = steps * (steps - 1) if form == "released" else 1
        scale = 1 / max(1, count * pairs)
        total = torch.zeros((), dtype=wide, device=states.device)
        grad_states, grad_vectors = torch.empty_like(states), torch.zeros_like(vectors, dtype=wide)
        chunk = max(1, (CPU_LOGITS if kind == "cpu" else DEVICE_LOGITS) // (steps * len(vectors)))
        for rows in (slice(first, first + chunk) for first in range(0, count, chunk)):
            part = states[:, rows].to(narrow)
            log_p = (part @ matrix.T).to(wide).log_softmax(dim=2)
            p = log_p.exp()
            gain, slope = _released(p, log_p) if form == "released" else _paper(p, log_p)
            total += gain * scale
            slope = (slope * scale).to(narrow)
            grad_states[:, rows] = (slope @ matrix).to(states.dtype)
            grad_vectors += slope.flatten(0, 1).T @ part.flatten(0, 1)
        ctx.save_for_backward(grad_states, grad_vectors.to(vectors.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_states, grad_vectors = ctx.saved_tensors
        return grad_states * grad, grad_vectors * grad, None


def _released(p: Float[Tensor, "S n I"], log_p: Float[Tensor, "S n I"]) -> tuple[Tensor, Tensor]:
    """Sum over ordered pairs, and its slope by the logits of the first of each pair."""
    against = len(p) * log_p - log_p.sum(dim=0)
    each = (p * against).sum(dim=2, keepdim=True)
    return each.sum(), p * (against - each)


def _paper(p: Float[Tensor, "S n I"], log_p: Float[Tensor, "S n I"]) -> tuple[Tensor, Tensor]:
    """Sum over pairs in order of steps, and its slope by the logits of both."""
    steps = len(p)
    later = torch.arange(steps - 1, -1, -1, dtype=p.dtype, device=p.device)[:, None, None]
    against = later * log_p - (log_p.sum(dim=0) - log_p.cumsum(dim=0))
    each = (p * against).sum(dim=2, keepdim=True)
    earlier = torch.arange(steps, dtype=p.dtype, device=p.device)[:, None, None]
    return each.sum(), p * (against - each) + earlier * p - (p.cumsum(dim=0) - p)
