"""The second stage: a retriever's best items in an order to which a ranker adds."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys.batches import Histories
from recsys.contracts import Ranker
from recsys.ranking import top_k

PAIRS_AT_ONCE = 1 << 21
"""Candidates times events that a ranker compares at a time."""
SHORTEST = 5
"""Events that a history should have for a ranker of long histories to be asked."""


@dataclass(frozen=True)
class Reranker:
    """Each row's best `candidates` by score + `weight` (ranker's logit + log_share), None: by the second term alone.

    A ranker that told clicks from negatives drawn with probability q has learned log p(item | user) / q(item), and
    among a retriever's items p alone is wanted. `log_share` [V] puts q back where it is popularity; where it is the
    retriever's softmax, score + logit does it, and `log_share` is zero. Where it reads fewer than `shortest`
    events the retriever's order stays.
    """

    ranker: Ranker
    candidates: int
    log_share: Float[Tensor, " V"]
    weight: float | None = None
    shortest: int = SHORTEST

    @torch.no_grad()
    def reordered(self, histories: Histories, scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """New scores of the candidates, -inf elsewhere; in the first stage's `scores`, -inf is excluded."""
        best = top_k(scores, self.candidates)
        second = self.second_scores(histories, best.items)
        both = self.weighed(best.scores, second, histories.lengths)
        return torch.full_like(scores, -torch.inf).scatter(1, best.items, both)

    @torch.no_grad()
    def second_scores(self, histories: Histories, items: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """The ranker's logits of these items and the logarithms of their shares."""
        read = histories.latest(self.ranker.max_len)
        step = max(1, PAIRS_AT_ONCE // max(1, items.shape[1] * read.items.shape[1]))
        parts = [slice(first, first + step) for first in range(0, len(items), step)]
        logits = torch.cat([self.ranker.score(read.rows(part), items[part]) for part in parts])
        return logits.to(self.log_share.dtype) + self.log_share[items]

    def weighed(
        self, first: Float[Tensor, "B C"], second: Float[Tensor, "B C"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C"]:
        """What both stages say together after so many events; what the first excludes (-inf) stays excluded."""
        both = second if self.weight is None else first + self.weight * second
        asked = lengths.clamp(max=self.ranker.max_len) >= self.shortest
        return torch.where(asked[:, None], both, first).masked_fill(first == -torch.inf, -torch.inf)
