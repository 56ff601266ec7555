"""Items as sentences of their attributes, tokenised once: what Recformer reads (Li et al., KDD 2023, section 3.1).

    {title: red shoe, brand: acme}    ids    title red shoe brand ac ##me
                                      kinds    1    2   2     1    2   2

Key and value are tokenised apart, with nothing between them, and an attribute is cut after so many tokens, its key
among them. Dimensions: V item rows (row 0 is padding), W tokens of the longest sentence.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_TOKEN, KEY, VALUE = 0, 1, 2
TEXTS_AT_ONCE = 10_000
FIRST_ATTRIBUTES = ("title", "brand", "categories")
"""In this order and before all others, as the released data scripts write them."""
KEYS = {"categories": "category"}
"""What a column is called in a sentence, where not by its own name."""

Attributes: TypeAlias = list[tuple[str, str]]
"""Keys and values of one item, in order."""


@dataclass(frozen=True)
class ItemSentences:
    """Tokens of all items, arrays [V, W]; `kinds` is KEY, VALUE or, behind a sentence's end, NO_TOKEN.

    `starts`: which tokens begin a word.
    """

    ids: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int8]
    starts: npt.NDArray[np.bool_]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sentence, [V]."""
        return (self.kinds != NO_TOKEN).sum(axis=1)


def attribute_names(items: pl.DataFrame, wanted: Sequence[str] = ()) -> list[str]:
    """Text columns in the order they are read: `wanted`, or by default those of `FIRST_ATTRIBUTES`, then all others."""
    texts = [
        name
        for name, dtype in items.schema.items()
        if name not in {"item_id", "image"} and dtype in {pl.String, pl.List(pl.String)}
    ]
    if unknown := [name for name in wanted if name not in texts]:
        raise ConfigError(
            f"model.attributes={unknown[0]!r} is no text column of the item table; it has {', '.join(texts) or 'none'}."
        )
    first = [name for name in FIRST_ATTRIBUTES if name in texts]
    return list(wanted) or [*first, *(name for name in texts if name not in first)]


def item_attributes(items: pl.DataFrame, names: Sequence[str], most: int = 3) -> list[Attributes]:
    """Of each item the first `most` of the columns `names` that have a text."""
    return [attributes_of(row, names, most) for row in items.select(names).iter_rows(named=True)]


def attributes_of(item: Mapping[str, str | Sequence[str] | None], names: Sequence[str], most: int = 3) -> Attributes:
    """The same of one item, whose lists are joined by blanks."""
    values = [(KEYS.get(name, name), item.get(name) or "") for name in names]
    texts = [(key, cleaned(value if isinstance(value, str) else " ".join(value))) for key, value in values]
    return [(key, text) for key, text in texts if text][:most]


def cleaned(text: str) -> str:
    """Without HTML entities, with single blanks."""
    return " ".join(html.unescape(text).split())


def item_sentences(
    items: Sequence[Attributes], tokenizer: "Tokenizer", attribute_tokens: int = 32, width: int | None = None
) -> ItemSentences:
    """Tokens of each item; padding's row 0 comes before the first item. `width` makes rows as wide as others are."""
    texts = sorted({text for attributes in items for pair in attributes for text in pair})
    if not texts:
        raise DataError("items: none has a text to make a sentence of; ingest an item table with --items.")
    pieces = dict(zip(texts, _tokenised(texts, tokenizer, attribute_tokens), strict=True))
    rows = [_sentence(attributes, pieces, attribute_tokens) for attributes in [[], *items]]
    table = np.zeros((len(rows), width or max(map(len, rows)), 3), dtype=np.int32)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row or 0
    return ItemSentences(ids=table[..., 0], kinds=table[..., 1].astype(np.int8), starts=table[..., 2].astype(bool))


def _tokenised(texts: list[str], tokenizer: "Tokenizer", most: int) -> Iterator[list[tuple[int, int]]]:
    """Of each text its first tokens, and whether each begins a word."""
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        for encoded in tokenizer.encode_batch(texts[first : first + TEXTS_AT_ONCE], add_special_tokens=False):
            words = encoded.word_ids[:most]
            starts = [int(place == 0 or word != words[place - 1]) for place, word in enumerate(words)]
            yield list(zip(encoded.ids[:most], starts, strict=True))


def _sentence(
    attributes: Attributes, pieces: dict[str, list[tuple[int, int]]], attribute_tokens: int
) -> list[tuple[int, int, int]]:
    """(token, kind, begins a word) of one item."""
    sentence: list[tuple[int, int, int]] = []
    for key, value in attributes:
        tokens = [(token, KEY, starts) for token, starts in pieces[key]]
        tokens += [(token, VALUE, starts) for token, starts in pieces[value]]
        sentence += tokens[:attribute_tokens]
    return sentence
