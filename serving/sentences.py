"""Tokens of the bundle's items and of those that came since; rows are added or written anew, never moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from recsys.bundle import Bundle, SentenceCard
from recsys.errors import BundleError
from recsys.item_sentences import Attributes, ItemSentences, attributes_of, item_sentences

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
        count = max(len(self.tokens), max(rows) + 1)
        tables = []
        for table, new in ((self.tokens, sentences.ids[1:]), (self.kinds, sentences.kinds[1:])):
            longer = np.zeros((count, table.shape[1]), dtype=table.dtype)
            longer[: len(table)] = table
            longer[list(rows)] = new
            tables.append(longer)
        return TokenTables(*tables)


class Reader:
    """Makes sentences of new items as training made those of the bundle's."""

    def __init__(self, card: SentenceCard, tokenizer: "Tokenizer", width: int) -> None:
        self._card, self._tokenizer, self._width = card, tokenizer, width

    @classmethod
    def of(cls, bundle: Bundle) -> "Reader | None":
        """The bundle's, where its model reads texts and a new item's vector would be like those of the others."""
        card, known = bundle.card.sentences, bundle.sentences
        if card is None or known is None or not card.takes_new_items:
            return None
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise BundleError(
                f"{bundle.folder}: its model reads texts, which needs tokenizers; pip install 'recsys[serve]'."
            ) from None
        return cls(card, Tokenizer.from_file(str(bundle.tokenizer)), known.ids.shape[1])

    @property
    def attributes(self) -> list[str]:
        """What the model reads of an item, in order."""
        return self._card.attributes

    def read(self, item: Mapping[str, str | Sequence[str] | None]) -> Attributes:
        """What of an item the model would read; nothing where it has no such text."""
        return attributes_of(item, self._card.attributes, self._card.max_attributes)

    def sentences(self, items: Sequence[Attributes]) -> ItemSentences:
        """Tokens of items of which there is something to read."""
        return item_sentences(items, self._tokenizer, self._card.attribute_tokens, width=self._width)

    def item_vector(self, encoded: np.ndarray) -> np.ndarray:
        """The vector of an item whose text was encoded so as a history of one, which is divided by the temperature."""
        return encoded * np.float32(self._card.temperature)
