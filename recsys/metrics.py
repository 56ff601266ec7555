"""Ranking metrics of one target a case, from its rank (1 is best) in the full catalogue; arrays [N]."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def hit_rate_at_k(ranks: IntArray, k: int) -> FloatArray:
    """1 where the target is among the first k; with one target a case this is recall as well."""
    return (ranks <= k).astype(np.float64)


def ndcg_at_k(ranks: IntArray, k: int) -> FloatArray:
    """1 / log2(1 + rank) within the first k; the ideal is 1, so no further norm."""
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def mrr_at_k(ranks: IntArray, k: int) -> FloatArray:
    """1 / rank within the first k."""
    return np.where(ranks <= k, 1 / ranks, 0.0)


METRICS = {"ndcg": ndcg_at_k, "hit_rate": hit_rate_at_k, "mrr": mrr_at_k}


def case_metrics(ranks: IntArray, cutoffs: Sequence[int]) -> dict[str, FloatArray]:
    """Every metric at every cutoff, as `ndcg@10`."""
    return {f"{name}@{k}": metric(ranks, k) for k in cutoffs for name, metric in METRICS.items()}


def list_metrics(recommended: IntArray, counts: IntArray, k: int) -> dict[str, float]:
    """What the lists do to the catalogue, from how often each item row was listed among the first k.

    recommended [V], training counts [V], row 0 unused.
    coverage: share of the catalogue listed at all.
    novelty: mean -log2 p(item) over listed items, p the share of training events (add-one smoothed).
    popularity_bias: mean popularity percentile of listed items (0.5: as the catalogue, 1: the most popular only).
    """
    listed, popularity = recommended[1:], counts[1:]
    total = max(1, listed.sum())
    information = -np.log2((popularity + 1) / (popularity + 1).sum())
    return {
        f"coverage@{k}": float((listed > 0).mean()),
        f"novelty@{k}": float((listed * information).sum() / total),
        f"popularity_bias@{k}": float((listed * percentiles(popularity)).sum() / total),
    }


def percentiles(values: IntArray) -> FloatArray:
    """Mid-rank percentile of each value among all, in (0, 1)."""
    ordered = np.sort(values)
    below, up_to = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (below + up_to) / (2 * len(values))
