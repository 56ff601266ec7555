"""Full ranking of evaluation cases: every case's rank once, then every figure from the ranks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys.batches import Histories
from recsys.contracts import CatalogScorer, ItemMask
from recsys.metrics import IntArray, case_metrics, list_metrics
from recsys.prepared import SeenRule
from recsys.ranking import target_ranks, top_k, without_items
from recsys.reranking import Reranker
from recsys.sequences import SequenceStore

SCORES_PER_BATCH = 1 << 21
EVENTS_PER_BATCH = 1 << 14
"""Small enough for a processor's cache to hold what a batch computes."""

HISTORY_BUCKETS = ((0, 0), (1, 5), (6, 20), (21, 50), (51, 200), (201, None))


@dataclass(frozen=True)
class Ranked:
    """Cases with their ranks, and how often each item row was listed: [V] at every cutoff."""

    cases: pl.DataFrame
    listed: dict[int, IntArray]


def rank_cases(
    scorer: CatalogScorer,
    store: SequenceStore,
    cases: pl.DataFrame,
    num_rows: int,
    seen: SeenRule,
    cutoffs: Sequence[int],
    device: torch.device | None = None,
    retired: IntArray | None = None,
    progress: Callable[[int], None] | None = None,
    reranker: Reranker | None = None,
) -> Ranked:
    """Ranks every case's target among all items, or with a `reranker` among those that go through a second stage."""
    ranks = np.zeros(len(cases), dtype=np.int32)
    listed = {k: np.zeros(num_rows, dtype=np.int64) for k in cutoffs}
    targets = cases["target"].to_numpy().astype(np.int64)
    read = 0 if reranker is None else reranker.ranker.max_len
    for chosen, histories, allowed in allowed_scores_of_cases(
        scorer, store, cases, num_rows, seen, device, retired, read
    ):
        scores = allowed if reranker is None else reranker.reordered(histories, allowed)
        ranks[chosen] = target_ranks(scores, torch.from_numpy(targets[chosen]).to(scores.device)).cpu().numpy()
        best = top_k(scores, max(cutoffs)).items.cpu().numpy()
        for k in cutoffs:
            listed[k] += np.bincount(best[:, :k].ravel(), minlength=num_rows)
        if progress is not None:
            progress(len(chosen))
    return Ranked(cases.with_columns(rank=ranks), listed)


def allowed_scores_of_cases(
    scorer: CatalogScorer,
    store: SequenceStore,
    cases: pl.DataFrame,
    num_rows: int,
    seen: SeenRule,
    device: torch.device | None = None,
    retired: IntArray | None = None,
    read: int = 0,
) -> Iterator[tuple[IntArray, Histories, Float[Tensor, "B V"]]]:
    """Cases some at a time: their indices, their histories of at least `read` events, scores of all items.

    Items that may not be returned have -inf: with `seen="exclude"` those of the whole history (a target among them is a
    miss, as it is for the product), and those of the rows `retired`.
    """
    users, positions = (cases[name].to_numpy().astype(np.int64) for name in ("user_idx", "position"))
    max_len, most = max(scorer.max_len, read), max(1, SCORES_PER_BATCH // num_rows)
    for chosen in batches_of_like_length(np.minimum(positions, max_len), most):
        histories = Histories.from_windows(store.windows(users[chosen], positions[chosen], max_len), device)
        none = histories.items[:, :0]
        excluded = whole_histories(store, users[chosen], positions[chosen], device) if seen == "exclude" else none
        scores = without_items(scorer.scores(histories.latest(scorer.max_len)), excluded)
        if retired is not None:
            scores[:, retired] = -torch.inf
        yield chosen, histories, scores


def batches_of_like_length(lengths: IntArray, most: int) -> Iterator[IntArray]:
    """Indices of cases, at most so many together, short histories first, so that little padding is encoded."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        longest = int(lengths[order[min(first + most, len(order)) - 1]])
        size = min(most, max(1, EVENTS_PER_BATCH // max(1, longest)))
        yield order[first : first + size]
        first += size


def whole_histories(
    store: SequenceStore, users: IntArray, positions: IntArray, device: torch.device | None = None
) -> Int[Tensor, "B H"]:
    """Items of each history, however long; 0 is padding."""
    longest = int(positions.max(initial=0))
    return torch.from_numpy(store.windows(users, positions, max(1, longest)).items).to(device)


def seen_mask(
    store: SequenceStore, users: IntArray, positions: IntArray, num_rows: int, device: torch.device | None = None
) -> ItemMask:
    """True at every item of each whole history."""
    rows = whole_histories(store, users, positions, device)
    return torch.zeros((len(users), num_rows), dtype=torch.bool, device=device).scatter_(1, rows, value=True)


def summarise(ranked: Ranked, counts: IntArray, cutoffs: Sequence[int]) -> dict[str, Any]:
    """Means over all cases and per segment, with the number of cases beside each."""
    overall = mean_metrics(ranked.cases, cutoffs)
    for k in cutoffs:
        overall |= list_metrics(ranked.listed[k], counts, k)
    return {
        "cases": len(ranked.cases),
        "metrics": overall,
        "segments": {
            name: {"cases": len(part), "metrics": mean_metrics(part, cutoffs)}
            for name, part in segments(ranked.cases).items()
        },
    }


def mean_metrics(cases: pl.DataFrame, cutoffs: Sequence[int]) -> dict[str, float]:
    """Means of every metric at every cutoff."""
    values = case_metrics(cases["rank"].to_numpy().astype(np.int64), cutoffs)
    return {name: float(per_case.mean()) for name, per_case in values.items()}


def segments(cases: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The cases of each of `segment_rows`."""
    return {name: cases[rows] for name, rows in segment_rows(cases)}


def segment_rows(cases: pl.DataFrame) -> Iterator[tuple[str, IntArray]]:
    """The parts of the cases that are reported on their own, as row numbers; empty ones are left out.

    Users new or known to training, targets cold or warm, history length, popularity decile of the target.
    """
    parts = {
        "user: new": pl.col("new_user"),
        "user: known": ~pl.col("new_user"),
        "item: cold": pl.col("cold_item"),
        "item: warm": ~pl.col("cold_item"),
    }
    for low, high in HISTORY_BUCKETS:
        label = f"history: {low}" + ("" if high == low else "+" if high is None else f"-{high}")
        within = pl.col("history_length") >= low
        parts[label] = within if high is None else within & (pl.col("history_length") <= high)
    for decile in range(1, 11):
        parts[f"popularity decile: {decile}"] = pl.col("popularity_decile") == decile
    for name, condition in parts.items():
        rows = np.flatnonzero(cases.select(condition).to_series().to_numpy())
        if len(rows):
            yield name, rows
