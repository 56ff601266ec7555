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
        if known.all():
            return self._products(batch)
        scores = self.no_history.expand(len(known), -1).clone()
        if known.any():
            scores[known] = self._products(batch.rows(known)).to(scores.dtype)
        return scores

    def _products(self, batch: Histories) -> Float[Tensor, "B V"]:
        """In the item vectors' precision even under autocast, whose narrow numbers would tie."""
        vectors = self.model.encode(batch).to(self.item_vectors.dtype)
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors @ self.item_vectors.T


@dataclass(frozen=True)
class FullRanking:
    """A `Recommender` that scores the whole catalogue: the reference for every index and service."""

    scorer: CatalogScorer

    def recommend(self, batch: Histories, k: int, mask: ItemMask | None) -> TopK:
        """The k best allowed items, padding never among them."""
        return top_k(allowed_scores(self.scorer.scores(batch), mask), k)


def without_items(scores: Float[Tensor, "B V"], excluded: Int[Tensor, "B E"]) -> Float[Tensor, "B V"]:
    """A copy with -inf at padding and at each row's `excluded` items."""
    allowed = scores.scatter(1, excluded, -torch.inf)
    allowed[:, 0] = -torch.inf
    return allowed


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
    spoiled = scores[:, 1:].amax(dim=1).isnan()
    if spoiled.any():
        row = int(spoiled.nonzero()[0, 0])
        raise DataError(f"ranking: the model's scores hold NaN (first in row {row} of the batch); it has diverged.")
    ranks = (scores >= own).sum(dim=1)
    return torch.where(own.squeeze(1) == -torch.inf, NOT_RETURNED, ranks)
