"""What the rest of the house asks of a model. Dimensions: B histories, L events, V item rows, D width, C candidates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recsys.batches import Histories, TrainBatch, TrainingWindows, WindowShape
from recsys.item_sentences import ItemSentences
from recsys.layers import Remembered
from recsys.sequences import IntArray, SequenceStore, Windows
from recsys.splits import TrainingEvents

ItemMask: TypeAlias = Bool[Tensor, "B V"]
"""True where an item must not be returned."""


@dataclass(frozen=True)
class TopK:
    """Best first; rows of items (0 where fewer than k may be returned) and their scores (-inf there)."""

    items: Int[Tensor, "B K"]
    scores: Float[Tensor, "B K"]


@runtime_checkable
class Retriever(Protocol):
    """One vector per history; an item's score is the inner product with its vector, and nothing else."""

    max_len: int
    """Events of a history that `encode` reads; the caller cuts."""

    def encode(self, batch: Histories) -> Float[Tensor, "B D"]:
        """Vectors of histories with at least one event."""
        ...

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """Rows aligned with the catalogue; row 0 is padding and is never ranked."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """What learns by gradient: it says how histories are cut and what of them is predicted.

    Below its own methods, those of `torch.nn.Module` that training and export call.
    """

    @property
    def window(self) -> WindowShape:
        """Length of training windows and how much neighbours share."""
        ...

    @property
    def reads_times(self) -> bool:
        """Whether scores depend on timestamps; false for a model that knows only the order."""
        ...

    def learn_popularity(self, counts: IntArray) -> None:
        """Called once before training: training events of each item row, [V]."""
        ...

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """Input and truth made of raw windows; all randomness comes from `rng`."""
        ...

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """Mean over the batch's targets."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All weights."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object:
        """Takes weights of the same names and shapes."""
        ...

    def train(self, mode: bool = True) -> "Trainable":
        """Turns dropout on or off."""
        ...

    def eval(self) -> "Trainable":
        """Turns dropout off."""
        ...

    def cpu(self) -> "Trainable":
        """Moves to main memory."""
        ...


@runtime_checkable
class TrainableRetriever(Retriever, Trainable, Protocol):
    """A retriever that learns by gradient."""


@runtime_checkable
class TextReader(TrainableRetriever, Protocol):
    """A retriever whose items are made of frozen text vectors, where its config says so."""

    def learn_texts(self, vectors: Float[Tensor, "V F"], counts: IntArray) -> None:
        """Called once before training: a vector of each item row's text, padding's first, and its training events."""
        ...


@runtime_checkable
class Refreshing(Protocol):
    """A model that keeps item vectors apart from the weights they are made of."""

    def refresh_items(self) -> None:
        """Called before items are compared: item vectors of the weights as they are."""
        ...


@runtime_checkable
class TextTrainer(TextReader, Refreshing, Protocol):
    """A retriever that may train the encoder of its items' texts, where its config says so."""

    @property
    def trains_texts(self) -> bool:
        """Whether it does."""
        ...

    def learn_tokens(self, tokens: Int[Tensor, "V T"], counts: Int[Tensor, " V"]) -> None:
        """Called once before such training, after `learn_texts`: token ids of each item row, and how many are real."""
        ...


@runtime_checkable
class Teaching(Protocol):
    """A trained model of another kind, as one that learns from it sees it."""

    @property
    def item_vectors(self) -> Float[Tensor, "V F"]:
        """Of all item rows, padding's is zero."""
        ...

    def encode(self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B F"]:
        """Vectors of histories, on the device of `items`; a score is the inner product."""
        ...

    def read(self, store: SequenceStore, windows: TrainingWindows) -> None:
        """Called once before training: it will be asked for what each window holds but for the last event."""
        ...


@runtime_checkable
class Student(TrainableRetriever, Protocol):
    """A retriever whose items are a teacher's item vectors, and that learns what the teacher expects."""

    def learn_from(self, teacher: Teaching) -> None:
        """Called once before training."""
        ...

    @property
    def features(self) -> Float[Tensor, "V F"]:
        """The teacher's vectors of all item rows: its buffer `items.features`."""
        ...

    def vectors_of(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N D"]:
        """What `item_vectors` would give items of which the teacher says this."""
        ...


@dataclass(frozen=True)
class Tables:
    """Sentences of the items: token ids and kinds, see `recsys.item_sentences`."""

    tokens: Int[Tensor, "V W"]
    kinds: Int[Tensor, "V W"]


@runtime_checkable
class SentenceReader(TrainableRetriever, Refreshing, Protocol):
    """A retriever that reads items as tokens, with an encoder pretrained on language."""

    def learn_sentences(self, sentences: ItemSentences, special_tokens: tuple[int, int, int]) -> None:
        """Called once before training: the tokens of each item row, padding's first; ids of [CLS], padding and mask."""
        ...

    def learn_network(self, weights: Mapping[str, Tensor]) -> None:
        """Called before training that starts from no other run: weights of the pretrained encoder."""
        ...

    def keep_items(self, tokens: Int[Tensor, "N W"], kinds: Int[Tensor, "N W"], matrix: Float[Tensor, "N D"]) -> None:
        """Called before training that starts from another run: vectors that its weights made of these sentences."""
        ...

    def sentences(self) -> ItemSentences:
        """What it learned of the items' texts."""
        ...

    @property
    def tables(self) -> Tables:
        """Tokens of all items."""
        ...

    @property
    def contrasts_rows(self) -> bool:
        """Whether the other rows of a batch are what a row learns to be told from."""
        ...

    def encode(self, batch: Histories, tables: Tables | None = None) -> Float[Tensor, "B D"]:
        """Vectors of histories, over other sentences than those of training where given."""
        ...

    def read_items(self, tables: Tables) -> Float[Tensor, "N D"]:
        """Vectors of items with these sentences, as `item_vectors` has them when refreshed."""
        ...


@runtime_checkable
class Reasoner(TrainableRetriever, Protocol):
    """A retriever that thinks some steps before it answers, and can be asked to stop earlier."""

    @property
    def most_steps(self) -> int:
        """The steps of `encode`."""
        ...

    def answers(self, batch: Histories) -> Float[Tensor, "S B D"]:
        """Vectors after 0, 1, ... steps; the last are those of `encode`."""
        ...


@runtime_checkable
class Incremental(TrainableRetriever, Protocol):
    """A retriever that can go on from what it computed for a shorter history, where its config allows."""

    @property
    def goes_on(self) -> bool:
        """Whether events see only those before them."""
        ...

    def encode_and_remember(self, batch: Histories) -> tuple[Float[Tensor, "S B D"], Remembered]:
        """What `encode` gives (of a `Reasoner` all `answers`), and what going on needs, if all have one length."""
        ...

    def encode_next(
        self, past: Remembered, event: Int[Tensor, " B"], timestamp: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "S B D"], Remembered]:
        """The same for histories one event longer, up to `max_len`; `past` stays usable."""
        ...


@runtime_checkable
class PrefixEncoder(Retriever, Protocol):
    """A causal retriever: the vector of every prefix of a history comes with that of the whole."""

    def prefix_vectors(self, items: Int[Tensor, "B L"], timestamps: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """What `encode` gives after each event of histories of at most `max_len`, padded on the right."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """Scores of given candidates: the second stage."""

    max_len: int
    """Events of a history that `score` reads; the caller cuts."""

    def score(self, batch: Histories, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """Higher is better; comparable within a row only. Histories may be empty."""
        ...


@runtime_checkable
class TrainableRanker(Ranker, Trainable, Protocol):
    """A ranker that learns from clicks; its scores are their logits."""

    def learn_categories(self, categories: Int[Tensor, " V"]) -> None:
        """Called once before training: the category of each item row, 0 where it has none."""
        ...

    def learn_retriever(self, retriever: PrefixEncoder, repeats: bool) -> None:
        """Called before training that is to correct a retriever: negatives are what it would answer.

        `repeats`: whether that may be items of the history.
        """
        ...


@runtime_checkable
class Recommender(Protocol):
    """A ranked list for a history; what a product calls."""

    def recommend(self, batch: Histories, k: int, mask: ItemMask | None) -> TopK:
        """The k best allowed items."""
        ...


@runtime_checkable
class CatalogScorer(Protocol):
    """Scores of the whole catalogue: what full ranking needs, and all that a counting model offers."""

    max_len: int

    def scores(self, batch: Histories) -> Float[Tensor, "B V"]:
        """Higher is better; column 0 (padding) has no meaning."""
        ...


@runtime_checkable
class CountingModel(CatalogScorer, Protocol):
    """A model made by one pass over the training events."""

    @classmethod
    def fit(cls, config: Any, events: TrainingEvents, items: pl.DataFrame) -> "CountingModel":
        """From training events and the item table (rows in catalogue order)."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """All that was learned."""
        ...

    @classmethod
    def from_arrays(cls, config: Any, arrays: Mapping[str, np.ndarray]) -> "CountingModel":
        """The model again."""
        ...
