"""`recsys embed`: vectors of all item texts into the store, before a training asks for them."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines.reporter import Reporter
from recsys.errors import ConfigError, DataError
from recsys.item_text import item_texts
from recsys.text_vectors import Pooling, SentenceEncoder, TextEncoder, default_store, text_vectors

if TYPE_CHECKING:
    from recsys.llm.endpoint import EndpointConfig


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Settings of `recsys embed`; `encoder` None is the installed MiniLM, with an `endpoint` a model served there."""

    data: Path
    encoder: str | None = None
    revision: str | None = None
    pooling: Pooling = "mean"
    endpoint: "EndpointConfig | None" = None
    dimensions: int | None = None

    def __post_init__(self) -> None:
        if self.endpoint is None and self.dimensions is not None:
            raise ConfigError(f"--dimensions {self.dimensions}: is for a server's vectors; give its --endpoint.")
        if self.endpoint is not None and (self.encoder is None or self.pooling != "mean"):
            raise ConfigError("--endpoint: name the model with --encoder; it pools as it is served, so no --pooling.")


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
    with opened_encoder(config) as (encoder, name):
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
        "text_encoder": name,
        "store": str(default_store()),
    }


@contextmanager
def opened_encoder(config: EmbedConfig) -> Iterator[tuple[TextEncoder, str | None]]:
    """The encoder, and what `model.text_encoder` of a training is to say to find its vectors."""
    if config.endpoint is None:
        yield SentenceEncoder(config.encoder, config.revision, pooling=config.pooling), config.encoder
        return
    from recsys.llm.embeddings import EndpointEncoder
    from recsys.llm.endpoint import Endpoint
    from recsys.llm.stored_texts import EndpointTexts

    texts = EndpointTexts(model=config.encoder or "", revision=config.revision, dimensions=config.dimensions)
    with closing(Endpoint(config.endpoint)) as endpoint:
        yield EndpointEncoder(endpoint, texts), texts.name
