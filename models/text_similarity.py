"""Text similarity: items whose frozen text vector is most like those of the newest items; no training.

score(i) = sum_a decay^a <v(a-th newest item), v(i)>, with v of length 1 from a sentence encoder. `max_len: 1` looks at
the last item alone, `decay: 1` at the mean: what a text model that learns from histories has to beat.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from recsys.batches import Histories
from recsys.errors import ConfigError, DataError
from recsys.item_text import has_text, item_texts
from recsys.splits import TrainingEvents
from recsys.text_vectors import Pooling, default_store, named_encoder, text_vectors


@dataclass(frozen=True, kw_only=True)
class TextSimilarityConfig:
    """Which encoder, how many of the newest items, and what each older one counts beside the next."""

    text_encoder: str | None = None
    text_revision: str | None = None
    text_pooling: Pooling = "mean"
    max_len: int = 10
    decay: float = 0.5

    def __post_init__(self) -> None:
        if self.max_len < 1:
            raise ConfigError(f"TextSimilarityConfig: max_len={self.max_len} must be at least 1.")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"TextSimilarityConfig: decay={self.decay} must lie in (0, 1].")


class TextSimilarity:
    """Frozen vectors of all item rows; an item without text has zeros and is like none."""

    def __init__(self, config: TextSimilarityConfig, vectors: Float[np.ndarray, "V F"]) -> None:
        self.config = config
        self.max_len = config.max_len
        self.vectors = torch.from_numpy(vectors)

    @classmethod
    def fit(cls, config: TextSimilarityConfig, events: TrainingEvents, items: pl.DataFrame) -> "TextSimilarity":  # noqa: ARG003
        """From the item table alone; texts that were encoded once come from the store."""
        if not has_text(items):
            raise DataError("text-similarity: the item table has no text; ingest an item table with --items.")
        encoder = named_encoder(config.text_encoder, config.text_revision, config.text_pooling)
        return cls(config, text_vectors(["", *item_texts(items)], encoder, default_store()))

    def scores(self, batch: Histories) -> Float[Tensor, "B V"]:
        """Of every item row."""
        age = batch.lengths[:, None] - 1 - torch.arange(batch.items.shape[1])
        weights = torch.where(age >= 0, self.config.decay ** age.clamp(min=0).float(), 0.0)
        return (weights[:, :, None] * self.vectors[batch.items]).sum(dim=1) @ self.vectors.T

    def arrays(self) -> dict[str, np.ndarray]:
        """Vectors of all item rows."""
        return {"vectors": self.vectors.numpy()}

    @classmethod
    def from_arrays(cls, config: TextSimilarityConfig, arrays: Mapping[str, np.ndarray]) -> "TextSimilarity":
        """From what `arrays` gave."""
        return cls(config, arrays["vectors"])
