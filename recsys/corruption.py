"""Windows with one item that does not belong: what a detector of noise learns from, and what it is calibrated on.

The task of LLM4DSR (arXiv:2408.08208), which never puts the same item back. Items put in are drawn in proportion to
popularity ** alpha: uniform ones (alpha 0) are mostly rare, and a detector could name whatever is rare.
Dimensions: N windows, L positions (right-padded, 0 is padding), V item rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from recsys.errors import ConfigError, DataError
from recsys.sequences import IntArray


@dataclass(frozen=True)
class Corrupted:
    """Windows with exactly one wrong item each, at `places` [N]."""

    items: Int[np.ndarray, "N L"]
    places: Int[np.ndarray, " N"]


class NoiseSource:
    """Draws item rows in proportion to `counts` ** `alpha`, [V]; with `alpha` 0 all of them alike.

    Items without events count as half an event, so that every item can be drawn.
    """

    def __init__(self, counts: IntArray, alpha: float) -> None:
        if alpha < 0:
            raise ConfigError(f"corruption: alpha={alpha} must be at least 0, the power of an item's popularity.")
        if len(counts) < 3:
            raise DataError(f"corruption: {len(counts) - 1} items are too few to put another one in; it takes two.")
        shares = np.maximum(counts[1:], 0.5) ** alpha
        self.cumulative = np.cumsum(shares) / shares.sum()

    def draw(self, number: int, rng: np.random.Generator) -> IntArray:
        """Rows of items, [number]."""
        rows = 1 + np.searchsorted(self.cumulative, rng.random(number), side="right")
        return np.minimum(rows, len(self.cumulative)).astype(np.int64)

    def draw_others(self, items: IntArray, rng: np.random.Generator) -> IntArray:
        """For each item another one."""
        drawn = self.draw(len(items), rng)
        while (same := drawn == items).any():
            drawn[same] = self.draw(int(same.sum()), rng)
        return drawn


def corrupt_one(
    items: Int[np.ndarray, "N L"], lengths: Int[np.ndarray, " N"], source: NoiseSource, rng: np.random.Generator
) -> Corrupted:
    """One position of each window, uniform over its `lengths` events, holds another item."""
    rows, places = np.arange(len(items)), rng.integers(0, lengths)
    corrupted = items.copy()
    corrupted[rows, places] = source.draw_others(items[rows, places], rng)
    return Corrupted(corrupted, places)
