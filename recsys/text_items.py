"""Item vectors made of frozen text vectors. Items without a text share one learned vector.

    frozen   x                                                  no adaptor: whitened text vectors as wide as the model
    morec    W x + b                                            MoRec (Yuan et al., SIGIR 2023), text frozen
    unisrec  sum_g gate_g(x) W_g (dropout(x) - b_g), 8 experts  UniSRec (Hou et al., KDD 2022)

Reference of the last: RUCAIBox/UniSRec at 05aa5cb, where gate = softmax(x G + noise * (softplus(x N) + .01)), the
noise in training alone. Where components are asked for, x is the whitened text vector (`recsys.whitening`).
Dimensions: V item rows (row 0 is padding), F width of text vectors, K of features, D width, G experts.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys.layers import Dropout
from recsys.sequences import IntArray
from recsys.whitening import Whitening

TextAdaptor = Literal["frozen", "morec", "unisrec"]
TextControl = Literal["none", "shuffled", "random"]
EXPERTS, EXPERT_DROPOUT, LEAST_NOISE = 8, 0.2, 1e-2


class TextItems(nn.Module):
    """In place of a table of learned vectors: `items(rows)` and `items.weight` as `torch.nn.Embedding` has them.

    `components` above 0: features are so many principal components of the texts, fitted on items with training events.
    """

    features: Float[Tensor, "V K"]

    def __init__(
        self, num_items: int, text_width: int, embedding_dim: int, adaptor: TextAdaptor, components: int = 0
    ) -> None:
        super().__init__()
        width = components or text_width
        self.whitening = Whitening(text_width, components) if components else None
        self.register_buffer("features", torch.zeros(num_items + 1, width))
        self.without_text = nn.Parameter(0.02 * torch.randn(embedding_dim))
        self.adaptor = make_adaptor(adaptor, width, embedding_dim)

    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """Takes the text vectors of all item rows, and the training events of each, [V]."""
        self.features.copy_(vectors if self.whitening is None else whitened(vectors, counts, self.whitening))

    def features_of(self, vectors: Float[Tensor, "N F"]) -> Float[Tensor, "N K"]:
        """What these text vectors are as features, after `learn_texts`."""
        return vectors if self.whitening is None else self.whitening(vectors)

    def forward(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Vectors of some items; padding's is zero."""
        return self.adapted(self.features[rows]) * (rows != 0)[..., None]

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        """Vectors of all items."""
        return torch.cat([torch.zeros_like(self.without_text)[None], self.adapted(self.features[1:])])

    def adapted(self, features: Float[Tensor, "*N K"]) -> Float[Tensor, "*N D"]:
        """Vectors of items with these features; zeros are no text, and adapted would have next to no direction."""
        described = features.any(dim=-1, keepdim=True)
        return torch.where(described, self.adaptor(features), self.without_text)


def make_adaptor(kind: TextAdaptor, width: int, embedding_dim: int) -> nn.Module:
    """From features to item vectors."""
    if kind == "unisrec":
        return WhiteningExperts(width, embedding_dim)
    return nn.Identity() if kind == "frozen" else nn.Linear(width, embedding_dim)


def whitened(vectors: Float[Tensor, "V F"], counts: IntArray, whitening: Whitening) -> Float[Tensor, "V K"]:
    """By the whitening, fitted first where it is new: on described items with training events, so on nothing later."""
    if not whitening.fitted:
        whitening.fit(vectors[torch.from_numpy(counts > 0) & vectors.any(dim=1)])
    return whitening(vectors)


class WhiteningExperts(nn.Module):
    """A mixture of parametric whitenings."""

    def __init__(self, text_width: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.shift = nn.Parameter(torch.zeros(EXPERTS, text_width))
        self.experts = nn.Linear(text_width, EXPERTS * embedding_dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(text_width, EXPERTS))
        self.gate_noise = nn.Parameter(torch.zeros(text_width, EXPERTS))
        self.dropout = Dropout(EXPERT_DROPOUT)

    def forward(self, x: Float[Tensor, "*N F"]) -> Float[Tensor, "*N D"]:
        """Each expert's whitened x, weighed by its gate."""
        logits = x @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(x @ self.gate_noise) + LEAST_NOISE)
        shares = logits.softmax(dim=-1)
        matrices = self.experts.weight.view(EXPERTS, self.embedding_dim, -1)
        whitened = torch.stack(
            [(self.dropout(x) - shift) @ matrix.T for shift, matrix in zip(self.shift, matrices, strict=True)], dim=-2
        )
        return (shares[..., None] * whitened).sum(dim=-2)


def controlled(vectors: Float[np.ndarray, "V F"], control: TextControl) -> Float[np.ndarray, "V F"]:
    """What tells whether meaning helps: items with a text get each other's vectors, or random ones as long."""
    if control == "none":
        return vectors
    described = np.flatnonzero(vectors.any(axis=1))
    rng, changed = np.random.default_rng(0), vectors.copy()
    if control == "shuffled":
        changed[described] = vectors[rng.permutation(described)]
        return changed
    drawn = rng.normal(size=(len(described), vectors.shape[1]))
    lengths = np.linalg.norm(vectors[described], axis=1) / np.linalg.norm(drawn, axis=1)
    changed[described] = drawn * lengths[:, None]
    return changed
