"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018, arXiv:1808.09781).

Reference: kang205/SASRec (TensorFlow); pmixer/SASRec.pytorch for the pre-LN variant.
Deviates on purpose:
  - full softmax over the catalogue in place of one sampled negative a position: the published binary loss costs
    21 to 61 % of NDCG@10 (Klenitskiy & Vasilev, RecSys 2023);
  - pre-LN blocks with an output projection: better in pmixer's runs. `norm="both"` is nearer to the release, whose
    sum starts from the normalised state; there keys and values read the state as it is, here the normalised one;
  - right padding, positions from the window's first event: prefixes keep their states, so keys can be cached;
  - optionally, distances or rotations in place of learned positions (`recency`: ALiBi, Press et al., ICLR 2022,
    steeper), heads that may attend to nothing (`sink`), gates and SwiGLU (LiGR), intervals between events as input,
    LayerNorm of the input (`input_norm`, as RecBole and ReaRec), items made of texts or of ids and texts
    (`recsys.item_vectors`), compared by cosine (`cosine`: UniSRec), with the likeness of texts to the last event's
    added to the score (`likeness`);
  - no dropout on attention weights, and no factor sqrt(D) on the input (items and positions start alike).
Dimensions: B batch, L positions, D width, V item rows (row 0 is padding), E width of answers (D; with `likeness`,
D and the texts' K).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys.batches import Histories, TrainBatch, WindowShape, next_item_batch
from recsys.errors import ConfigError
from recsys.item_vectors import GatedItems, ItemsConfig, learn_texts, make_items
from recsys.layers import BlockStack, Count, Dropout, KeyValues, Remembered, init_weights
from recsys.losses import CatalogLoss, LossConfig
from recsys.sequences import IntArray, Windows
from recsys.time_buckets import interval_buckets

NORM_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class SASRecConfig(ItemsConfig):
    """Architecture and loss."""

    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    input_norm: bool = False
    cosine: bool = False
    likeness: float = 0.0
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.likeness and self.items != "gated":
            raise ConfigError(
                f"{type(self).__name__}: likeness={self.likeness} compares texts of items=gated, not {self.items}."
            )
        self.loss.check(self.num_items)


class SASRec(nn.Module):
    """A causal transformer over item embeddings, tied with the output table."""

    weighs_events = True

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.max_len = config.max_len
        self.items = make_items(config)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_len, config.embedding_dim) if learned else None
        self.intervals = nn.Embedding(config.time_buckets, config.embedding_dim) if config.time_buckets else None
        self.embedding_norm = nn.LayerNorm(config.embedding_dim, NORM_EPS) if config.input_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.blocks = BlockStack(config, NORM_EPS)
        self.catalog_loss = CatalogLoss(config.loss, config.num_items)
        self.apply(init_weights)
        if isinstance(self.items, nn.Embedding):
            nn.init.zeros_(self.items.weight[0])

    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """Takes the text vectors of all item rows, and the training events of each, [V]; the weights hold both."""
        learn_texts(self.items, vectors, counts)

    def hidden_states(self, history: Int[Tensor, "B L"], timestamps: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """State after each event. Padding is on the right, so a causal mask alone hides it."""
        return self.blocks(self._embedded(history, timestamps), causal=True)

    def _embedded(
        self, items: Int[Tensor, "B L"], timestamps: Int[Tensor, "B T"], first: Count = 0
    ) -> Float[Tensor, "B L D"]:
        """Events at positions `first`, `first` + 1, ...; `timestamps` may begin with earlier ones."""
        x = self.items(items)
        if self.positions is not None:
            x = x + self.positions.weight[first : first + items.shape[1]]
        if self.intervals is not None:
            buckets = interval_buckets(timestamps, self.config.time_buckets)
            x = x + self.intervals(buckets[:, -items.shape[1] :])
        return self.dropout(self.embedding_norm(x))

    def prefix_vectors(self, items: Int[Tensor, "B L"], timestamps: Int[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """Prediction after each event."""
        return self.answers(self.hidden_states(items, timestamps), items)

    def encode(self, batch: Histories) -> Float[Tensor, "B E"]:
        """Prediction after each history's last event."""
        return self.answers(self.remember_last(batch)[0], batch.last)

    def remember_last(self, batch: Histories) -> tuple[Float[Tensor, "B D"], tuple[KeyValues, ...]]:
        """State after each history's last event, and what later events need of the earlier ones."""
        return self.blocks.last(self._embedded(batch.items, batch.timestamps), batch.lengths, causal=True)

    def predictions(self, states: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Vectors whose inner product with an item's is its score: there is no head, only scale."""
        directions = F.normalize(states, dim=-1) if self.config.cosine else states
        return directions if self.config.temperature == 1 else directions / self.config.temperature

    def answers(self, states: Float[Tensor, "*N D"], last: Int[Tensor, "*N"]) -> Float[Tensor, "*N E"]:
        """Predictions, and beside them what the texts of the last events add to the scores of texts like them."""
        if not self.config.likeness:
            return self.predictions(states)
        return torch.cat([self.predictions(states), self.config.likeness * self._texts(last)], dim=-1)

    def _texts(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N K"]:
        """Directions of items' texts; zero where there is none."""
        assert isinstance(self.items, GatedItems)
        return F.normalize(self.items.texts.features[rows], dim=-1)

    def item_vectors(self, rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "V E"]:
        """What answers are compared with, of all items or some."""
        vectors = self._compared(rows)
        if not self.config.likeness:
            return vectors
        rows = torch.arange(len(vectors), device=vectors.device) if rows is None else rows
        return torch.cat([vectors, self._texts(rows)], dim=-1)

    def _compared(self, rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "V D"]:
        """The item table, or some rows of it; of length 1 where cosines are compared."""
        vectors = self.items.weight if rows is None else self.items(rows)
        return F.normalize(vectors, dim=-1) if self.config.cosine else vectors

    @property
    def window(self) -> WindowShape:
        """One event more than the model reads: the last is target only."""
        return WindowShape(length=self.max_len + 1, overlap=1)

    @property
    def reads_times(self) -> bool:
        """Whether vectors depend on timestamps."""
        return self.intervals is not None

    def learn_popularity(self, counts: IntArray) -> None:
        """For negatives by popularity: training events of each item row, [V]."""
        self.catalog_loss.learn_popularity(counts)

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """Every event predicts the next."""
        negatives = self.catalog_loss.negatives(windows.items, rng)
        batch = next_item_batch(windows, None if negatives is None else negatives.after_first())
        return batch.weighed(None if windows.weights is None else windows.weights[:, 1:], rng)

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """The configured loss at every position; without likeness, which states would learn to contradict."""
        valid = batch.target != 0
        states = self.hidden_states(batch.history, batch.timestamps)[valid]
        negatives = None if batch.negatives is None else batch.negatives.at(valid)
        return self.catalog_loss(self.predictions(states), self._compared, batch.target[valid], negatives)

    def remember(
        self, history: Int[Tensor, "B L"], timestamps: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L D"], tuple[KeyValues, ...]]:
        """State after each event, and every block's keys and values."""
        return self.blocks.prefill(self._embedded(history, timestamps), causal=True)

    @property
    def goes_on(self) -> bool:
        """With blocks there is something to remember."""
        return self.config.num_blocks > 0

    def encode_and_remember(self, batch: Histories) -> tuple[Float[Tensor, "1 B E"], Remembered]:
        """The vector of `encode`, and each block's keys and values."""
        state, memory = self.remember_last(batch)
        answer = self.answers(state, batch.last)
        return answer[None], Remembered(memory, batch.timestamps[:, -1])

    def encode_next(
        self, past: Remembered, event: Int[Tensor, " B"], timestamp: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "1 B E"], Remembered]:
        """One more event: the vector that `encode` would give for the longer history."""
        state, past = self.remember_next(past, event, timestamp)
        return self.answers(state, event)[None], past

    def remember_next(
        self, past: Remembered, event: Int[Tensor, " B"], timestamp: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D"], Remembered]:
        """The state that `remember_last` would give for the longer history."""
        if past.length >= self.max_len:
            raise ValueError(f"the window of max_len={self.max_len} events is full; encode its last events anew")
        timestamps = torch.stack([past.timestamp, timestamp], dim=1)
        x, memory = self.blocks.step(self._embedded(event[:, None], timestamps, past.length), past.memory)
        return x.squeeze(1), Remembered(memory, timestamp)
