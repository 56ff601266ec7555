"""BERT4Rec: bidirectional encoder trained by the cloze task (Sun et al., CIKM 2019, arXiv:1904.06690).

Reference: FeiSun/BERT4Rec (TensorFlow); Hugging Face `BertForMaskedLM` is the parity oracle of the network.
Deviates on purpose:
  - masks are drawn anew for every batch, not once before training;
  - the share of batch rows that mask only the last item is a setting (official data: 1 window in 11);
  - the padding and mask rows are no classes of the softmax, and no token-type table is kept (it is one constant);
  - optionally, distances in place of learned positions (`recency`: ALiBi, Press et al., ICLR 2022, steeper);
  - no dropout on attention weights.
As in the official code, and unlike the paper's formula: LayerNorm in the head, tied output table with a bias, exact
number of masks, and every chosen position becomes [mask].
Dimensions: B batch, L positions, D width, E = D + 1 with the bias, V item rows (row 0 is padding; row V is the
private [mask]).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys.batches import Histories, TrainBatch, WindowShape
from recsys.errors import ConfigError
from recsys.layers import BlockConfig, BlockStack, check_transformer, init_weights, last_valid
from recsys.losses import next_item_cross_entropy
from recsys.sequences import IntArray, Windows


@dataclass(frozen=True, kw_only=True)
class BERT4RecConfig:
    """Architecture and cloze task; `max_len` counts the [mask] that asks for the next item.

    `recency` above 0 puts a penalty on attention by distance (its steepest slope) in place of learned positions.
    """

    num_items: int
    max_len: int = 200
    embedding_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    ffn_dim: int = 256
    dropout: float = 0.2
    mask_share: float = 0.2
    last_item_share: float = 0.1
    recency: float = 0.0

    def __post_init__(self) -> None:
        check_transformer(self)
        if self.max_len < 2:
            raise ConfigError(f"BERT4RecConfig: max_len={self.max_len} leaves no room for an event and the mask.")
        if not (0 < self.mask_share < 1 and 0 <= self.last_item_share <= 1):
            raise ConfigError(
                f"BERT4RecConfig: mask_share={self.mask_share} must lie in (0, 1), "
                f"last_item_share={self.last_item_share} in [0, 1]."
            )


class BERT4Rec(nn.Module):
    """A bidirectional transformer that fills in masked items; the next item is a mask at the end."""

    def __init__(self, config: BERT4RecConfig) -> None:
        super().__init__()
        self.config = config
        self.max_len = config.max_len - 1
        self.mask_row = config.num_items + 1
        block = BlockConfig(
            embedding_dim=config.embedding_dim,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            dropout=config.dropout,
            activation="gelu",
            norm_first=False,
            norm_eps=1e-12,
            recency=config.recency,
        )
        self.items = nn.Embedding(config.num_items + 2, config.embedding_dim, padding_idx=0)
        self.positions = None if config.recency else nn.Embedding(config.max_len, config.embedding_dim)
        self.embedding_norm = nn.LayerNorm(config.embedding_dim, eps=block.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = BlockStack(block, config.num_blocks)
        self.head = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.head_norm = nn.LayerNorm(config.embedding_dim, eps=block.norm_eps)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items + 1))
        self.apply(init_weights)
        with torch.no_grad():
            self.items.weight[0].zero_()

    def hidden_states(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """State at each position, from both sides; padding is never looked at."""
        key_mask = (tokens != 0)[:, None, None, :]
        x = self.items(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        return self.blocks(self.dropout(self.embedding_norm(x)), key_mask=key_mask)

    def predictions(self, states: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D+1"]:
        """The head: a vector whose inner product with an item's vector is that item's logit, bias included."""
        z = self.head_norm(F.gelu(self.head(states)))
        return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)

    def item_vectors(self) -> Float[Tensor, "V E"]:
        """Embeddings with the output bias as a last dimension; the mask's row stays inside."""
        return torch.cat([self.items.weight[: self.mask_row], self.item_bias[:, None]], dim=1)

    def encode(self, batch: Histories) -> Float[Tensor, "B E"]:
        """Prediction at a [mask] appended to each history."""
        tokens = F.pad(batch.items, (0, 1))
        tokens = tokens.scatter(1, batch.lengths[:, None].long(), self.mask_row)
        return self.predictions(last_valid(self.hidden_states(tokens), batch.lengths + 1))

    @property
    def window(self) -> WindowShape:
        """As long as the position table, side by side."""
        return WindowShape(length=self.config.max_len, overlap=0)

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """Chosen items become [mask] and are the targets."""
        masked = cloze_mask(windows.lengths.astype(np.int64), self.config.mask_share, self.config.last_item_share, rng)
        return TrainBatch(
            history=torch.from_numpy(np.where(masked, self.mask_row, windows.items)),
            target=torch.from_numpy(np.where(masked, windows.items, 0)),
            lengths=torch.from_numpy(windows.lengths),
        )

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """Cross-entropy over the items at masked positions; the head runs on those alone."""
        masked = batch.target != 0
        states = self.hidden_states(batch.history)[masked]
        return next_item_cross_entropy(self.predictions(states)[None], self.item_vectors(), batch.target[masked][None])


def cloze_mask(
    lengths: IntArray, mask_share: float, last_item_share: float, rng: np.random.Generator
) -> Bool[np.ndarray, "B L"]:
    """True at max(1, round(mask_share * length)) random places of each row, or at its last event alone.

    A row masks only its last event with probability `last_item_share`.
    """
    places = np.arange(int(lengths.max()))
    draws = rng.random((len(lengths), len(places)))
    draws[places >= lengths[:, None]] = np.inf
    rank = draws.argsort(axis=1).argsort(axis=1)
    chosen = rank < np.maximum(1, np.round(mask_share * lengths))[:, None]
    last_only = rng.random(len(lengths)) < last_item_share
    return np.where(last_only[:, None], places == lengths[:, None] - 1, chosen)
