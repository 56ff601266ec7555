"""From scores to ranks and lists. Ties are pessimistic: among equal scores the target comes last."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys.batches import Histories
from recsys.contracts import CatalogScorer, ItemMask, Ranker, Retriever, TopK
from recsys.errors import DataError

NOT_RETURNED = 2**31 - 1
PAIRS_AT_ONCE = 1 << 21
"""Candidates times events that a ranker compares at a time."""


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
class Reranker:
    """The second stage: each row's best `candidates` in the ranker's order; no other item is returned.

    `log_share` [V] is added to scores. A ranker that told clicks from negatives drawn by popularity has learned
    log p(item | user) / q(item), and among a retriever's items the first half alone is wanted: log q goes back in.
    """

    ranker: Ranker
    candidates: int
    log_share: Float[Tensor, " V"]

    @torch.no_grad()
    def reordered(self, histories: Histories, scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The ranker's scores of what it was given, -inf elsewhere; in the first stage's `scores`, -inf is excluded."""
        best = top_k(scores, self.candidates)
        read = histories.latest(self.ranker.max_len)
        step = max(1, PAIRS_AT_ONCE // max(1, best.items.shape[1] * read.items.shape[1]))
        parts = [slice(first, first + step) for first in range(0, len(scores), step)]
        own = torch.cat([self.ranker.score(read.rows(part), best.items[part]) for part in parts])
        own = own.to(scores.dtype) + self.log_share[best.items]
        own = own.masked_fill(best.scores == -torch.inf, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(1, best.items, own)


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
