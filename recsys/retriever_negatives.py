"""Negatives from a retriever's own answers: a ranker that is told clicks from these learns what the retriever misses.

They are drawn from q = softmax(score), so the logit of a click becomes log p(item | user) / q(item): the retriever's
score plus that logit orders by p (`recsys.ranking.Reranker`). With popularity in the place of q the ranker would have
to learn again all that the retriever knows.
Dimensions: B windows, L events, P places a window, M negatives a place, N = B P, V item rows.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys.contracts import PrefixEncoder

SCORES_AT_ONCE = 1 << 22


class RetrieverNegatives:
    """Items that a causal retriever would answer at a place of a history, but for what comes there.

    With `repeats` false none that the window held by then either: negatives are what answers may hold, or a ranker
    would learn to tell what is known from what is new. (The window is all that is known of the user here.) Of times
    the retriever is told nothing, so it must not read them.
    """

    def __init__(self, retriever: PrefixEncoder, repeats: bool) -> None:
        self.retriever, self.repeats = retriever, repeats
        self.item_vectors = retriever.item_vectors().detach()

    @torch.no_grad()
    def draw(
        self, windows: Int[np.ndarray, "B L"], stops: Int[np.ndarray, "B P"], number: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "B P M"]:
        """`number` for each stop: the event before it is the target, the retriever answers after those before that.

        A user who knows all items gets known ones.
        """
        items = torch.from_numpy(windows)
        vectors = self._vectors(items, torch.from_numpy(stops) - 2).flatten(0, 1)
        rows, ends = np.repeat(np.arange(len(windows)), stops.shape[1]), torch.from_numpy(stops).flatten()
        chance = torch.from_numpy(rng.random((len(vectors), number)))
        step = max(1, SCORES_AT_ONCE // len(self.item_vectors))
        parts = [slice(first, first + step) for first in range(0, len(vectors), step)]
        drawn = [self._drawn(vectors[part], items[rows[part]], ends[part], chance[part]) for part in parts]
        return torch.cat(drawn).view(*stops.shape, number).numpy()

    def _drawn(
        self,
        vectors: Float[Tensor, "N D"],
        items: Int[Tensor, "N L"],
        ends: Int[Tensor, " N"],
        chance: Float[Tensor, "N M"],
    ) -> Int[Tensor, "N M"]:
        scores = vectors @ self.item_vectors.T
        before = ends[:, None] - torch.arange(items.shape[1])
        refused = items * ((before == 1) if self.repeats else (before > 0))
        scores.scatter_(1, refused, torch.finfo(scores.dtype).min)
        scores[:, 0] = -torch.inf
        up_to = scores.softmax(dim=1, dtype=torch.float64).cumsum(dim=1)
        return torch.searchsorted(up_to, chance * up_to[:, -1:], right=True)

    def _vectors(self, items: Int[Tensor, "B L"], places: Int[Tensor, "B P"]) -> Float[Tensor, "B P D"]:
        """Answers after the events up to each place, the place's own included.

        Windows longer than the retriever reads are read in pieces that share a half; a place belongs to the first
        that holds it, and so is answered from at least half of what the retriever reads.
        """
        length, half = self.retriever.max_len, max(1, self.retriever.max_len // 2)
        starts = (places - length + half).div(half, rounding_mode="floor").clamp(min=0) * half
        rows = torch.arange(len(items))[:, None].expand_as(places)
        vectors = self.item_vectors.new_zeros(*places.shape, self.item_vectors.shape[1])
        for start in np.unique(starts.numpy()).tolist():
            piece = items[:, start : start + length]
            answers = self.retriever.prefix_vectors(piece, torch.zeros_like(piece))
            own = starts == start
            vectors[own] = answers[rows[own], places[own] - start].to(vectors.dtype)
        return vectors
