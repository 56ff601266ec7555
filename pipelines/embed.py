"""`recsys embed`: vectors of all item texts into the store, before a training asks for them."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.reporter import Reporter
from recsys.errors import DataError
from recsys.item_text import item_texts
from recsys.text_vectors import Pooling, SentenceEncoder, default_store, text_vectors


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Settings of `recsys embed`; `encoder` None is the installed MiniLM."""

    data: Path
    encoder: str | None = None
    revision: str | None = None
    pooling: Pooling = "mean"


def embed(config: EmbedConfig, reporter: Reporter) -> dict[str, Any]:
    """Encodes what the store does not have yet; what a killed run has encoded stays. How much, how fast, and where."""
    path = config.data / "items.parquet"
    if not path.is_file():
        raise DataError(
            f"embed: {config.data} has no items.parquet; name the output of `recsys ingest` or `recsys prepare`."
        )
    texts = [text for text in item_texts(pl.read_parquet(path)) if text]
    if not texts:
        raise DataError(f"embed: {config.data} has no item text; ingest an item table with --items.")
    encoder = SentenceEncoder(config.encoder, config.revision, pooling=config.pooling)
    encoded, began = 0, time.monotonic()
    with reporter.task("embed", len(set(texts))) as advance:

        def count(done: int) -> None:
            nonlocal encoded
            encoded += done
            advance(done, f"{encoded / (time.monotonic() - began):.1f} texts/s")

        vectors = text_vectors(texts, encoder, default_store(), count)
    seconds = time.monotonic() - began
    return {
        "items": len(texts),
        "distinct_texts": len(set(texts)),
        "encoded": encoded,
        "width": vectors.shape[1],
        "seconds": round(seconds, 3),
        "texts_per_second": round(encoded / seconds, 1),
        "encoder": encoder.identity,
        "store": str(default_store()),
    }
