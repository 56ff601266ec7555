"""Which words masked language modelling hides."""

import torch
from jaxtyping import Bool
from torch import Tensor


def masked_words(tokens: Bool[Tensor, "B T"], starts: Bool[Tensor, "B T"], share: float) -> Bool[Tensor, "B T"]:
    """Random whole words of together max(1, round(share * tokens)) tokens; one that would exceed that is passed over.

    `tokens`: which places may be masked at all; `starts`: where among them a word begins.
    """
    word = (starts.cumsum(dim=1) - 1).clamp(min=0)
    most = int(word.max()) + 1
    sizes = torch.zeros(len(word), most, dtype=torch.int64, device=word.device).scatter_add(1, word, tokens.long())
    budget = (share * tokens.sum(dim=1)).round().clamp(min=1)
    order = torch.rand(sizes.shape, device=word.device).argsort(dim=1)
    taken, used = torch.zeros_like(sizes, dtype=torch.bool), torch.zeros_like(budget)
    for place in range(most):
        column = order[:, place : place + 1]
        size = sizes.gather(1, column).squeeze(1)
        fits = (used + size <= budget) & (size > 0)
        used = used + size * fits
        taken.scatter_(1, column, fits[:, None])
    return taken.gather(1, word) & tokens
