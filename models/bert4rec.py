"""BERT4Rec: bidirectional encoder trained by the cloze task (Sun et al., CIKM 2019, arXiv:1904.06690).

Reference: FeiSun/BERT4Rec (TensorFlow); Hugging Face `BertForMaskedLM` is the parity oracle of the network.
Deviates on purpose:
  - masks are drawn anew for every batch, not once before training;
  - the share of batch rows that mask only the last item is a setting (official data: 1 window in 11);
  - the padding and mask rows are no classes of the softmax, and no token-type table is kept (it is one constant);
  - optionally, the other layouts of `recsys/layers.py`, and items of texts (`recsys.item_vectors`);
  - no dropout on attention weights.
As in the official code, and unlike the paper's formula: LayerNorm in the head, tied output table with a bias, exact
number of masks, and every chosen position becomes [mask].
Dimensions: B batch, L positions, D width, E = D + 1 with the bias, V item rows (row 0 is padding; row V is the
private [mask]).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys.batches import Histories, TrainBatch, WindowShape
from recsys.errors import ConfigError
from recsys.item_vectors import ItemsConfig, learn_texts, make_items
from recsys.layers import BlockStack, Dropout, KeyValues, Norm, init_weights
from recsys.losses import CatalogLoss, LossConfig
from recsys.sequences import IntArray, Windows
from recsys.time_buckets import interval_buckets

NORM_EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class BERT4RecConfig(ItemsConfig):
    """Architecture, cloze task and loss; `max_len` counts the [mask] that asks for the next item."""

    norm: Norm = "post"
    mask_share: float = 0.2
    last_item_share: float = 0.1
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loss.check(self.num_items)
        if self.max_len < 2:
            raise ConfigError(f"BERT4RecConfig: max_len={self.max_len} leaves no room for an event and the mask.")
        if not (0 < self.mask_share < 1 and 0 <= self.last_item_share <= 1):
            raise ConfigError(
                f"BERT4RecConfig: mask_share={self.mask_share} must lie in (0, 1), "
                f"last_item_share={self.last_item_share} in [0, 1]."
            )


class BERT4Rec(nn.Module):
    """A bidirectional transformer that fills in masked items; the next item is a mask at the end."""

    weighs_events = True

    def __init__(self, config: BERT4RecConfig) -> None:
        super().__init__()
        self.config = config
        self.max_len = config.max_len - 1
        self.mask_row = config.num_items + 1
        self.items = make_items(config, private_row=True)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_len, config.embedding_dim) if learned else None
        self.intervals = nn.Embedding(config.time_buckets, config.embedding_dim) if config.time_buckets else None
        self.embedding_norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.blocks = BlockStack(config, NORM_EPS)
        self.head = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.head_norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPS)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items + 1))
        self.catalog_loss = CatalogLoss(config.loss, config.num_items)
        self.apply(init_weights)
        if isinstance(self.items, nn.Embedding):
            nn.init.zeros_(self.items.weight[0])

    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """Takes the text vectors of all item rows, and the training events of each, [V]; the weights hold both."""
        learn_texts(self.items, vectors, counts)

    def hidden_states(self, tokens: Int[Tensor, "B L"], timestamps: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """State at each position, from both sides; padding is never looked at, nor is the time of a [mask]."""
        return self.blocks(self._embedded(tokens, timestamps), key_mask=(tokens != 0)[:, None, None, :])

    def remember(
        self, tokens: Int[Tensor, "B L"], timestamps: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L D"], tuple[KeyValues, ...]]:
        """State at each position, and every block's keys and values."""
        return self.blocks.prefill(self._embedded(tokens, timestamps), key_mask=(tokens != 0)[:, None, None, :])

    def _embedded(self, tokens: Int[Tensor, "B L"], timestamps: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        x = self.items(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        if self.intervals is not None:
            buckets = interval_buckets(timestamps, self.config.time_buckets)
            x = x + self.intervals(buckets.masked_fill(tokens == self.mask_row, 0))
        return self.dropout(self.embedding_norm(x))

    def predictions(self, states: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D+1"]:
        """The head: a vector whose inner product with an item's vector is that item's logit, bias included."""
        z = self.head_norm(F.gelu(self.head(states)))
        scored = torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)
        return scored if self.config.temperature == 1 else scored / self.config.temperature

    def item_vectors(self, rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "V E"]:
        """Embeddings with the output bias as a last dimension, of all items or of some; the mask's row stays inside."""
        if rows is None:
            return torch.cat([self.items.weight[: self.mask_row], self.item_bias[:, None]], dim=1)
        return torch.cat([self.items(rows), self.item_bias[rows, None]], dim=1)

    def encode(self, batch: Histories) -> Float[Tensor, "B E"]:
        """Prediction at a [mask] appended to each history."""
        return self.predictions(self.remember_last(batch)[0])

    def remember_last(self, batch: Histories) -> tuple[Float[Tensor, "B D"], tuple[KeyValues, ...]]:
        """State of a [mask] appended to each history, and every block's keys and values, the mask's among them."""
        tokens = F.pad(batch.items, (0, 1)).scatter(1, batch.lengths[:, None].long(), self.mask_row)
        x = self._embedded(tokens, F.pad(batch.timestamps, (0, 1)))
        return self.blocks.last(x, batch.lengths + 1)

    @property
    def window(self) -> WindowShape:
        """As long as the position table, side by side."""
        return WindowShape(length=self.config.max_len, overlap=0)

    @property
    def reads_times(self) -> bool:
        """Whether vectors depend on timestamps."""
        return self.intervals is not None

    def learn_popularity(self, counts: IntArray) -> None:
        """For negatives by popularity: training events of each item row, [V]."""
        self.catalog_loss.learn_popularity(counts)

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """Chosen items become [mask] and are the targets."""
        masked = cloze_mask(windows.lengths.astype(np.int64), self.config.mask_share, self.config.last_item_share, rng)
        batch = TrainBatch(
            history=torch.from_numpy(np.where(masked, self.mask_row, windows.items)),
            timestamps=torch.from_numpy(windows.timestamps),
            target=torch.from_numpy(np.where(masked, windows.items, 0)),
            lengths=torch.from_numpy(windows.lengths),
            negatives=self.catalog_loss.negatives(windows.items, rng),
        )
        return batch.weighed(windows.weights, rng)

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """The configured loss at masked positions; the head runs on those alone."""
        masked = batch.target != 0
        states = self.hidden_states(batch.history, batch.timestamps)[masked]
        negatives = None if batch.negatives is None else batch.negatives.at(masked)
        return self.catalog_loss(self.predictions(states), self.item_vectors, batch.target[masked], negatives)


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
