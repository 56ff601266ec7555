"""Item vectors from what stands together: positive pointwise mutual information, factorised (Levy & Goldberg, 2014).

    M_ij = max(0, log(n_ij N / (n_i n_j)))     n_ij: pairs of i and j fewer than `window` events apart, either order
    n_j is smoothed to n_j ** 0.75; v_i = row i of U sqrt(S), scaled to length 1

Dimensions: V item rows (row 0 is padding), K width.
"""

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import svds

from recsys.splits import TrainingEvents

SMOOTHING = 0.75


def pair_counts(events: TrainingEvents, window: int) -> sparse.csr_array:
    """[V, V], symmetric: how often two different items of a user stand fewer than `window` events apart."""
    items, users = events.items.astype(np.int64), events.users
    pairs = []
    for apart in range(1, min(window, len(items))):
        together = (users[apart:] == users[:-apart]) & (items[apart:] != items[:-apart])
        pairs.append(np.stack([items[:-apart][together], items[apart:][together]]))
    first, second = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=np.int64)
    shape = (events.num_rows, events.num_rows)
    counts = sparse.csr_array((np.ones(len(first)), (first, second)), shape=shape)
    return sparse.csr_array(counts + counts.T)


def positive_pmi(counts: sparse.csr_array) -> sparse.csr_array:
    """The matrix M of the module's formula."""
    pairs = counts.tocoo()
    rows, columns = pairs.coords
    totals = np.bincount(rows, pairs.data, minlength=counts.shape[0])
    context = totals**SMOOTHING / max(1.0, float((totals**SMOOTHING).sum()))
    information = np.log(pairs.data / totals[rows] / context[columns])
    return sparse.csr_array((np.maximum(information, 0), (rows, columns)), shape=counts.shape)


def cooccurrence_vectors(events: TrainingEvents, window: int, width: int) -> Float[np.ndarray, "V K"]:
    """Of length 1; zeros for items that never stood beside another. Fewer than `width` numbers of few items."""
    matrix = positive_pmi(pair_counts(events, window))
    width = min(width, events.num_rows - 2)
    if not matrix.nnz or width < 1:
        return np.zeros((events.num_rows, max(1, width)), dtype=np.float32)
    start = np.full(events.num_rows, events.num_rows**-0.5)
    directions, strengths, _ = svds(matrix, k=width, v0=start)
    vectors = directions * np.sqrt(np.maximum(strengths, 0))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = lengths > 1e-6
    return np.where(known, vectors / np.where(known, lengths, 1), 0).astype(np.float32)
