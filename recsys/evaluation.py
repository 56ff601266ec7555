"""Full ranking of evaluation cases: every case's rank once, then every figure from the ranks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from recsys.batches import Histories
from recsys.contracts import CatalogScorer, ItemMask
from recsys.metrics import IntArray, case_metrics, list_metrics
from recsys.prepared import SeenRule
from recsys.ranking import allowed_scores, target_ranks, top_k
from recsys.sequences import SequenceStore

SCORES_PER_BATCH = 1 << 23
MAX_BATCH = 512

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
) -> Ranked:
    """Ranks every case's target among all items.

    With `seen="exclude"` no item of the whole history may be returned; a target among them is a miss, as it
    is for the product. Items of the rows `retired` are never returned either.
    """
    ranks = np.zeros(len(cases), dtype=np.int32)
    listed = {k: np.zeros(num_rows, dtype=np.int64) for k in cutoffs}
    columns = {name: cases[name].to_numpy().astype(np.int64) for name in ("user_idx", "position", "target")}
    for chosen in _batches_of_like_length(columns["position"], num_rows):
        users, positions = columns["user_idx"][chosen], columns["position"][chosen]
        histories = Histories.from_windows(store.windows(users, positions, scorer.max_len), device)
        mask = seen_mask(store, users, positions, num_rows, device) if seen == "exclude" else None
        scores = allowed_scores(scorer.scores(histories), mask)
        if retired is not None:
            scores[:, retired] = -torch.inf
        target = torch.from_numpy(columns["target"][chosen]).to(scores.device)
        ranks[chosen] = target_ranks(scores, target).cpu().numpy()
        best = top_k(scores, max(cutoffs)).items.cpu().numpy()
        for k in cutoffs:
            listed[k] += np.bincount(best[:, :k].ravel(), minlength=num_rows)
        if progress is not None:
            progress(len(chosen))
    return Ranked(cases.with_columns(rank=ranks), listed)


def _batches_of_like_length(lengths: IntArray, num_rows: int) -> Iterator[IntArray]:
    """Indices of cases, short histories first, so that little padding is encoded."""
    size = max(1, min(MAX_BATCH, SCORES_PER_BATCH // num_rows))
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), size):
        yield order[first : first + size]


def seen_mask(
    store: SequenceStore, users: IntArray, positions: IntArray, num_rows: int, device: torch.device | None = None
) -> ItemMask:
    """True at every item of each whole history, however long."""
    longest = int(positions.max(initial=0))
    rows = torch.from_numpy(store.windows(users, positions, max(1, longest)).items).to(device)
    mask = torch.zeros((len(users), num_rows), dtype=torch.bool, device=device)
    return mask.scatter_(1, rows, value=True)


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
    """The parts of the cases that are reported on their own; empty ones are left out.

    Users new or known to training, targets cold or warm, history length, popularity decile of the target.
    """
    parts = {
        "user: new": cases.filter("new_user"),
        "user: known": cases.filter(~pl.col("new_user")),
        "item: cold": cases.filter("cold_item"),
        "item: warm": cases.filter(~pl.col("cold_item")),
    }
    for low, high in HISTORY_BUCKETS:
        label = f"history: {low}" + ("" if high == low else "+" if high is None else f"-{high}")
        parts[label] = cases.filter(
            (pl.col("history_length") >= low) & (True if high is None else pl.col("history_length") <= high)
        )
    for decile in range(1, 11):
        parts[f"popularity decile: {decile}"] = cases.filter(popularity_decile=decile)
    return {name: part for name, part in parts.items() if len(part)}
