"""Popularity: the floor every model must beat, over all training events or the latest of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from recsys.batches import Histories
from recsys.errors import ConfigError
from recsys.splits import TrainingEvents


@dataclass(frozen=True, kw_only=True)
class PopularityConfig:
    """`share`: the latest part of the training events that counts; 1 is all time."""

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"PopularityConfig: share={self.share} must lie in (0, 1].")


class Popularity:
    """Scores every history alike: by counts [V], ties broken by all-time counts."""

    max_len = 1

    def __init__(self, config: PopularityConfig, counts: np.ndarray) -> None:
        self.config = config
        self.counts = counts

    @classmethod
    def fit(cls, config: PopularityConfig, events: TrainingEvents, items: pl.DataFrame) -> "Popularity":  # noqa: ARG003
        """Counts the latest `share` of the events."""
        times = events.timestamps
        since = np.sort(times)[int(len(times) * (1 - config.share))] if config.share < 1 else times.min()
        recent = np.bincount(events.items[times >= since], minlength=events.num_rows)
        all_time = events.item_counts()
        return cls(config, (recent + all_time / (all_time.max() + 1)).astype(np.float32))

    def scores(self, batch: Histories) -> Float[Tensor, "B V"]:
        """The counts, for every history."""
        return torch.from_numpy(self.counts).expand(len(batch.lengths), -1)

    def arrays(self) -> dict[str, np.ndarray]:
        """The counts."""
        return {"counts": self.counts}

    @classmethod
    def from_arrays(cls, config: PopularityConfig, arrays: Mapping[str, np.ndarray]) -> "Popularity":
        """From the counts."""
        return cls(config, arrays["counts"])
