"""Losses over the item catalogue."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_LOGITS = 1 << 22
"""Logits held at a time (16 MiB in float32), whatever the batch and the catalogue."""


def next_item_cross_entropy(
    states: Float[Tensor, "B L D"], item_vectors: Float[Tensor, "V D"], target: Int[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """Mean of -log softmax_i(state . item_i)[target] over positions with a target; padding row 0 is no class.

    Zero (with zero gradients) where the batch has no target.
    """
    valid = target != 0
    return _ChunkedCrossEntropy.apply(states[valid], item_vectors[1:], target[valid] - 1)  # type: ignore[no-untyped-call]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Softmax cross-entropy whose logits exist only chunk by chunk; gradients are made in the forward pass.

    d loss / d logits = (softmax - onehot) / N, so a chunk can be forgotten once its share of the two
    gradients is added up.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Float[Tensor, "N D"], vectors: Float[Tensor, "I D"], classes: Int[Tensor, " N"]
    ) -> Float[Tensor, ""]:
        needs_grad = any(ctx.needs_input_grad)
        exact = torch.promote_types(states.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=states.device)
        grad_states = torch.zeros_like(states) if needs_grad else None
        grad_vectors = torch.zeros_like(vectors) if needs_grad else None
        step = max(1, CHUNK_LOGITS // len(vectors))
        for rows in (slice(first, first + step) for first in range(0, len(states), step)):
            logits = (states[rows] @ vectors.T).to(exact)
            log_norm = logits.logsumexp(dim=1, keepdim=True)
            own = logits.gather(1, classes[rows][:, None])
            total += (log_norm - own).sum()
            if grad_states is None or grad_vectors is None:
                continue
            error = logits.sub_(log_norm).exp_()
            error.scatter_add_(1, classes[rows][:, None], torch.full_like(own, -1))
            error = (error / len(states)).to(states.dtype)
            grad_states[rows] = (error @ vectors).to(states.dtype)
            grad_vectors += (error.T @ states[rows]).to(vectors.dtype)
        ctx.save_for_backward(grad_states, grad_vectors)
        return total / max(1, len(states))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_states, grad_vectors = ctx.saved_tensors
        return grad_states * grad, grad_vectors * grad, None
