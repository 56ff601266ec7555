"""From scores to ranks and lists. Ties are pessimistic: among equal scores the target comes last."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys.batches import Histories
from recsys.contracts import CatalogScorer, ItemMask, Retriever, TopK
from recsys.errors import DataError

NOT_RETURNED = 2**31 - 1


class RetrieverScorer:
    """A retriever as a scorer of the whole catalogue; histories without events get `no_history` [V]."""

    def __init__(self, model: Retriever, no_history: Float[Tensor, " V"]) -> None:
        self.model = model
        self.max_len = model.max_len
        self.item_vectors = model.item_vectors().detach()
        self.no_history = no_history.to(self.item_vectors.device)

    @torch.no_grad()
    def scores(self, batch: Histories) -> Float[Tensor, "B V"]:
        """Inner products, or the same fixed scores where nothing is known."""
        known = batch.lengths > 0
        scores = self.no_history.expand(len(known), -1).clone()
        if known.any():
            scores[known] = (self.model.encode(batch.rows(known)) @ self.item_vectors.T).to(scores.dtype)
        return scores


@dataclass(frozen=True)
class FullRanking:
    """A `Recommender` that scores the whole catalogue: the reference for every index and service."""

    scorer: CatalogScorer

    def recommend(self, batch: Histories, k: int, mask: ItemMask | None) -> TopK:
        """The k best allowed items, padding never among them."""
        return top_k(allowed_scores(self.scorer.scores(batch), mask), k)


def allowed_scores(scores: Float[Tensor, "B V"], mask: ItemMask | None) -> Float[Tensor, "B V"]:
    """A copy with -inf at padding and wherever `mask` is true."""
    allowed = scores.clone() if mask is None else scores.masked_fill(mask, -torch.inf)
    allowed[:, 0] = -torch.inf
    return allowed


def top_k(scores: Float[Tensor, "B V"], k: int) -> TopK:
    """Best first; items of score -inf are not returned (row 0 in their place)."""
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    return TopK(items=best.indices.masked_fill(best.values == -torch.inf, 0), scores=best.values)


def target_ranks(scores: Float[Tensor, "B V"], target: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Rank of each target, 1 is best: 1 + items scored higher + other items scored equal.

    Scores of -inf are items that may not be returned; a target among them gets `NOT_RETURNED`, a miss at any cutoff.
    """
    own = scores.gather(1, target[:, None])
    if torch.isnan(scores[:, 1:]).any():
        row = int(torch.isnan(scores[:, 1:]).any(dim=1).nonzero()[0, 0])
        raise DataError(f"ranking: the model's scores hold NaN (first in row {row} of the batch); it has diverged.")
    ranks = (scores >= own).sum(dim=1)
    return torch.where(own.squeeze(1) == -torch.inf, NOT_RETURNED, ranks)
