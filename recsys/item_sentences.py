"""Items as sentences of their attributes, tokenised once: what Recformer reads (Li et al., KDD 2023, section 3.1).

    {title: red shoe, brand: acme}    ids    title red shoe brand ac ##me
                                      kinds    1    2   2     1    2   2

Key and value are tokenised apart, with nothing between them, and an attribute is cut after so many tokens, its key
among them. Dimensions: V item rows (row 0 is padding), W tokens of the longest sentence.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import polars as pl
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recsys.errors import ConfigError, DataError

NO_TOKEN, KEY, VALUE = 0, 1, 2
FIRST_ATTRIBUTES = ("title", "brand", "categories")
"""In this order and before all others, as the released data scripts write them."""
KEYS = {"categories": "category"}
"""What a column is called in a sentence, where not by its own name."""

Attributes: TypeAlias = list[tuple[str, str]]
"""Keys and values of one item, in order."""


@dataclass(frozen=True)
class ItemSentences:
    """Tokens of all items; `kinds` is KEY, VALUE or, behind a sentence's end, NO_TOKEN.

    `starts`: which tokens begin a word.
    `special`: ids of the first token of every text, of padding and of a masked token.
    """

    ids: Int[Tensor, "V W"]
    kinds: Int[Tensor, "V W"]
    starts: Bool[Tensor, "V W"]
    special: Int[Tensor, " 3"]

    @property
    def lengths(self) -> Int[Tensor, " V"]:
        """Tokens of each sentence."""
        return (self.kinds != NO_TOKEN).sum(dim=1)


def item_attributes(items: pl.DataFrame, wanted: Sequence[str] = (), most: int = 3) -> list[Attributes]:
    """Of each item its first `most` attributes that have a text, in the order `wanted` (default: see above)."""
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
    names = list(wanted) or [*first, *(name for name in texts if name not in first)]
    joined = [
        pl.col(name).list.join(" ") if items.schema[name] == pl.List(pl.String) else pl.col(name) for name in names
    ]
    rows = items.select(column.fill_null("").alias(name) for name, column in zip(names, joined, strict=True))
    return [
        [(KEYS.get(name, name), text) for name, value in row.items() if (text := cleaned(value))][:most]
        for row in rows.iter_rows(named=True)
    ]


def cleaned(text: str) -> str:
    """Without HTML entities, with single blanks."""
    return " ".join(html.unescape(text).split())


def item_sentences(items: Sequence[Attributes], tokenizer: Any, attribute_tokens: int = 32) -> ItemSentences:
    """Tokens of each item for a fast tokenizer of Hugging Face; padding's row 0 comes before the first item."""
    first, padding, mask = tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id
    if not tokenizer.is_fast or None in {first, padding, mask}:
        raise ConfigError(
            f"text encoder {tokenizer.name_or_path!r}: its tokenizer must be a fast one with a first token, padding "
            "and a mask (cls_token, pad_token, mask_token); choose an encoder such as BERT, RoBERTa or Longformer."
        )
    texts = sorted({text for attributes in items for pair in attributes for text in pair})
    if not texts:
        raise DataError("items: none has a text to make a sentence of; ingest an item table with --items.")
    pieces = dict(zip(texts, _tokenised(texts, tokenizer), strict=True))
    rows = [_sentence(attributes, pieces, attribute_tokens) for attributes in [[], *items]]
    width = max(len(row) for row in rows)
    table = torch.tensor([row + [(padding, NO_TOKEN, 0)] * (width - len(row)) for row in rows])
    return ItemSentences(
        ids=table[..., 0],
        kinds=table[..., 1],
        starts=table[..., 2].bool(),
        special=torch.tensor([first, padding, mask]),
    )


def _tokenised(texts: list[str], tokenizer: Any) -> list[list[tuple[int, int]]]:
    """Of each text its tokens, and whether each begins a word."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
    tokenised = []
    for number, ids in enumerate(encoded["input_ids"]):
        words = encoded.word_ids(number)
        starts = [int(place == 0 or word != words[place - 1]) for place, word in enumerate(words)]
        tokenised.append(list(zip(ids, starts, strict=True)))
    return tokenised


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
