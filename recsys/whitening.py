"""Whitening of text vectors: principal components, each of the same variance, so that no direction drowns the others.

Vectors of frozen encoders lie in a narrow cone: their mean is long and a few directions hold most of their variance.
Dimensions: N texts, F width of text vectors, K components.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recsys.errors import DataError

SMALLEST_SHARE = 1e-8
"""Of the first component's variance; what has less is rounding."""


class Whitening(nn.Module):
    """z = (x - mean) matrix, fitted once and kept with the weights: covariance 1 / K, mean square length 1."""

    mean: Float[Tensor, " F"]
    matrix: Float[Tensor, "F K"]

    def __init__(self, text_width: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(text_width))
        self.register_buffer("matrix", torch.zeros(text_width, components))

    @property
    def fitted(self) -> bool:
        """Whether it has seen texts, its own or those of the run that this one began with."""
        return bool(self.matrix.any())

    def fit(self, vectors: Float[Tensor, "N F"]) -> None:
        """Of these texts; each component's largest entry is positive, so that its sign is no accident."""
        mean = vectors.double().mean(dim=0)
        centred = vectors.double() - mean
        components = self.matrix.shape[1]
        variances, directions = torch.linalg.eigh(centred.T @ centred / max(1, len(vectors)))
        variances, directions = variances.flip(0)[:components], directions.flip(1)[:, :components]
        if len(vectors) <= components or variances[-1] <= SMALLEST_SHARE * variances[0]:
            known = int((variances > SMALLEST_SHARE * variances[0]).sum())
            raise DataError(
                f"whitening: {components} components are wanted of {len(vectors)} texts of items with training events, "
                f"which span {min(known, len(vectors) - 1)}; set model.text_components (with items=frozen or "
                "initialised model.embedding_dim) to no more."
            )
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        self.mean.copy_(mean)
        self.matrix.copy_(directions * largest.sign() / (components * variances).sqrt())

    def forward(self, vectors: Float[Tensor, "*N F"]) -> Float[Tensor, "*N K"]:
        """Zeros, which are no text, stay zeros."""
        return (vectors - self.mean) @ self.matrix * vectors.any(dim=-1, keepdim=True)
