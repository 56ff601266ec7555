"""Recformer: recommendation from the texts of items alone (Li et al., KDD 2023, arXiv:2305.13731).

A history is one text, the sentences of its items from the newest to the oldest; an item is the text of one sentence.
One bidirectional encoder reads both, and a score is the cosine of the two vectors divided by `temperature`. There is no
table of item ids: an item that nobody has clicked has a vector as soon as it has a text. See `recsys.history_texts`.

`objective: pretrain`  history and next item are found among the items of the batch, and masked words are filled in;
`objective: match`     the next item is found among a matrix of all item vectors, which no gradient changes: it is made
                       anew from the weights after each epoch (stage 1), or stays what it was (stage 2, `frozen`).

Reference: AaronHeee/RecFormer, which JiachengLi1995/Recformer (no code) points to. Deviates on purpose:
  - items of the batch with the same text are no negatives of each other; those of other processes are no negatives at
    all, nor those of other micro-batches (the release gathers over processes, not over micro-batches);
  - one target a training window of `max_len` + 1 events, and a window has its history from its own first event on: a
    user of more events has several windows (the release draws one target a user); the rate is not decayed by default;
  - items without any text stay, all with the vector of a bare [CLS] (the release drops them and their events);
  - a history to learn from has at least one item; the matrix that is validated is that of the weights beside it;
  - attributes without a text are left out, key and all; padding has no kind of its own, for nothing looks at it;
  - the mean of all tokens (`pooling: mean`) for encoders that were trained so, as MiniLM was;
  - no dropout on attention weights.
Dimensions: B rows, L events, V item rows (row 0 is padding), W tokens of a sentence, T tokens of a text, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recsys.batches import Histories, TrainBatch, WindowShape
from recsys.contracts import Tables
from recsys.errors import ConfigError
from recsys.history_texts import Text, history_text
from recsys.item_sentences import NO_TOKEN, ItemSentences
from recsys.layers import Dropout, TransformerConfig, init_weights
from recsys.losses import CatalogLoss, LossConfig, softmax_cross_entropy
from recsys.sequences import IntArray, Windows
from recsys.text_encoder import TextBlocks
from recsys.word_masks import masked_words

KINDS = 3
TOKENS_AT_ONCE = 8192
"""Of item sentences, when the matrix is made."""
KEPT, RANDOM = 0.1, 0.1
"""Of the tokens chosen for masked language modelling; the others become the mask."""


@dataclass(frozen=True, kw_only=True)
class RecformerConfig:
    """Texts, encoder and objective; the encoder's sizes are those of the checkpoint it starts from."""

    num_items: int
    max_len: int = 50
    max_tokens: int = 512
    attributes: tuple[str, ...] = ()
    max_attributes: int = 3
    attribute_tokens: int = 32
    text_encoder: str | None = None
    text_revision: str | None = None
    vocab_size: int = 30_522
    embedding_dim: int = 384
    num_blocks: int = 6
    num_heads: int = 12
    ffn_dim: int = 1536
    norm_eps: float = 1e-12
    attention_window: int = 0
    pooling: Literal["first", "mean"] = "first"
    dropout: float = 0.1
    token_kinds: bool = True
    item_places: bool = True
    train_words: bool = True
    objective: Literal["match", "pretrain"] = "match"
    item_matrix: Literal["refreshed", "frozen"] = "refreshed"
    temperature: float = 0.05
    word_weight: float = 0.1
    mask_share: float = 0.15
    rows_at_once: int = 0
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        self.loss.check(self.num_items)
        self.blocks  # noqa: B018 - checks the sizes
        least = {"max_len": 1, "max_tokens": 2, "max_attributes": 1, "attribute_tokens": 1, "vocab_size": 2}
        for name, smallest in (least | {"attention_window": 0, "rows_at_once": 0, "word_weight": 0}).items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"RecformerConfig: {name}={getattr(self, name)} must be at least {smallest}.")
        if self.attention_window % 2:
            raise ConfigError(f"RecformerConfig: attention_window={self.attention_window} must be even: half a side.")
        if not 0 < self.mask_share < 1:
            raise ConfigError(f"RecformerConfig: mask_share={self.mask_share} must lie in (0, 1).")
        if self.loss.kind == "bce":
            raise ConfigError(
                "RecformerConfig: loss.kind=bce needs an item that the user does not know; choose another."
            )

    @property
    def blocks(self) -> TransformerConfig:
        """The encoder's, as the shared layers want it."""
        return TransformerConfig(
            num_items=self.num_items,
            max_len=self.max_tokens,
            embedding_dim=self.embedding_dim,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            ffn_dim=self.ffn_dim,
            dropout=self.dropout,
            norm="post",
            activation="gelu",
            positions="none",
            temperature=self.temperature,
        )

    @property
    def sentence_tokens(self) -> int:
        """W: as long as a sentence can be."""
        return self.max_attributes * self.attribute_tokens


class Recformer(nn.Module):
    """One encoder for histories and items."""

    tokens: Int[Tensor, "V W"]
    token_kinds: Int[Tensor, "V W"]
    word_starts: Bool[Tensor, "V W"]
    first_with_text: Int[Tensor, " V"]
    special: Int[Tensor, " 3"]
    item_matrix: Float[Tensor, "V D"]

    def __init__(self, config: RecformerConfig) -> None:
        super().__init__()
        self.config = config
        self.max_len = config.max_len
        rows, width = config.num_items + 1, config.embedding_dim
        for name, dtype in (("tokens", torch.int32), ("token_kinds", torch.int8), ("word_starts", torch.bool)):
            self.register_buffer(name, torch.zeros(rows, config.sentence_tokens, dtype=dtype))
        self.register_buffer("first_with_text", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("special", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("item_matrix", torch.zeros(rows, width))
        self.words = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.max_tokens, width)
        self.kinds = nn.Embedding(KINDS if config.token_kinds else 1, width)
        self.places = nn.Embedding(config.max_len + 1, width) if config.item_places else None
        self.norm = nn.LayerNorm(width, config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.blocks = TextBlocks(config.blocks, config.norm_eps, config.attention_window)
        if config.objective == "pretrain" and config.word_weight:
            self.head = nn.Linear(width, width)
            self.head_norm = nn.LayerNorm(width, config.norm_eps)
            self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.catalog_loss = CatalogLoss(config.loss, config.num_items)
        self.up_to_date = torch.zeros(rows, dtype=torch.bool)  # item vectors that are those of the weights as they are
        self.apply(init_weights)
        self.words.weight.requires_grad_(config.train_words)
        self.register_load_state_dict_post_hook(_forget_items)  # type: ignore[no-untyped-call]

    def sentences(self) -> ItemSentences:
        """Tokens of all item rows."""
        return ItemSentences(self.tokens.numpy(), self.token_kinds.numpy(), self.word_starts.numpy())

    @property
    def tables(self) -> Tables:
        """The sentences that it was trained with; a service may bring longer ones."""
        return Tables(self.tokens, self.token_kinds)

    def learn_sentences(self, sentences: ItemSentences, special_tokens: tuple[int, int, int]) -> None:
        """Takes the tokens of all item rows, to be kept with the weights; item vectors of other tokens are dropped."""
        width, before = sentences.ids.shape[1], self.tokens.clone()
        if sentences.ids.shape[0] != len(self.tokens) or width > self.config.sentence_tokens:
            raise ValueError(
                f"sentences of shape {tuple(sentences.ids.shape)} for item rows {tuple(self.tokens.shape)}"
            )
        if int(sentences.ids.max()) >= self.config.vocab_size:
            raise ConfigError(
                f"model.vocab_size={self.config.vocab_size} is less than the tokeniser's ids; they go up to "
                f"{int(sentences.ids.max())}."
            )
        self.tokens.zero_()[:, :width] = torch.from_numpy(sentences.ids).to(self.tokens)
        self.token_kinds.fill_(NO_TOKEN)[:, :width] = torch.from_numpy(sentences.kinds).to(self.token_kinds)
        self.word_starts.zero_()[:, :width] = torch.from_numpy(sentences.starts).to(self.word_starts)
        self.special.copy_(torch.tensor(special_tokens))
        written = torch.where(self.token_kinds != NO_TOKEN, self.tokens, -1)
        _, same = torch.unique(written[1:], dim=0, return_inverse=True)
        rows = torch.arange(1, len(written), device=same.device)
        first = torch.full_like(rows, len(written)).scatter_reduce(0, same, rows, "amin")
        self.first_with_text[1:] = first[same]
        if not torch.equal(before, self.tokens):
            self.item_matrix.zero_()

    def keep_items(self, tokens: Int[Tensor, "N W"], kinds: Int[Tensor, "N W"], matrix: Float[Tensor, "N D"]) -> None:
        """Takes vectors that these weights made of other items, for items with the same sentence."""
        known = {_written(*row): place for place, row in enumerate(zip(tokens, kinds, strict=True))}
        for row, sentence in enumerate(zip(self.tokens, self.token_kinds, strict=True)):
            if row and (place := known.get(_written(*sentence))) is not None:
                self.item_matrix[row], self.up_to_date[row] = matrix[place], True

    def learn_network(self, weights: Mapping[str, Tensor]) -> None:
        """Starts from an encoder pretrained on language, see `recsys.text_encoder.network_weights`.

        All kinds begin as the one it knows, places as zero: at first the network is the pretrained one.
        """
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                if name == "kind":
                    self.kinds.weight.copy_(weight.expand_as(self.kinds.weight))
                elif name == "positions.weight":
                    if len(weight) < self.config.max_tokens:
                        raise ConfigError(
                            f"model.max_tokens={self.config.max_tokens}, but the encoder knows {len(weight)} positions."
                        )
                    self.positions.weight.copy_(weight[: self.config.max_tokens])
                elif name in own:
                    own[name].copy_(weight)
            if self.places is not None:
                self.places.weight.zero_()

    def text(self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], tables: Tables | None = None) -> Text:
        """What is read of histories, over these sentences or those of training."""
        return history_text(items, lengths, tables or self.tables, self.special, self.config.max_tokens)

    def _embedded(self, text: Text) -> Float[Tensor, "B T D"]:
        kinds = text.kinds if self.config.token_kinds else torch.zeros_like(text.kinds)
        x = self.words(text.ids) + self.positions.weight[: text.ids.shape[1]] + self.kinds(kinds)
        if self.places is not None:
            x = x + self.places(text.places)
        return self.dropout(self.norm(x))

    def word_begins(self, text: Text) -> Bool[Tensor, "B T"]:
        """Which tokens of items begin a word."""
        return self.word_starts.flatten()[text.sources] & text.of_items

    def _read(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], tables: Tables | None = None
    ) -> Float[Tensor, "B D"]:
        """Directions of texts."""
        text = self.text(items, lengths, tables)
        x = self._embedded(text)
        if self.config.pooling == "first":
            return F.normalize(self.blocks.first(x, text.real), dim=1)
        real = text.real[:, :, None]
        return F.normalize((self.blocks(x, text.real) * real).sum(dim=1), dim=1)

    def encode(self, batch: Histories, tables: Tables | None = None) -> Float[Tensor, "B D"]:
        """Of each history its direction, divided by the temperature; over these sentences or those of training."""
        return self._read(batch.items, batch.lengths, tables) / self.config.temperature

    def item_vectors(self, rows: Int[Tensor, " N"] | None = None) -> Float[Tensor, "V D"]:
        """Of length 1, as they were when last made."""
        return self.item_matrix if rows is None else self.item_matrix[rows]

    def read_items(self, tables: Tables) -> Float[Tensor, "N D"]:
        """Vectors, of length 1, of items with these sentences."""
        rows = torch.arange(tables.tokens.shape[0], device=tables.tokens.device)
        return self._read(rows[:, None], torch.ones_like(rows), tables)

    @torch.no_grad()
    def make_item_matrix(self) -> int:
        """Encodes texts of the catalogue, each once, the shortest first and as many at once as fill a batch; how many.

        Those that are `up_to_date` are left out, until training goes on.
        """
        training = self.training
        self.eval()
        sizes = 1 + (self.token_kinds != NO_TOKEN).sum(dim=1)
        rows = torch.arange(len(self.tokens), device=self.tokens.device)
        chosen = rows[1:][(self.first_with_text[1:] == rows[1:]) & ~self.up_to_date[1:].to(rows.device)]
        chosen = chosen[sizes[chosen].argsort(stable=True)]
        texts = len(chosen)
        while len(chosen):
            longest_first = sizes[chosen] * (1 + torch.arange(len(chosen), device=chosen.device))
            count = max(1, int((longest_first <= TOKENS_AT_ONCE).sum()))
            self.item_matrix[chosen[:count]] = self._read(chosen[:count, None], torch.ones_like(chosen[:count])).to(
                self.item_matrix
            )
            chosen = chosen[count:]
        self.item_matrix.copy_(self.item_matrix[self.first_with_text])
        self.item_matrix[0] = 0
        self.train(training)
        return texts

    @torch.no_grad()
    def refresh_items(self) -> None:
        """Makes the item matrix of the weights as they are; of a frozen one what is not there."""
        if self.config.item_matrix == "refreshed" or not self.item_matrix[1:].any(dim=1).all():
            self.make_item_matrix()

    @property
    def contrasts_rows(self) -> bool:
        """Rows of other catalogues would be told apart at a glance."""
        return self.config.objective == "pretrain"

    @property
    def window(self) -> WindowShape:
        """One event more than the model reads."""
        return WindowShape(length=self.max_len + 1, overlap=1)

    @property
    def reads_times(self) -> bool:
        """Only the order of events counts."""
        return False

    def learn_popularity(self, counts: IntArray) -> None:
        """For negatives by popularity: training events of each item row, [V]."""
        self.catalog_loss.learn_popularity(counts)

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """One event of each window is the target, all before it the history.

        Any but the first; in pretraining none of the first half.
        """
        lengths = windows.lengths.astype(np.int64)
        pretrain = self.config.objective == "pretrain"
        earliest = np.maximum(1, (lengths - 1) // 2) if pretrain else np.ones_like(lengths)
        places = rng.integers(earliest, lengths)
        steps = np.arange(int(places.max()))
        items = windows.items[:, : len(steps)]
        goal = windows.items[np.arange(len(places)), places]
        negatives = self.catalog_loss.negatives(windows.items, rng)
        return TrainBatch(
            history=torch.from_numpy(np.where(steps < places[:, None], items, 0)),
            timestamps=torch.from_numpy(windows.timestamps[:, : len(steps)]),
            target=torch.from_numpy(np.where(steps == places[:, None] - 1, goal[:, None], 0)),
            lengths=torch.from_numpy(places.astype(np.int32)),
            negatives=negatives,
        )

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """Of the objective, mean over rows that have a target."""
        self.up_to_date.zero_()
        target = batch.target.amax(dim=1)
        wanted = target != 0
        if self.config.objective == "match":
            vectors = self._vectors(batch.history, batch.lengths)[wanted] / self.config.temperature
            return self.catalog_loss(vectors, self.item_vectors, target[wanted], batch.negatives)
        goals, alone = target[:, None], wanted.to(batch.lengths.dtype)
        histories = self._vectors(batch.history, batch.lengths)[wanted]
        loss = self._contrast(histories, self._vectors(goals, alone)[wanted], target[wanted])
        if not self.config.word_weight:
            return loss
        words = self._words(batch.history, batch.lengths * wanted) + self._words(goals, alone)
        return loss + self.config.word_weight * words

    def _vectors(self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Directions; with `rows_at_once`, activations of so many rows are held, and made again for gradients."""
        return torch.cat(self._in_parts(self._read, items, lengths))

    def _words(self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """Masked words of the texts filled in, mean over their tokens; rows of no items have none."""
        parts = self._in_parts(self._word_loss, items, lengths)
        losses, tokens = torch.stack([loss for loss, _ in parts]), torch.stack([count for _, count in parts])
        return (losses * tokens).sum() / tokens.sum().clamp(min=1)

    def _in_parts(self, read: Callable[..., Any], items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> list[Any]:
        """`read` of some rows after the other, so that only their activations are held at a time."""
        size = self.config.rows_at_once
        if not (size and self.training and len(items) > size):
            return [read(items, lengths)]
        parts = zip(torch.split(items, size), torch.split(lengths, size), strict=True)
        return [checkpoint(read, *part, use_reentrant=False) for part in parts]

    def _contrast(
        self, histories: Float[Tensor, "N D"], items: Float[Tensor, "N D"], target: Int[Tensor, " N"]
    ) -> Float[Tensor, ""]:
        """Each history finds its next item among those of the batch; items with the same text do not count."""
        with torch.autocast(histories.device.type, enabled=False):  # in bfloat16 like texts would have one cosine
            wide = torch.promote_types(histories.dtype, torch.float32)
            logits = histories.to(wide) @ items.to(wide).T / self.config.temperature
        texts = self.first_with_text[target]
        own = torch.eye(len(texts), dtype=torch.bool, device=texts.device)
        logits = logits.masked_fill((texts[:, None] == texts) & ~own, -torch.inf)
        return -logits.log_softmax(dim=1).diagonal().sum() / max(1, len(texts))

    def _word_loss(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Mean over masked tokens, and how many they are."""
        text = self.text(items, lengths)
        chosen = masked_words(text.of_items, self.word_begins(text), self.config.mask_share)
        draws = torch.rand(text.ids.shape, device=text.ids.device)
        shown = torch.where(draws < 1 - KEPT, torch.randint_like(text.ids, self.config.vocab_size), text.ids)
        shown = torch.where(draws < 1 - KEPT - RANDOM, self.special[2], shown)
        masked = replace(text, ids=torch.where(chosen, shown, text.ids))
        states = self.blocks(self._embedded(masked), text.real)[chosen]
        guesses = self.head_norm(F.gelu(self.head(states)))
        guesses = torch.cat([guesses, torch.ones_like(guesses[:, :1])], dim=1)
        vocabulary = torch.cat([self.words.weight, self.head_bias[:, None]], dim=1)
        return softmax_cross_entropy(guesses, vocabulary, text.ids[chosen]), chosen.sum()


def _forget_items(model: Recformer, _: object) -> None:
    """Other weights, other item vectors."""
    model.up_to_date.zero_()


def _written(tokens: Int[Tensor, " W"], kinds: Int[Tensor, " W"]) -> bytes:
    """A sentence as a key, however wide its row is."""
    length = int((kinds != NO_TOKEN).sum())
    return torch.stack([tokens[:length].long(), kinds[:length].long()]).cpu().numpy().tobytes()
