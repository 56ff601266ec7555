"""Lite-LLM4Rec: a language model over items that answers by a projection, not by decoding (arXiv:2402.09543).

    item's text -> item LLM -> c_i [F], kept by content -> A c_i [D]     (a hybrid item has g_i id_i beside it)
    history     -> one vector an item -> recommendation LLM -> u [D]     (n events are n positions, not n times tokens)
    scores      =  u W' + b over the catalogue, in one product           (no beam, no token)

    head    W                                          an item never seen in training
    free    learned, with b                            as it was drawn: useless
    tied    the items' vectors as histories have them  its text
    hybrid  the same, of text and id (`GatedItems`)    its text

    item LLM  frozen  encoded once for all
              lora    adapters are trained; the items of a batch, targets included, are read anew, each once, the others
              joint   are as they were when the epoch began; all are read again before they are compared

Wang et al., IJCNLP-AACL 2025. The authors' code is not public; what the paper leaves open follows bytedance/HLLM in
kind. Deviates on purpose:
  - the recommendation LLM is causal, an encoder too, so that every event of a window teaches (the paper: one target);
  - by default it is a small decoder drawn at random, for that measured better than pretrained layers
    (docs/decisions/lite-llm4rec.md); its input has LayerNorm, as long as the words that pretrained layers are used to;
  - optionally items are compared by cosine (`cosine`), all but b.
Scores hold b as one more number of both vectors. Dimensions: B histories, L events, D width, V item rows (row 0 is
padding), F width of text vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from recsys.batches import Histories, TrainBatch, WindowShape, next_item_batch
from recsys.errors import ConfigError
from recsys.item_vectors import GatedItems, ItemsConfig, learn_texts, make_items
from recsys.language_models import ReadsTexts, ReadsVectors
from recsys.layers import BlockStack, Count, Dropout, KeyValues, Remembered, TransformerConfig, init_weights, last_valid
from recsys.losses import CatalogLoss, LossConfig
from recsys.pretrained import Pretrained
from recsys.sequences import IntArray, Windows
from recsys.text_items import TextControl, TextItems
from recsys.text_vectors import MAX_TOKENS, Pooling

NORM_EPS = 1e-6
ITEMS_AT_ONCE = 64
BLOCKS, MINILM = "blocks", "minilm"
ItemSource: TypeAlias = Callable[[Tensor], Tensor]
"""Vectors of item rows."""


@dataclass(frozen=True, kw_only=True)
class LiteLLM4RecConfig(TransformerConfig):
    """Item LLM, recommendation LLM, head. `backbone`: blocks of the sizes here, or pretrained layers of their own."""

    activation: Literal["relu", "gelu", "swiglu"] = "swiglu"
    positions: Literal["learned", "rotary", "none"] = "rotary"
    cosine: bool = False
    head: Literal["free", "tied", "hybrid"] = "hybrid"
    id_dropout: float = 0.1
    text_encoder: str | None = None
    text_revision: str | None = None
    text_pooling: Pooling = "mean"
    text_width: int = 384
    text_components: int = 0
    text_control: TextControl = "none"
    item_llm: Literal["frozen", "lora", "joint"] = "frozen"
    backbone: str = BLOCKS
    backbone_revision: str | None = None
    backbone_lora: bool = False
    lora_rank: int = 8
    gradient_checkpoints: bool = False
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.made_of  # noqa: B018 - checks the items' settings
        self.loss.check(self.num_items)
        if self.time_buckets:
            raise ConfigError(f"LiteLLM4RecConfig: time_buckets={self.time_buckets}, but it reads no times; set 0.")
        if self.lora_rank < 1:
            raise ConfigError(f"LiteLLM4RecConfig: lora_rank={self.lora_rank} must be at least 1.")
        if self.backbone == BLOCKS and (self.backbone_lora or self.backbone_revision is not None):
            raise ConfigError(
                "LiteLLM4RecConfig: backbone=blocks is trained from nothing; backbone_lora and backbone_revision "
                "belong to pretrained layers (backbone=minilm, a folder or a hub name)."
            )
        if self.item_llm != "frozen" and self.text_control != "none":
            raise ConfigError(
                f"LiteLLM4RecConfig: text_control={self.text_control} changes vectors that item_llm={self.item_llm} "
                "makes anew; set item_llm=frozen."
            )

    @property
    def made_of(self) -> ItemsConfig:
        """Items as histories have them."""
        return ItemsConfig(
            num_items=self.num_items,
            embedding_dim=self.embedding_dim,
            num_heads=self.num_heads,
            items="gated" if self.head == "hybrid" else "morec",
            text_width=self.text_width,
            text_components=self.text_components,
            id_dropout=self.id_dropout,
        )


class LiteLLM4Rec(nn.Module):
    """Adapter, recommendation LLM and head; of a trained item LLM its layers too."""

    def __init__(self, config: LiteLLM4RecConfig) -> None:
        super().__init__()
        self.config = config
        self.max_len = config.max_len
        self.items = make_items(config.made_of)
        own = config.backbone == BLOCKS
        learned = own and config.positions == "learned"
        self.positions = nn.Embedding(config.max_len, config.embedding_dim) if learned else None
        self.input_norm = nn.LayerNorm(config.embedding_dim, NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.blocks = BlockStack(config, NORM_EPS) if own else None
        self.head = nn.Linear(config.embedding_dim, config.num_items + 1) if config.head == "free" else None
        self.apply(init_weights)
        if isinstance(self.items, GatedItems):
            nn.init.zeros_(self.items.ids.weight[0])
        self.layers = None if own else pretrained_layers(config)
        if self.layers is not None:
            nn.init.constant_(self.input_norm.weight, self.layers.word_length)
        self.item_llm = None if config.item_llm == "frozen" else trained_item_llm(config)
        self.catalog_loss = CatalogLoss(config.loss, config.num_items)

    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """Takes the item LLM's vectors of all item rows and the training events of each, [V]; the weights hold both."""
        learn_texts(self.items, vectors, counts)

    @property
    def texts(self) -> TextItems:
        """The part of the items that is made of texts."""
        texts = self.items.texts if isinstance(self.items, GatedItems) else self.items
        assert isinstance(texts, TextItems)
        return texts

    @property
    def trains_texts(self) -> bool:
        """Whether the item LLM is trained."""
        return self.item_llm is not None

    def learn_tokens(self, tokens: Int[Tensor, "V T"], counts: Int[Tensor, " V"]) -> None:
        """Takes what a trained item LLM reads of each item row."""
        assert self.item_llm is not None
        self.item_llm.learn_tokens(tokens, counts)

    @torch.no_grad()
    def refresh_items(self) -> None:
        """Reads all texts with the item LLM as it is, those of like length together; nothing to do for a frozen one."""
        if self.item_llm is None:
            return
        training = self.item_llm.training
        self.item_llm.eval()
        for rows in torch.split(self.item_llm.counts.argsort(), ITEMS_AT_ONCE):
            features = self.texts.features
            features[rows] = self.texts.features_of(self.item_llm(rows)).to(features)
        self.item_llm.train(training)

    def hidden_states(self, history: Int[Tensor, "B L"], _timestamps: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """State after each event; when it came makes no difference."""
        return self._states(self.items(history))

    def _states(self, vectors: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Padding is on the right, so a causal mask alone hides it."""
        x = self._input(vectors)
        if self.blocks is not None:
            return self.blocks(x, causal=True)
        assert self.layers is not None
        return self.layers(x)

    def _input(self, vectors: Float[Tensor, "B L D"], first: Count = 0) -> Float[Tensor, "B L D"]:
        """What the recommendation LLM reads at positions `first`, `first` + 1, ..."""
        if self.positions is not None:
            vectors = vectors + self.positions.weight[first : first + vectors.shape[1]]
        return self.dropout(self.input_norm(vectors))

    def prefix_vectors(self, items: Int[Tensor, "B L"], timestamps: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Prediction after each event."""
        return self.predictions(self.hidden_states(items, timestamps))

    def encode(self, batch: Histories) -> Float[Tensor, "B D"]:
        """Prediction after each history's last event."""
        if self.blocks is None:
            states = self.hidden_states(batch.items, batch.timestamps)
            return self.predictions(last_valid(states, batch.lengths).squeeze(1))
        return self.predictions(self._remember_last(batch)[0])

    def _remember_last(self, batch: Histories) -> tuple[Float[Tensor, "B D"], tuple[KeyValues, ...]]:
        assert self.blocks is not None
        return self.blocks.last(self._input(self.items(batch.items)), batch.lengths, causal=True)

    def predictions(self, states: Float[Tensor, "*N D"]) -> Float[Tensor, "*N W"]:
        """Vectors whose inner product with an item's is its score; a free head's have a 1 for b."""
        vectors = (F.normalize(states, dim=-1) if self.config.cosine else states) / self.config.temperature
        return vectors if self.head is None else torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=-1)

    def item_vectors(self, rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "N W"]:
        """Rows of the head, all or some."""
        return self._projections(self.items, rows)

    def _projections(self, items: ItemSource, rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "N W"]:
        rows = torch.arange(self.config.num_items + 1, device=self.texts.features.device) if rows is None else rows
        vectors = items(rows) if self.head is None else self.head.weight[rows]
        if self.config.cosine:
            vectors = F.normalize(vectors, dim=-1)
        return vectors if self.head is None else torch.cat([vectors, self.head.bias[rows, None]], dim=1)

    @property
    def window(self) -> WindowShape:
        """One event more than the model reads: the last is target only."""
        return WindowShape(length=self.max_len + 1, overlap=1)

    @property
    def reads_times(self) -> bool:
        """It knows the order alone."""
        return False

    def learn_popularity(self, counts: IntArray) -> None:
        """For negatives by popularity: training events of each item row, [V]."""
        self.catalog_loss.learn_popularity(counts)

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """Every event predicts the next."""
        negatives = self.catalog_loss.negatives(windows.items, rng)
        return next_item_batch(windows, None if negatives is None else negatives.after_first())

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """The configured loss at every position."""
        valid = batch.target != 0
        items = self.items if self.item_llm is None else self._items_read_anew(batch)
        states = self._states(items(batch.history))[valid]
        negatives = None if batch.negatives is None else batch.negatives.at(valid)
        projections = partial(self._projections, items)
        return self.catalog_loss(self.predictions(states), projections, batch.target[valid], negatives)

    def _items_read_anew(self, batch: TrainBatch) -> ItemSource:
        """All items, of which those of the batch come from the item LLM as it is, each read once."""
        assert self.item_llm is not None
        rows = torch.unique(torch.cat([batch.history, batch.target]))
        rows = rows[rows != 0]
        kept = self.texts.features
        features = kept.index_put((rows,), self.texts.features_of(self.item_llm(rows)).to(kept))
        name = "features" if self.items is self.texts else "texts.features"
        table = functional_call(self.items, {name: features}, (torch.arange(len(kept), device=kept.device),))
        return lambda chosen: table[chosen]

    @property
    def goes_on(self) -> bool:
        """With blocks of our own there is something to remember; pretrained layers begin anew."""
        return self.blocks is not None and self.config.num_blocks > 0

    def encode_and_remember(self, batch: Histories) -> tuple[Float[Tensor, "1 B W"], Remembered]:
        """The vector of `encode`, and each block's keys and values."""
        state, memory = self._remember_last(batch)
        return self.predictions(state)[None], Remembered(memory, batch.timestamps[:, -1])

    def encode_next(
        self, past: Remembered, event: Int[Tensor, " B"], timestamp: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "1 B W"], Remembered]:
        """One more event: the vector that `encode` would give for the longer history."""
        assert self.blocks is not None
        if past.length >= self.max_len:
            raise ValueError(f"the window of max_len={self.max_len} events is full; encode its last events anew")
        x, memory = self.blocks.step(self._input(self.items(event[:, None]), past.length), past.memory)
        return self.predictions(x.squeeze(1))[None], Remembered(memory, timestamp)


def pretrained_layers(config: LiteLLM4RecConfig) -> ReadsVectors:
    """The backbone, checked to have the config's width."""
    source = None if config.backbone == MINILM else config.backbone
    pretrained = Pretrained(source, config.backbone_revision, settings=("model.backbone", "model.backbone_revision"))
    layers = ReadsVectors(pretrained, config.dropout, config.lora_rank if config.backbone_lora else 0)
    if layers.width != config.embedding_dim:
        raise ConfigError(
            f"LiteLLM4RecConfig: embedding_dim={config.embedding_dim}, and the layers of {pretrained.place} are "
            f"{layers.width} wide; set model.embedding_dim={layers.width}."
        )
    if layers.longest is not None and layers.longest < config.max_len:
        raise ConfigError(
            f"LiteLLM4RecConfig: max_len={config.max_len}, and {pretrained.place} knows {layers.longest} positions; "
            "set model.max_len to no more."
        )
    return layers


def trained_item_llm(config: LiteLLM4RecConfig) -> ReadsTexts:
    """The item LLM of regimes that train it."""
    return ReadsTexts(
        Pretrained(config.text_encoder, config.text_revision),
        config.num_items + 1,
        MAX_TOKENS,
        config.text_pooling,
        config.lora_rank if config.item_llm == "lora" else 0,
        config.gradient_checkpoints,
    )
