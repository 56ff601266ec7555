"""Item-KNN: cosine between the users of two items, summed over the history (Sarwar et al., WWW 2001)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from recsys.batches import Histories
from recsys.errors import ConfigError
from recsys.sparse import csr_arrays, csr_from_arrays, dense, history_matrix
from recsys.splits import TrainingEvents


@dataclass(frozen=True, kw_only=True)
class ItemKNNConfig:
    """`neighbours` kept an item; events count `decay` times as much as the one after, the last `max_len` of them."""

    neighbours: int = 100
    max_len: int = 20
    decay: float = 0.8

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.max_len < 1 or not 0 < self.decay <= 1:
            raise ConfigError(
                f"ItemKNNConfig: neighbours={self.neighbours} and max_len={self.max_len} must be at least 1, "
                f"decay={self.decay} in (0, 1]."
            )


class ItemKNN:
    """score(i) = sum over history items j of decay^age(j) * cosine(j, i), i among the nearest of j."""

    def __init__(self, config: ItemKNNConfig, similarity: sparse.csr_array) -> None:
        self.config = config
        self.max_len = config.max_len
        self.similarity = similarity

    @classmethod
    def fit(cls, config: ItemKNNConfig, events: TrainingEvents, items: pl.DataFrame) -> "ItemKNN":  # noqa: ARG003
        """Cosine between binary user columns, the nearest kept a row."""
        pairs = np.unique(np.stack([events.users, events.items]), axis=1)
        taken = sparse.csc_array(
            (np.ones(pairs.shape[1], dtype=np.float32), (pairs[0], pairs[1])),
            shape=(events.store.num_users, events.num_rows),
        )
        norms = np.sqrt(np.maximum(1, taken.sum(axis=0))).astype(np.float32)
        unit = taken @ sparse.diags_array(1 / norms)
        similarity = sparse.csr_array(unit.T @ unit)
        similarity.setdiag(0)
        return cls(config, strongest(similarity, config.neighbours))

    def scores(self, batch: Histories) -> Float[Tensor, "B V"]:
        """Zero for items that share no user with the history."""
        history = history_matrix(batch, self.similarity.shape[0], self.config.decay)
        return dense(history @ self.similarity)

    def arrays(self) -> dict[str, np.ndarray]:
        """The similarity matrix."""
        return csr_arrays("similarity", self.similarity)

    @classmethod
    def from_arrays(cls, config: ItemKNNConfig, arrays: Mapping[str, np.ndarray]) -> "ItemKNN":
        """From what `arrays` gave."""
        return cls(config, csr_from_arrays("similarity", arrays))


def strongest(matrix: sparse.csr_array, count: int) -> sparse.csr_array:
    """The `count` largest entries of each row."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.data, rows))
    place = np.arange(len(rows)) - matrix.indptr[rows]
    kept = order[place < count]
    return sparse.csr_array((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)
