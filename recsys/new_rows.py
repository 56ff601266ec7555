"""Rows that a trained item table gets for items it has not learned: what a warm start gives to new items.

    with a text     v = mean + (x - mean x) W,  W from a ridge regression of trained rows on their items' texts
    without one     v = mean of the trained rows

The ridge is the one whose predictions of left-out rows are best: where texts say nothing of rows it is so large that v
is the mean. Dimensions: N trained rows, M new ones, F width of text vectors, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

RIDGES = tuple(10.0**exponent for exponent in range(-6, 5))
"""Of the texts' largest variance."""


def rows_from_texts(
    texts: Float[Tensor, "N F"], rows: Float[Tensor, "N D"], new_texts: Float[Tensor, "M F"]
) -> Float[Tensor, "M D"]:
    """The expected rows of new texts."""
    mean_text, mean_row = texts.double().mean(dim=0), rows.double().mean(dim=0)
    centred, wanted = texts.double() - mean_text, rows.double() - mean_row
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    known, aims = centred @ directions, directions.T @ (centred.T @ wanted)
    largest = variances[-1].clamp(min=torch.finfo(torch.float64).eps)
    scales = [1 / (variances.clamp(min=0) + ridge * largest) for ridge in RIDGES]
    errors = torch.stack([_left_out_error(known, aims, wanted, scale) for scale in scales])
    best = scales[int(errors.argmin())]
    found = mean_row + (new_texts.double() - mean_text) @ directions @ (best[:, None] * aims)
    return found.to(rows.dtype)


def _left_out_error(
    known: Float[Tensor, "N F"], aims: Float[Tensor, "F D"], wanted: Float[Tensor, "N D"], scale: Float[Tensor, " F"]
) -> Float[Tensor, ""]:
    """Squared error of each row by a regression on all others: the residual over 1 - leverage, its mean's included."""
    leverage = (known.square() * scale).sum(dim=1) + 1 / len(known)
    residual = wanted - known @ (scale[:, None] * aims)
    return (residual / (1 - leverage).clamp(min=1e-9)[:, None]).square().sum()
