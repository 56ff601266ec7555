"""Negatives of sampled losses: which items stand in for the catalogue, and how much each counts.

One draw serves every position of a batch: its vectors are read once, and the logits are one matrix product.
Dimensions: V item rows, M negatives.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recsys.catalog import PADDING
from recsys.errors import ConfigError
from recsys.sequences import IntArray

REDRAWS = 8
"""A row that holds half the catalogue keeps a known negative at one position in 500."""
Sampling = Literal["uniform", "popularity", "in-batch", "mixed"]


@dataclass(frozen=True)
class Negatives:
    """Item rows drawn for a batch, each with the logarithm of its weight in a sum over the catalogue.

    Either one draw for all positions, distinct and in ascending order [M], or one item for each position [B, L].
    """

    items: Int[Tensor, "*shape"]
    log_weight: Float[Tensor, "*shape"]

    @property
    def shared(self) -> bool:
        """True where every position has the same negatives."""
        return self.items.ndim == 1

    def to(self, device: torch.device) -> "Negatives":
        """The negatives on `device`."""
        return Negatives(self.items.to(device), self.log_weight.to(device))

    def rows(self, chosen: Tensor) -> "Negatives":
        """Those of batch rows `chosen`."""
        return self if self.shared else Negatives(self.items[chosen], self.log_weight[chosen])

    def after_first(self) -> "Negatives":
        """Those of every position but the first."""
        return self if self.shared else Negatives(self.items[:, 1:], self.log_weight[:, 1:])

    def at(self, positions: Bool[Tensor, "B L"]) -> "Negatives":
        """Those of the positions that are true, one after the other."""
        return self if self.shared else Negatives(self.items[positions], self.log_weight[positions])


def uniform_draws(sampling: Sampling, num_negatives: int) -> int:
    """How many of the negatives are drawn uniformly, and so without repetition."""
    return {"uniform": num_negatives, "mixed": num_negatives // 2}.get(sampling, 0)


def check_draws(sampling: Sampling, num_negatives: int, num_items: int) -> None:
    """Refuses more distinct items than there are."""
    if (uniform := uniform_draws(sampling, num_negatives)) > num_items:
        raise ConfigError(f"loss: {uniform} distinct negatives cannot be drawn from {num_items} items.")


class NegativeSampler:
    """Draws `num_negatives` item rows for a batch.

    uniform      distinct items, all alike
    popularity   as often as training events name them
    in-batch     events of the batch that is trained on
    mixed        half uniform, half in-batch: rare items are seen, hard ones too

    An item drawn n times where m draws were expected weighs n / m, so that the weighted sum over the draws of any
    function of items has the sum over the catalogue for its mean (the logQ correction; Bengio & Senecal, 2008).
    Without `log_q` it weighs n. For events of the batch the expectation is that of batches drawn at random; ours hold
    histories of like length, so there the correction is approximate.
    """

    def __init__(self, sampling: Sampling, num_negatives: int, log_q: bool, num_items: int) -> None:
        check_draws(sampling, num_negatives, num_items)
        self.uniform = uniform_draws(sampling, num_negatives)
        self.sampling, self.num_negatives, self.log_q, self.num_items = sampling, num_negatives, log_q, num_items
        self.share: np.ndarray | None = None

    def learn_popularity(self, counts: IntArray) -> None:
        """Training events of each item row, [V]."""
        self.share = counts / counts.sum()

    def draw(self, batch_items: Int[np.ndarray, "B L"], rng: np.random.Generator) -> Negatives:
        """Negatives for a batch that holds these events (0 is padding)."""
        uniform, others = self.uniform, self.num_negatives - self.uniform
        drawn = [1 + rng.choice(self.num_items, uniform, replace=False, shuffle=False)] if uniform else []
        if others and self.sampling == "popularity":
            drawn.append(rng.choice(self.num_items + 1, others, p=self._share()))
        elif others:
            drawn.append(rng.choice(batch_items[batch_items != 0], others))
        items, times = np.unique(np.concatenate(drawn), return_counts=True)
        weight = times.astype(np.float64)
        if self.log_q:
            expected = np.full(len(items), uniform / self.num_items)
            if others:
                expected += others * self._share()[items]
            weight /= expected
        return Negatives(torch.from_numpy(items), torch.from_numpy(np.log(weight).astype(np.float32)))

    def _share(self) -> np.ndarray:
        if self.share is None:
            raise RuntimeError(f"{self.sampling} negatives need learn_popularity() before the first batch")
        return self.share


class PopularNegatives:
    """Items drawn as often as `counts` [V] names them, none that the user knew by then."""

    def __init__(self, counts: IntArray) -> None:
        self.up_to = np.cumsum(counts) / counts.sum()

    def draw(
        self, histories: Int[np.ndarray, "B L"], stops: Int[np.ndarray, "B P"], number: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "B P M"]:
        """`number` for each stop, redrawn while they are among the row's first `stops` events.

        What comes after is no reason to reject an item: an answer in use does not know it either.
        """
        items = self._any(rng, (*stops.shape, number))
        before = np.arange(histories.shape[1]) < stops[:, :, None]
        past = np.where(before, histories[:, None], PADDING)
        for _ in range(REDRAWS):
            known = (items[..., None] == past[:, :, None]).any(axis=-1)
            items[known] = self._any(rng, (int(known.sum()),))
        return items

    def _any(self, rng: np.random.Generator, shape: tuple[int, ...]) -> IntArray:
        return np.searchsorted(self.up_to, rng.random(shape), side="right")


def unseen_negatives(histories: Int[np.ndarray, "B L"], num_items: int, rng: np.random.Generator) -> Negatives:
    """One uniform item for each position, redrawn while its row holds it.

    Published SASRec rejects the user's whole training history; a row is a window of it.
    """
    items = rng.integers(1, num_items + 1, histories.shape)
    for _ in range(REDRAWS):
        known = (items[:, :, None] == histories[:, None, :]).any(axis=2)
        items[known] = rng.integers(1, num_items + 1, int(known.sum()))
    return Negatives(torch.from_numpy(items), torch.zeros(items.shape))
