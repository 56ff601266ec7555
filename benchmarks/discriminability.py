"""How much what a ranker's network reads tells about the click: clusters of it, beside the labels (DARE, analysis).

k-means sorts test rows by their vectors; the mutual information of cluster and label, over the mean of their entropies,
grows with what the vectors know, and with the number of clusters by chance, for which shuffled labels stand beside.
"""

from collections.abc import Iterator

import faiss
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.mutual_information import normalised_information
from models.dare import DARE
from recsys.batches import Histories
from recsys.clicks import ClickCases
from recsys.prepared import Prepared
from recsys.sequences import IntArray

CLUSTERS = (2, 5, 10, 20, 50, 100, 200, 500)
SEEDS = (1, 2, 3)
ITERATIONS, AT_ONCE = 25, 256


@torch.no_grad()
def network_inputs(model: DARE, prepared: Prepared, clicks: ClickCases) -> dict[str, Float[np.ndarray, "N W"]]:
    """What the click network reads of each row, as normalised: the product alone, and candidate and history."""
    kept: list[list[Tensor]] = []

    def keep(head: nn.Module, given: tuple[list[Tensor]]) -> None:
        kept.append([norm(part).flatten(0, 1) for norm, part in zip(head.norms, given[0], strict=True)])  # type: ignore[arg-type]

    hook = model.head.register_forward_pre_hook(keep)
    for histories, items in _batches(model, prepared, clicks):
        model.score(histories, items)
    hook.remove()
    candidate, pooled, product = (torch.cat(part).numpy() for part in list(zip(*kept, strict=True))[:3])
    return {"product": product, "candidate and history": np.concatenate([candidate, pooled], axis=1)}


def _batches(model: DARE, prepared: Prepared, clicks: ClickCases) -> Iterator[tuple[Histories, Tensor]]:
    for first in range(0, len(clicks.users), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        windows = prepared.store.windows(clicks.users[part], clicks.positions[part], model.max_len)
        yield Histories.from_windows(windows), torch.from_numpy(clicks.items[part])


def clustered_information(
    vectors: Float[np.ndarray, "N W"], labels: IntArray, clusters: int, seed: int
) -> tuple[float, float]:
    """Normalised mutual information of k-means' clusters with the labels, and with shuffled ones."""
    means = faiss.Kmeans(vectors.shape[1], clusters, niter=ITERATIONS, seed=seed, max_points_per_centroid=len(vectors))
    means.cp.min_points_per_centroid = 1
    means.train(np.ascontiguousarray(vectors, dtype=np.float32))
    sorting = means.index.search(np.ascontiguousarray(vectors, dtype=np.float32), 1)[1][:, 0]
    shuffled = np.random.default_rng(seed).permutation(labels)
    return normalised_information(sorting, labels), normalised_information(sorting, shuffled)


def discriminability(vectors: Float[np.ndarray, "N W"], labels: IntArray) -> dict[str, list[float]]:
    """By number of clusters, mean over seeds: of the labels, and by chance."""
    found = np.array([
        [clustered_information(vectors, labels, clusters, seed) for seed in SEEDS]
        for clusters in CLUSTERS
        if clusters < len(vectors)
    ]).mean(axis=1)
    return {"labels": found[:, 0].tolist(), "chance": found[:, 1].tolist()}
