"""Where item vectors come from: a learned table, texts, or both.

    table        v_i = id_i
    initialised  v_i = id_i, which starts from the whitened text vector and is trained freely
    gated        v_i = A(x_i) + g_i id_i,  g_i = sigmoid(a + b log n_i), and 0 where n_i = 0
    others       v_i = A(x_i), see `recsys.text_items`

n_i counts the item's training events, A is one linear map, a and b are learned. An item that no one has had yet is its
text alone. In training items pass for such ones with probability `id_dropout`, so that texts learn to stand alone.
A fresh gate lets half of the id through at `half_trusted` events.
Tables that start from texts: Harte et al., RecSys 2023 (principal components; here each has the same variance).
Dimensions: V item rows (row 0 is padding), W rows with a private one, F width of text vectors, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.layers import TransformerConfig
from recsys.sequences import IntArray
from recsys.text_items import TextControl, TextItems, whitened
from recsys.text_vectors import Pooling
from recsys.whitening import Whitening

ItemSource = Literal["table", "frozen", "morec", "unisrec", "initialised", "gated"]
TABLE_STD = 0.02
"""Of a fresh table's numbers (`recsys.layers.init_weights`)."""
STEEPNESS = 2.0
"""Slope of a fresh gate over the logarithm of the training events."""


@dataclass(frozen=True, kw_only=True)
class ItemsConfig(TransformerConfig):
    """Architecture, and what items are made of."""

    items: ItemSource = "table"
    text_encoder: str | None = None
    text_revision: str | None = None
    text_pooling: Pooling = "mean"
    text_width: int = 384
    text_components: int = 0
    text_control: TextControl = "none"
    id_dropout: float = 0.1
    half_trusted: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__
        for name, unset in (("text_control", "none"), ("text_components", 0)):
            if self.items == "table" and getattr(self, name) != unset:
                raise ConfigError(f"{where}: {name}={getattr(self, name)} needs items made of texts, not items=table.")
        if self.text_width < 1:
            raise ConfigError(f"{where}: text_width={self.text_width} must be at least 1.")
        if not 0 <= self.id_dropout < 1:
            raise ConfigError(f"{where}: id_dropout={self.id_dropout} must lie in [0, 1).")
        if not self.half_trusted > 0:
            raise ConfigError(f"{where}: half_trusted={self.half_trusted} must be above 0 training events.")
        if self.items in {"frozen", "initialised"} and self.text_components not in {0, self.embedding_dim}:
            raise ConfigError(
                f"{where}: items={self.items} are text vectors of width embedding_dim={self.embedding_dim}, not "
                f"text_components={self.text_components}; leave that at 0."
            )
        if not 0 <= self.components <= self.text_width:
            raise ConfigError(
                f"{where}: items={self.items} would need {self.components} components of text vectors of "
                f"text_width={self.text_width}; set text_components or embedding_dim to no more."
            )

    @property
    def components(self) -> int:
        """Of the whitened texts; 0 where they are used as the encoder gives them."""
        return self.embedding_dim if self.items in {"frozen", "initialised"} else self.text_components


class InitialisedItems(nn.Embedding):
    """A learned table whose described rows start from whitened text vectors, as long as fresh rows are."""

    def __init__(self, num_rows: int, text_width: int, embedding_dim: int) -> None:
        super().__init__(num_rows, embedding_dim, padding_idx=0)
        self.whitening = Whitening(text_width, embedding_dim)

    @torch.no_grad()
    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """Sets the rows of items with a text, but for those of a run that this one begins with."""
        if self.whitening.fitted:
            return
        start = TABLE_STD * self.embedding_dim**0.5 * whitened(vectors, counts, self.whitening)
        described = 1 + vectors[1:].any(dim=1).nonzero().squeeze(1)
        self.weight[described] = start[described]


class GatedItems(nn.Module):
    """Text, and as much of the id as the item's training events warrant."""

    counts: Float[Tensor, " V"]

    def __init__(self, config: ItemsConfig) -> None:
        super().__init__()
        self.ids = nn.Embedding(config.num_items + 1, config.embedding_dim, padding_idx=0)
        self.texts = TextItems(
            config.num_items, config.text_width, config.embedding_dim, "morec", config.text_components
        )
        self.gate_bias = nn.Parameter(torch.tensor(-STEEPNESS * math.log(config.half_trusted)))
        self.gate_slope = nn.Parameter(torch.tensor(STEEPNESS))
        self.id_dropout = config.id_dropout
        self.register_buffer("counts", torch.zeros(config.num_items + 1))

    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """Takes the text vectors of all item rows, and the training events of each, [V]."""
        self.texts.learn_texts(vectors, counts)
        self.counts.copy_(torch.from_numpy(counts))

    def gates(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """How much of the id an item's vector has."""
        known = self.counts[rows]
        gates = torch.sigmoid(self.gate_bias + self.gate_slope * known.clamp(min=1).log()) * (known > 0)
        if not (self.training and self.id_dropout):
            return gates
        return gates * (torch.rand_like(gates) >= self.id_dropout)

    def forward(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Vectors of some items; padding's is zero."""
        return self.texts(rows) + self.gates(rows)[..., None] * self.ids(rows)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        """Vectors of all items."""
        return self(torch.arange(len(self.counts), device=self.counts.device))


class WithPrivateRow(nn.Module):
    """Items and one row behind them that is none, such as a mask."""

    def __init__(self, items: "TextItems | GatedItems", row: int, embedding_dim: int) -> None:
        super().__init__()
        self.items, self.row = items, row
        self.private = nn.Parameter(TABLE_STD * torch.randn(embedding_dim))

    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """The items'."""
        self.items.learn_texts(vectors, counts)

    def forward(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Vectors of items, and the private one where its row stands."""
        is_private = rows == self.row
        return torch.where(is_private[..., None], self.private, self.items(rows.masked_fill(is_private, 0)))

    @property
    def weight(self) -> Float[Tensor, "W D"]:
        """Vectors of all items, the private one last."""
        return torch.cat([self.items.weight, self.private[None]])


ItemTable: TypeAlias = nn.Embedding | TextItems | GatedItems | WithPrivateRow
"""`items(rows)` and `items.weight`; row 0 is zero."""


def make_items(config: ItemsConfig, private_row: bool = False) -> ItemTable:
    """What the config asks for, with a row behind the items where wanted."""
    rows = config.num_items + 1 + private_row
    if config.items == "table":
        return nn.Embedding(rows, config.embedding_dim, padding_idx=0)
    if config.items == "initialised":
        return InitialisedItems(rows, config.text_width, config.embedding_dim)
    made = (
        GatedItems(config)
        if config.items == "gated"
        else TextItems(config.num_items, config.text_width, config.embedding_dim, config.items, config.components)
    )
    return WithPrivateRow(made, config.num_items + 1, config.embedding_dim) if private_row else made


def learn_texts(items: ItemTable, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
    """Gives items made of texts the vectors of these, and the training events of each item."""
    if not isinstance(items, InitialisedItems | TextItems | GatedItems | WithPrivateRow):
        raise TypeError("items=table has a learned vector for each item; it takes no texts")
    items.learn_texts(vectors, counts)
