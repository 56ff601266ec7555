"""Random positions, targets and tables for tests of losses."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.losses import CatalogLoss, LossConfig


@dataclass(frozen=True)
class Problem:
    """States [N, D] and a table [V, D] that ask for gradients in float64, and targets [N]."""

    states: Tensor
    table: Tensor
    target: Tensor

    def vectors(self, rows: Tensor | None = None) -> Tensor:
        """What a model's `item_vectors` gives."""
        return self.table if rows is None else self.table[rows]

    def scores(self) -> Tensor:
        """Of every position and item row, [N, V]."""
        return self.states @ self.table.T


def problem(count: int, width: int, items: int, seed: int = 0, scale: float = 1.0) -> Problem:
    """Random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return Problem(
        states=(scale * torch.randn(count, width, generator=generator, dtype=torch.float64)).requires_grad_(),
        table=torch.randn(items + 1, width, generator=generator, dtype=torch.float64, requires_grad=True),
        target=torch.randint(1, items + 1, (count,), generator=generator),
    )


def drawn_loss(kind: str, task: Problem, num_negatives: int = 5, num_items: int | None = None) -> Callable[[], Tensor]:
    """A computation of the loss with fixed negatives."""
    items = num_items or len(task.table) - 1
    loss = CatalogLoss(LossConfig(kind=kind, negatives=num_negatives), items)  # type: ignore[arg-type]
    drawn = loss.negatives(task.target[None].numpy(), np.random.default_rng(0))
    used = None if drawn is None else drawn.at(torch.ones(1, len(task.target), dtype=torch.bool))
    return lambda: loss(task.states, task.vectors, task.target, used)
