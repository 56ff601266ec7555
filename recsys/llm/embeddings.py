"""Text vectors of an OpenAI-compatible server's /embeddings, behind the protocol of every text encoder.

N texts, W width of vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from recsys.errors import EndpointError
from recsys.llm.calls import Refused
from recsys.llm.endpoint import Endpoint, MalformedReply
from recsys.llm.stored_texts import EndpointTexts
from recsys.llm.tokens import ByLength


class EndpointEncoder:
    """Asks a server; vectors are scaled to length 1. `width`: of its vectors, None before the first answer."""

    def __init__(self, endpoint: Endpoint, texts: EndpointTexts) -> None:
        self.endpoint, self.texts = endpoint, texts
        self.width = texts.dimensions

    @property
    def identity(self) -> str:
        """That of the vectors."""
        return self.texts.identity

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """One request for all of them."""
        vectors = self._asked(texts)
        self.width = self.width or vectors.shape[1]
        if vectors.shape[1] != self.width:
            raise self._wrong(f"vectors of {vectors.shape[1]} numbers, where {self.width} were expected")
        return vectors

    def _asked(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        body: dict[str, Any] = {"model": self.texts.model, "input": list(texts), "encoding_format": "float"}
        if self.texts.dimensions:
            body["dimensions"] = self.texts.dimensions
        permit = _Unlimited(sum(map(ByLength().count, texts)))
        try:
            rows = self.endpoint.post("embeddings", body, permit, rows_of)
        except Refused as refusal:
            raise EndpointError(
                f"{self.endpoint.url}: refuses {len(texts)} texts ({refusal}); serve {self.texts.model} so that it "
                "cuts longer ones."
            ) from None
        return self._checked(rows, len(texts))

    def _checked(self, rows: list[tuple[int, list[float]]], count: int) -> Float[np.ndarray, "N W"]:
        """In the order of the texts."""
        if sorted(index for index, _ in rows) != list(range(count)):
            raise self._wrong(f"{len(rows)} vectors for {count} texts")
        widths = sorted({len(row) for _, row in rows})
        if len(widths) != 1 or not widths[0]:
            raise self._wrong(f"vectors of {' and '.join(map(str, widths))} numbers in one reply")
        vectors = np.array([row for _, row in sorted(rows, key=lambda row: row[0])], dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.all()):
            raise self._wrong("a vector that is zero or not finite")
        return (vectors / lengths).astype(np.float32)

    def _wrong(self, what: str) -> EndpointError:
        return EndpointError(
            f"{self.endpoint.url}: {self.texts.model} gave {what}; check that it is served as an embedding model."
        )


@dataclass(frozen=True)
class _Unlimited:
    """A permit without a budget."""

    tokens: int

    def again(self, lost: bool) -> None:
        """Always."""


def rows_of(reply: Any) -> list[tuple[int, list[float]]]:
    """(index, vector) of a reply."""
    try:
        rows = [(int(row["index"]), [float(number) for number in row["embedding"]]) for row in reply["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedReply(f"no list of embeddings ({type(error).__name__}: {error})") from None
    return rows
