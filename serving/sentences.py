"""What a model that reads texts knows of the bundle's items and of those that came since.

Rows are added or written anew, never moved.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from recsys.bundle import Bundle, SentenceCard
from recsys.errors import BundleError
from recsys.graph_session import graph_session
from recsys.index import FloatArray
from recsys.item_sentences import Attributes, ItemSentences, attributes_of, item_sentences
from serving.encoder import Encoder, ItemInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer


ITEMS_AT_ONCE = 32


@dataclass(frozen=True)
class TokenTables:
    """Inputs of the graph of a model that reads texts, [V, W] each; nothing in them ever changes."""

    tokens: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int8]

    def inputs(self) -> dict[str, np.ndarray]:
        """By their names in the graph."""
        return {"tokens": self.tokens, "kinds": self.kinds}

    def written(self, rows: Sequence[int], sentences: ItemSentences) -> "TokenTables":
        """A copy with these sentences (padding's row left out) in `rows`, which may lie behind the last."""
        return TokenTables(_grown(self.tokens, rows, sentences.ids[1:]), _grown(self.kinds, rows, sentences.kinds[1:]))


@dataclass(frozen=True)
class FeatureTable:
    """Input of the graphs of a model over a teacher's item vectors, [V, F]; nothing in it ever changes."""

    features: FloatArray

    def inputs(self) -> dict[str, np.ndarray]:
        """By its name in the graphs."""
        return {"features": self.features}

    def written(self, rows: Sequence[int], features: FloatArray) -> "FeatureTable":
        """A copy with these features in `rows`, which may lie behind the last."""
        return FeatureTable(_grown(self.features, rows, features))


def _grown(table: np.ndarray, rows: Sequence[int], new: np.ndarray) -> np.ndarray:
    longer = np.zeros((max(len(table), max(rows) + 1), table.shape[1]), dtype=table.dtype)
    longer[: len(table)] = table
    longer[list(rows)] = new
    return longer


def item_inputs(bundle: Bundle) -> ItemInputs | None:
    """What the bundle's graphs are given beside a history, None where that is all."""
    if bundle.features is not None:
        return FeatureTable(bundle.features)
    return None if bundle.sentences is None else TokenTables(bundle.sentences.ids, bundle.sentences.kinds)


class Reader(ABC):
    """Makes of new items what training made of the bundle's."""

    def __init__(self, card: SentenceCard, tokenizer: "Tokenizer", encoder: Encoder) -> None:
        self._card, self._tokenizer, self._encoder = card, tokenizer, encoder

    @property
    def attributes(self) -> list[str]:
        """What the model reads of an item, in order."""
        return self._card.attributes

    def read(self, item: Mapping[str, str | Sequence[str] | None]) -> Attributes:
        """What of an item the model would read; nothing where it has no such text."""
        return attributes_of(item, self._card.attributes, self._card.max_attributes)

    def sentences(self, items: Sequence[Attributes], width: int) -> ItemSentences:
        """Tokens of items of which there is something to read, [1 + N, `width`]."""
        return item_sentences(items, self._tokenizer, self._card.attribute_tokens, width=width)

    @abstractmethod
    def write(self, rows: Sequence[int], items: Sequence[Attributes]) -> tuple[ItemInputs, FloatArray]:
        """The encoder's inputs with these items in `rows`, and vectors [N, D] to find the items by."""


class TokenReader(Reader):
    """Of a model that reads histories as tokens: an item is a history of one, times the temperature."""

    def write(self, rows: Sequence[int], items: Sequence[Attributes]) -> tuple[ItemInputs, FloatArray]:
        """One pass of the encoder an item."""
        tables = self._encoder.tables
        assert isinstance(tables, TokenTables)
        longer = tables.written(rows, self.sentences(items, tables.tokens.shape[1]))
        encoded = [self._encoder.encode(np.array([row]), longer).vector()[0] for row in rows]
        return longer, np.stack(encoded) * np.float32(self._card.temperature)


class FeatureReader(Reader):
    """Of a model over a teacher's item vectors: the teacher's graph reads the item."""

    def __init__(self, card: SentenceCard, tokenizer: "Tokenizer", encoder: Encoder, graph: Path) -> None:
        super().__init__(card, tokenizer, encoder)
        self._session = graph_session(graph)

    def write(self, rows: Sequence[int], items: Sequence[Attributes]) -> tuple[ItemInputs, FloatArray]:
        """Some items a pass: what is held grows with them."""
        tables = self._encoder.tables
        assert isinstance(tables, FeatureTable)
        sentences = self.sentences(items, self._session.get_inputs()[0].shape[1])
        parts = [slice(first, first + ITEMS_AT_ONCE) for first in range(1, len(sentences.ids), ITEMS_AT_ONCE)]
        given = [{"tokens": sentences.ids[part], "kinds": sentences.kinds[part]} for part in parts]
        read = [self._session.run(["features", "vectors"], inputs) for inputs in given]
        features, vectors = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
        return tables.written(rows, features), vectors


def open_reader(bundle: Bundle, encoder: Encoder) -> Reader | None:
    """The bundle's, where its model reads texts and a new item's vector would be like those of the others."""
    card = bundle.card.sentences
    if card is None or not card.takes_new_items:
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise BundleError(
            f"{bundle.folder}: its model reads texts, which needs tokenizers; pip install 'recsys[serve]'."
        ) from None
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer))
    if bundle.item_reader is None:
        return TokenReader(card, tokenizer, encoder)
    return FeatureReader(card, tokenizer, encoder, bundle.item_reader)
