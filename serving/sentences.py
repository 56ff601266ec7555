"""Tokens of the bundle's items and of those that came since; rows are added or written anew, never moved."""

from collections.abc import Mapping, Sequence

import numpy as np

from recsys.bundle import Bundle, SentenceCard
from recsys.errors import BundleError
from recsys.item_sentences import ItemSentences, attributes_of, item_sentences

SPARE_ROWS = 1024


class Sentences:
    """Inputs of the graph of a model that reads texts. One thread writes at a time; readers never wait."""

    def __init__(self, bundle: Bundle, card: SentenceCard, known: ItemSentences) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise BundleError(
                f"{bundle.folder}: its model reads texts, which needs tokenizers; pip install 'recsys[serve]'."
            ) from None
        self._tokenizer = Tokenizer.from_file(str(bundle.tokenizer))
        self._card = card
        self._count, self._width = known.ids.shape
        spare = np.zeros((SPARE_ROWS, self._width), dtype=np.int32)
        self._ids, self._kinds = (
            np.concatenate([known.ids, spare]),
            np.concatenate([known.kinds, spare.astype(np.int8)]),
        )

    @property
    def attributes(self) -> list[str]:
        """What the model reads of an item, in order."""
        return self._card.attributes

    def inputs(self) -> dict[str, np.ndarray]:
        """Tokens and kinds of all rows there are; views, not copies."""
        count = self._count
        return {"tokens": self._ids[:count], "kinds": self._kinds[:count]}

    def has_text(self, item: Mapping[str, str | Sequence[str] | None]) -> bool:
        """Whether the model would read anything of an item."""
        return bool(attributes_of(item, self._card.attributes, self._card.max_attributes))

    def write(self, row: int, item: Mapping[str, str | Sequence[str] | None]) -> None:
        """Puts an item's tokens into `row`, which may be the first one behind the last."""
        read = attributes_of(item, self._card.attributes, self._card.max_attributes)
        sentence = item_sentences([read], self._tokenizer, self._card.attribute_tokens, width=self._width)
        if row == len(self._ids):
            more = np.zeros_like(self._ids)
            self._ids, self._kinds = (
                np.concatenate([self._ids, more]),
                np.concatenate([self._kinds, more.astype(np.int8)]),
            )
        self._ids[row], self._kinds[row] = sentence.ids[1], sentence.kinds[1]
        self._count = max(self._count, row + 1)

    def item_vector(self, encoded: np.ndarray) -> np.ndarray:
        """The vector of an item whose text was encoded so as a history of one, which is divided by the temperature."""
        return encoded * np.float32(self._card.temperature)
