"""Networks of rankers of long histories: the logit of a click, and DIN's score of an event for a candidate.

Dimensions: B histories, C candidates, L events, S semantic width, E width of a field, V vector width.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float
from torch import Tensor, nn

from recsys.event_fields import FieldTables, Seen

UNIT_WIDTH = 36
PRELU_START = 0.1


class ClickHead(nn.Module):
    """A logit from vectors side by side, each normalised first: products of small numbers would not be heard else."""

    def __init__(self, widths: list[int], hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        sizes = [sum(widths), *hidden]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.activations = nn.ModuleList(nn.PReLU(init=PRELU_START) for _ in hidden)
        self.logit = nn.Linear(sizes[-1], 1)

    def forward(self, parts: list[Float[Tensor, "B C V"]]) -> Float[Tensor, "B C"]:
        x = torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], dim=-1)
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = activation(layer(x))
        return self.logit(x).squeeze(-1)


class ActivationUnit(nn.Module):
    """DIN's score of a pair: a layer over [query; key; their difference; their product], and a logit.

    The layer is linear in what belongs to the query or the key alone, which is computed once for each of them.
    """

    def __init__(self, tables: FieldTables) -> None:
        super().__init__()
        self.semantic_width = tables.semantic_width
        self.inner = nn.Linear(4 * (tables.semantic_width + tables.time_width), UNIT_WIDTH)
        self.activation = nn.PReLU(init=PRELU_START)
        self.logit = nn.Linear(UNIT_WIDTH, 1, bias=False)  # a bias is nothing to the softmax

    def forward(
        self,
        queries: Float[Tensor, "B C S"],
        keys: Float[Tensor, "B L S"],
        times: list[Float[Tensor, "_ E"]],
        seen: Seen,
    ) -> Float[Tensor, "B C L"]:
        of_query, of_key, of_difference, of_product = self.inner.weight.view(UNIT_WIDTH, 4, -1).unbind(1)
        widths = [self.semantic_width, *(table.shape[1] for table in times)]
        alone, beside, paired = (
            torch.split(weight, widths, dim=1)
            for weight in (of_query + of_difference, of_key - of_difference, of_product)
        )
        x = keys[:, None] @ (queries[:, :, :, None] * paired[0].T)  # [B, C, L, unit]
        x = x + (queries @ alone[0].T + self.inner.bias)[:, :, None] + (keys @ beside[0].T)[:, None]
        for field, (table, rows) in enumerate(zip(times, seen.times(), strict=False), start=1):
            of_row = table @ beside[field].T + (table * table[0]) @ paired[field].T + table[0] @ alone[field].T
            x = x + F.embedding(rows, of_row)
        return self.logit(self.activation(x)).squeeze(-1)
