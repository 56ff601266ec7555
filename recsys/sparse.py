"""Sparse matrices of the counting models, one row an item: kept as four arrays, applied to histories."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from recsys.batches import Histories

CSR_PARTS = ("data", "indices", "indptr", "shape")


def csr_arrays(name: str, matrix: sparse.csr_array) -> dict[str, np.ndarray]:
    """`name.data`, `name.indices`, `name.indptr`, `name.shape`."""
    return {f"{name}.{part}": np.asarray(getattr(matrix, part)) for part in CSR_PARTS}


def csr_from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> sparse.csr_array:
    """The matrix that `csr_arrays` took apart."""
    *parts, shape = (arrays[f"{name}.{part}"] for part in CSR_PARTS)
    return sparse.csr_array(tuple(parts), shape=tuple(shape))


def history_matrix(batch: Histories, num_rows: int, decay: float = 1.0) -> sparse.csr_array:
    """[B, V]: `decay` to the power of the events that came after; repeated items add up."""
    items, lengths = batch.items.numpy(), batch.lengths.numpy()
    steps = np.arange(items.shape[1])
    rows, places = np.nonzero(steps < lengths[:, None])
    weights = decay ** (lengths[rows] - 1 - places).astype(np.float32)
    return sparse.csr_array((weights, (rows, items[rows, places])), shape=(len(items), num_rows), dtype=np.float32)


def last_items(batch: Histories) -> np.ndarray:
    """[B]: row of each history's last item; padding where it is empty."""
    last = (batch.lengths.long() - 1).clamp(min=0)
    items: np.ndarray = batch.items.gather(1, last[:, None]).squeeze(1).numpy()
    return np.where(batch.lengths.numpy() > 0, items, 0)


def dense(matrix: sparse.csr_array) -> Float[Tensor, "B V"]:
    """As a float32 tensor."""
    return torch.from_numpy(matrix.toarray().astype(np.float32, copy=False))
