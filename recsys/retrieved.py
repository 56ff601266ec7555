"""A retriever's lists for evaluation cases, kept so that a second stage can be judged on them again and again.

Dimensions: N cases, C candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recsys.batches import Histories
from recsys.contracts import CatalogScorer
from recsys.evaluation import allowed_scores_of_cases, batches_of_like_length
from recsys.metrics import ndcg_at_k
from recsys.prepared import Prepared, SeenRule
from recsys.ranking import NOT_RETURNED, top_k
from recsys.reranking import Reranker
from recsys.sequences import IntArray

CASES_AT_ONCE = 64
CUTOFF = 10
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class Retrieved:
    """Users and positions [N]; a retriever's best allowed items, 0 where there were fewer; where the target is."""

    users: IntArray
    positions: IntArray
    items: Int[Tensor, "N C"]
    scores: Float[Tensor, "N C"]
    is_target: Bool[Tensor, "N C"]

    @classmethod
    def of(
        cls,
        scorer: CatalogScorer,
        prepared: Prepared,
        cases: pl.DataFrame,
        candidates: int,
        seen: SeenRule,
        device: torch.device | None = None,
    ) -> "Retrieved":
        """The best `candidates` of all items that may be returned."""
        users, positions, targets = (
            cases[name].to_numpy().astype(np.int64) for name in ("user_idx", "position", "target")
        )
        most = min(candidates, prepared.catalog.num_rows)
        items, scores = torch.zeros((len(cases), most), dtype=torch.int64), torch.zeros(len(cases), most)
        scored = allowed_scores_of_cases(
            scorer,
            prepared.store,
            cases,
            prepared.catalog.num_rows,
            seen,
            device,
            retired=prepared.catalog.retired_rows,
        )
        for chosen, _, allowed in scored:
            best = top_k(allowed, most)
            items[chosen], scores[chosen] = best.items.cpu(), best.scores.float().cpu()
        return cls(users, positions, items, scores, items == torch.from_numpy(targets)[:, None])

    def second_scores(self, reranker: Reranker, prepared: Prepared, device: torch.device | None = None) -> Tensor:
        """What the second stage says of each item, [N, C]."""
        second, longest = torch.zeros(self.scores.shape), reranker.ranker.max_len
        for chosen in batches_of_like_length(np.minimum(self.positions, longest), CASES_AT_ONCE):
            windows = prepared.store.windows(self.users[chosen], self.positions[chosen], longest)
            histories = Histories.from_windows(windows, device)
            second[chosen] = reranker.second_scores(histories, self.items[chosen].to(device)).float().cpu()
        return second

    def ndcg(self, second: Float[Tensor, "N C"], reranker: Reranker) -> float:
        """Mean NDCG@10 of the lists as it orders them; among equal scores the target comes last."""
        both = reranker.weighed(self.scores, second, torch.from_numpy(self.positions))
        own = both.masked_fill(~self.is_target, -torch.inf).amax(dim=1, keepdim=True)
        ranks = torch.where(own.squeeze(1) == -torch.inf, NOT_RETURNED, (both >= own).sum(dim=1))
        return float(ndcg_at_k(ranks.numpy(), CUTOFF).mean())

    def by_weight(self, second: Float[Tensor, "N C"], reranker: Reranker) -> dict[float | None, float]:
        """NDCG@10 by weight, of the ranker alone (None) too; weight 0 is the retriever's own order."""
        return {weight: self.ndcg(second, replace(reranker, weight=weight)) for weight in (*WEIGHTS, None)}


def best_weight(by_weight: Mapping[float | None, float]) -> float | None:
    """The best; the smallest of equal ones, None the largest of all."""
    return max(by_weight, key=lambda weight: (by_weight[weight], -np.inf if weight is None else -weight))
