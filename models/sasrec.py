"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018, arXiv:1808.09781).

Reference: kang205/SASRec (TensorFlow); pmixer/SASRec.pytorch for the pre-LN variant.
Deviates on purpose:
  - full softmax over the catalogue in place of one sampled negative a position: the published binary loss costs
    21 to 61 % of NDCG@10 (Klenitskiy & Vasilev, RecSys 2023);
  - pre-LN blocks in place of normalising the query alone, with an output projection: better in pmixer's runs;
  - right padding, positions from the window's first event: prefixes keep their states, so keys can be cached;
  - optionally, distances in place of learned positions (`recency`: ALiBi, Press et al., ICLR 2022, steeper);
  - no dropout on attention weights, and no factor sqrt(D) on the input (items and positions start alike).
Dimensions: B batch, L positions, D width, V item rows (row 0 is padding).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys.batches import Histories, TrainBatch, WindowShape, next_item_batch
from recsys.errors import ConfigError
from recsys.layers import BlockConfig, BlockStack, KeyValues, check_transformer, init_weights, last_valid
from recsys.losses import next_item_cross_entropy
from recsys.sequences import Windows


@dataclass(frozen=True, kw_only=True)
class SASRecConfig:
    """Architecture; `num_items` comes from the catalogue.

    `recency` above 0 puts a penalty on attention by distance (its steepest slope) in place of learned positions.
    """

    num_items: int
    max_len: int = 200
    embedding_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    ffn_dim: int = 256
    dropout: float = 0.2
    recency: float = 0.0

    def __post_init__(self) -> None:
        check_transformer(self)
        if self.max_len < 1:
            raise ConfigError(f"SASRecConfig: max_len={self.max_len} leaves no history; it must be at least 1.")


@dataclass(frozen=True)
class SASRecState:
    """Cached keys and values of a window of `length` events, one entry a block."""

    memory: tuple[KeyValues, ...]
    length: int


class SASRec(nn.Module):
    """A causal transformer over item embeddings, tied with the output table."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.max_len = config.max_len
        block = BlockConfig(
            embedding_dim=config.embedding_dim,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            dropout=config.dropout,
            activation="relu",
            norm_first=True,
            norm_eps=1e-8,
            recency=config.recency,
        )
        self.items = nn.Embedding(config.num_items + 1, config.embedding_dim, padding_idx=0)
        self.positions = None if config.recency else nn.Embedding(config.max_len, config.embedding_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = BlockStack(block, config.num_blocks)
        self.norm = nn.LayerNorm(config.embedding_dim, eps=block.norm_eps)
        self.apply(init_weights)
        with torch.no_grad():
            self.items.weight[0].zero_()

    def hidden_states(self, history: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """State after each event. Padding is on the right, so a causal mask alone hides it."""
        return self.norm(self.blocks(self.dropout(self._embedded(history)), causal=True))

    def _embedded(self, items: Int[Tensor, "B L"], first: int = 0) -> Float[Tensor, "B L D"]:
        """Items at positions `first`, `first` + 1, ..."""
        x = self.items(items)
        return x if self.positions is None else x + self.positions.weight[first : first + items.shape[1]]

    def encode(self, batch: Histories) -> Float[Tensor, "B D"]:
        """State after each history's last event."""
        return last_valid(self.hidden_states(batch.items), batch.lengths)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The embedding table itself."""
        return self.items.weight

    @property
    def window(self) -> WindowShape:
        """One event more than the model reads: the last is target only."""
        return WindowShape(length=self.max_len + 1, overlap=1)

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:  # noqa: ARG002 - nothing random
        """Every event predicts the next."""
        return next_item_batch(windows)

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """Full cross-entropy at every position."""
        return next_item_cross_entropy(self.hidden_states(batch.history), self.item_vectors(), batch.target)

    def prefill(self, history: Int[Tensor, "B L"]) -> SASRecState:
        """Keys and values of histories of one common length (no padding)."""
        _, memory = self.blocks.prefill(self._embedded(history))
        return SASRecState(memory, history.shape[1])

    def step(self, state: SASRecState, event: Int[Tensor, " B"]) -> tuple[SASRecState, Float[Tensor, "B D"]]:
        """One more event: the new state, and the vector `encode` would give for the longer history."""
        if state.length >= self.max_len:
            raise ValueError(f"the window of max_len={self.max_len} events is full; prefill its last events again")
        x, memory = self.blocks.step(self._embedded(event[:, None], state.length), state.memory)
        return SASRecState(memory, state.length + 1), self.norm(x).squeeze(1)
