"""Click cases: each evaluation case's target beside popular items that the user did not know, and how they are scored.

The same items for every model: two for a target, as DARE's authors have it, drawn once by the training events' counts
from a fixed seed and rejected when the history holds them. Such negatives make AUC optimistic; compare it within this
protocol only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys.batches import Histories
from recsys.click_metrics import FloatArray
from recsys.contracts import CatalogScorer
from recsys.evaluation import batches_of_like_length
from recsys.negatives import PopularNegatives
from recsys.sequences import IntArray, SequenceStore

NEGATIVES = 2
SEED = 0
CASES_AT_ONCE = 1024

Score: TypeAlias = Callable[[Histories, Int[Tensor, "B C"]], Float[Tensor, "B C"]]


@dataclass(frozen=True)
class ClickCases:
    """Users, positions in their histories [N], and items [N, 1 + M] of which the first was clicked."""

    users: IntArray
    positions: IntArray
    items: IntArray

    @classmethod
    def of(cls, cases: pl.DataFrame, store: SequenceStore, counts: IntArray) -> "ClickCases":
        """Of evaluation cases; `counts` [V] are training events."""
        users, positions, targets = (
            cases[name].to_numpy().astype(np.int64) for name in ("user_idx", "position", "target")
        )
        popular, rng = PopularNegatives(counts), np.random.default_rng(SEED)
        drawn = [np.zeros((0, NEGATIVES), dtype=np.int64)]
        for first in range(0, len(users), CASES_AT_ONCE):
            part = slice(first, first + CASES_AT_ONCE)
            past = store.windows(users[part], positions[part] + 1, int(positions[part].max()) + 1)  # target included
            drawn.append(popular.draw(past.items, past.lengths[:, None], NEGATIVES, rng)[:, 0])
        return cls(users, positions, np.concatenate([targets[:, None], np.concatenate(drawn)], axis=1))

    def flat(self, scores: Float[np.ndarray, "N C"]) -> tuple[IntArray, IntArray, FloatArray]:
        """Users, labels and scores of one row an item: what metrics take."""
        shown = self.items.shape[1]
        labels = np.tile(np.arange(shown) == 0, len(self.users)).astype(np.int64)
        return np.repeat(self.users, shown), labels, scores.ravel()

    def rows(self, scores: Float[np.ndarray, "N C"]) -> pl.DataFrame:
        """The same as a table, with positions and items."""
        users, labels, flat = self.flat(scores)
        return pl.DataFrame({
            "user_idx": users.astype(np.int32),
            "position": np.repeat(self.positions, self.items.shape[1]).astype(np.int32),
            "item": self.items.ravel().astype(np.int32),
            "label": labels.astype(np.int8),
            "score": flat,
        })


@torch.no_grad()
def click_scores(
    score: Score,
    max_len: int,
    store: SequenceStore,
    cases: ClickCases,
    most: int = CASES_AT_ONCE,
    device: torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "N C"]:
    """Score of every item of every case, after the history up to it; at most so many cases together."""
    scores = np.zeros(cases.items.shape)
    for chosen in batches_of_like_length(np.minimum(cases.positions, max_len), most):
        windows = store.windows(cases.users[chosen], cases.positions[chosen], max_len)
        histories = Histories.from_windows(windows, device)
        scores[chosen] = score(histories, torch.from_numpy(cases.items[chosen]).to(device)).double().cpu().numpy()
        if progress is not None:
            progress(len(chosen))
    return scores


def by_catalog(scorer: CatalogScorer) -> Score:
    """A model of the whole catalogue as one of given items."""
    return lambda histories, items: scorer.scores(histories).gather(1, items)
