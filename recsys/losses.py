"""Losses over the item catalogue. N positions with a target, D width, I items, M negatives.

With s the model's score of an item, t the target and J the negatives:

    softmax          -s_t + log sum_{i in catalogue} exp(s_i)
    sampled-softmax  -s_t + log (exp(s_t) + sum_{j in J, j != t} w_j exp(s_j)),  w_j = 1 / expected draws (logQ)
    gbce             -(beta log sigma(s_t) + sum_{j in J, j != t} log(1 - sigma(s_j))) / (M + 1)
                     beta = a (c (1 - 1/a) + 1/a), a = M / (I - 1), c = calibration  (Petrov & Macdonald, RecSys 2023)
    bce              gbce with beta = 1 and one uniform negative a position, as published for SASRec
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.errors import ConfigError
from recsys.negatives import Negatives, NegativeSampler, Sampling, check_draws, unseen_negatives
from recsys.sequences import IntArray

CPU_LOGITS, DEVICE_LOGITS = 1 << 21, 1 << 26
"""Logits held at a time, whatever batch and catalogue: 4 MiB in bfloat16 fit a processor's cache, a GPU wants work."""
LARGEST_SCORE = 60.0
"""exp(60) times a billion items is far from the largest float32, exp(-60) far from the smallest."""
LOG2_E = math.log2(math.e)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss, and the negatives of a sampled one."""

    kind: Literal["softmax", "sampled-softmax", "gbce", "bce"] = "softmax"
    negatives: int = 512
    sampling: Sampling = "uniform"
    log_q: bool = True
    calibration: float = 0.75

    def __post_init__(self) -> None:
        if self.negatives < 2:
            raise ConfigError(f"LossConfig: negatives={self.negatives} must be at least 2.")
        if self.kind == "gbce" and self.sampling != "uniform":
            raise ConfigError(f"LossConfig: gbce is calibrated for uniform negatives, not for {self.sampling} ones.")
        if not 0 <= self.calibration <= 1:
            raise ConfigError(f"LossConfig: calibration={self.calibration} must lie in [0, 1].")

    @property
    def sampled(self) -> bool:
        """Whether one draw of negatives serves a batch."""
        return self.kind in {"sampled-softmax", "gbce"}

    def check(self, num_items: int) -> None:
        """Refuses what a catalogue of so many items cannot give."""
        if self.sampled:
            check_draws(self.sampling, self.negatives, num_items)


@runtime_checkable
class ItemVectors(Protocol):
    """Vectors of item rows, of the whole catalogue where none are named."""

    def __call__(self, rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "N D"]:
        """One row each."""
        ...


class CatalogLoss:
    """The configured loss: it draws the negatives of a batch and compares states with item vectors."""

    def __init__(self, config: LossConfig, num_items: int) -> None:
        self.config, self.num_items = config, num_items
        draws = (config.sampling, config.negatives, config.log_q, num_items)
        self.sampler = NegativeSampler(*draws) if config.sampled else None

    def learn_popularity(self, counts: IntArray) -> None:
        """Training events of each item row, [V]; negatives by popularity need them."""
        if self.sampler is not None:
            self.sampler.learn_popularity(counts)

    def negatives(self, items: Int[np.ndarray, "B L"], rng: np.random.Generator) -> Negatives | None:
        """Negatives for a batch of histories (0 is padding); None for the full softmax."""
        if self.sampler is not None:
            return self.sampler.draw(items, rng)
        return unseen_negatives(items, self.num_items, rng) if self.config.kind == "bce" else None

    def __call__(
        self,
        states: Float[Tensor, "N D"],
        item_vectors: ItemVectors,
        target: Int[Tensor, " N"],
        negatives: Negatives | None,
    ) -> Float[Tensor, ""]:
        """Mean over positions; zero, with zero gradients, where there are none."""
        if negatives is None:
            return softmax_cross_entropy(states, item_vectors(), target)
        if self.config.kind == "sampled-softmax":
            return sampled_softmax(states, item_vectors, target, negatives)
        if self.config.kind == "bce":
            return binary_cross_entropy(states, item_vectors, target, negatives)
        beta = positive_power(len(negatives.items), self.num_items, self.config.calibration)
        return generalised_binary_cross_entropy(states, item_vectors, target, negatives, beta)


def softmax_cross_entropy(
    states: Float[Tensor, "N D"], item_vectors: Float[Tensor, "V D"], target: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Over the whole catalogue; padding row 0 is no class."""
    loss: Tensor = _ChunkedSoftmax.apply(states, item_vectors[1:], target - 1, item_vectors[target], None)  # type: ignore[no-untyped-call]
    return loss


def sampled_softmax(
    states: Float[Tensor, "N D"], item_vectors: ItemVectors, target: Int[Tensor, " N"], negatives: Negatives
) -> Float[Tensor, ""]:
    """Over the target and the negatives; one that is a position's target (an accidental hit) does not count there."""
    vectors, own = item_vectors(negatives.items), item_vectors(target)
    hit = accidental_hits(negatives, target)
    loss: Tensor = _ChunkedSoftmax.apply(states, vectors, hit, own, negatives.log_weight)  # type: ignore[no-untyped-call]
    return loss


def generalised_binary_cross_entropy(
    states: Float[Tensor, "N D"],
    item_vectors: ItemVectors,
    target: Int[Tensor, " N"],
    negatives: Negatives,
    beta: float,
) -> Float[Tensor, ""]:
    """gBCE: the target's probability to the power `beta`, against the overconfidence that sampling causes."""
    wide = torch.promote_types(states.dtype, torch.float32)
    own = F.logsigmoid((states * item_vectors(target)).sum(dim=1).to(wide))
    others = F.logsigmoid(-(states @ item_vectors(negatives.items).T).to(wide))
    hit = accidental_hits(negatives, target)[:, None] == torch.arange(len(negatives.items), device=target.device)
    total = beta * own.sum() + others.masked_fill(hit, 0).sum()
    return -total / ((len(negatives.items) + 1) * max(1, len(target)))


def positive_power(num_negatives: int, num_items: int, calibration: float) -> float:
    """beta of gBCE: 1 at calibration 0, the sampling rate at 1."""
    rate = num_negatives / (num_items - 1)
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def binary_cross_entropy(
    states: Float[Tensor, "N D"], item_vectors: ItemVectors, target: Int[Tensor, " N"], negatives: Negatives
) -> Float[Tensor, ""]:
    """One negative a position: the loss SASRec was published with."""
    own = (states * item_vectors(target)).sum(dim=1)
    other = (states * item_vectors(negatives.items)).sum(dim=1)
    return -(F.logsigmoid(own) + F.logsigmoid(-other)).sum() / max(1, len(target))


def accidental_hits(negatives: Negatives, target: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Place of each position's target among the negatives, -1 where it is none of them."""
    place = torch.searchsorted(negatives.items, target).clamp(max=len(negatives.items) - 1)
    return torch.where(negatives.items[place] == target, place, -1)


class _ChunkedSoftmax(torch.autograd.Function):
    """Softmax cross-entropy whose logits exist only chunk by chunk; gradients are made in the forward pass.

    d loss / d logits = (softmax - onehot) / N, so a chunk can be forgotten once its share of the gradients is added
    up. Scores are in base 2, for which processors have the faster exponential. Under autocast the matrix products
    run in its type; sums, exponentials' sums and all that concerns the target stay in float32, so that a target that
    is all but certain has all but no gradient.

    `own` are the targets' vectors; `column` is a place among `vectors` that is no part of the sum (-1: none).
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Float[Tensor, "N D"],
        vectors: Float[Tensor, "M D"],
        column: Int[Tensor, " N"],
        own: Float[Tensor, "N D"],
        log_weight: Float[Tensor, " M"] | None,
    ) -> Float[Tensor, ""]:
        kind, count = states.device.type, max(1, len(states))
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        wide = torch.promote_types(states.dtype, torch.float32)
        matrix = vectors.to(narrow)
        needs_grad = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=wide, device=states.device)
        grad_states, grad_own = torch.empty_like(states), torch.empty_like(own)
        grad_vectors = torch.zeros_like(vectors, dtype=wide)
        bounded = _is_bounded(states, vectors, own, log_weight)
        step = max(1, (CPU_LOGITS if kind == "cpu" else DEVICE_LOGITS) // max(1, len(vectors)))
        for rows in (slice(first, first + step) for first in range(0, len(states), step)):
            part, place = states[rows], column[rows, None]
            logits = (part * LOG2_E).to(narrow) @ matrix.T
            if log_weight is not None:
                logits += log_weight * LOG2_E
            target = (part * own[rows]).sum(dim=1, keepdim=True).to(wide) * LOG2_E
            top = torch.zeros_like(target)
            if not bounded:
                top = logits.amax(dim=1, keepdim=True).to(wide).maximum(target)
                logits = logits.to(wide).sub_(top)
            mass = logits.exp2_()
            inside = place.clamp(min=0)
            mass.scatter_(1, inside, torch.where(place < 0, mass.gather(1, inside), 0))
            others, own_mass = mass.sum(dim=1, keepdim=True, dtype=wide), (target - top).exp2()
            total += F.softplus((others.log2() + top - target) / LOG2_E).sum()
            if not needs_grad:
                continue
            scale = 1 / ((others + own_mass) * count)
            pull = -others * scale  # (probability of the target - 1) / N, without a difference of like numbers
            mass = mass.to(narrow)
            grad_states[rows] = ((mass @ matrix).to(wide) * scale + pull * own[rows]).to(states.dtype)
            grad_own[rows] = (pull * part).to(own.dtype)
            grad_vectors += mass.T @ (part * scale).to(narrow)
        ctx.save_for_backward(grad_states, grad_vectors.to(vectors.dtype), grad_own)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, Tensor, None]:
        grad_states, grad_vectors, grad_own = ctx.saved_tensors
        return grad_states * grad, grad_vectors * grad, None, grad_own * grad, None


def _is_bounded(
    states: Float[Tensor, "N D"],
    vectors: Float[Tensor, "M D"],
    own: Float[Tensor, "N D"],
    log_weight: Float[Tensor, " M"] | None,
) -> bool:
    """Whether no score can leave the range of the exponential, so that none needs its row's maximum taken off.

    By |s . v| <= |s| |v|. On an accelerator the answer would cost more than it saves: False.
    """
    if states.device.type != "cpu" or not len(states) or not len(vectors):
        return False
    longest = vectors.detach().norm(dim=1).max().maximum(own.detach().norm(dim=1).max())
    weight = 0.0 if log_weight is None else float(log_weight.abs().max())
    return float(states.detach().norm(dim=1).max() * longest) + weight < LARGEST_SCORE
