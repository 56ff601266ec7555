"""Text vectors that a server gave and the store keeps: what names them, and what stands for the server afterwards.

N texts, W width of vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recsys.errors import ConfigError

PREFIX = "endpoint:"
DIMENSIONS = "?dimensions="


@dataclass(frozen=True, kw_only=True)
class EndpointTexts:
    """Which vectors these are, whoever serves them: `dimensions` None are all that the model gives."""

    model: str
    revision: str | None = None
    dimensions: int | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError(f"text encoder '{PREFIX}': has no model; name one as the server knows it.")
        if self.dimensions is not None and self.dimensions < 1:
            raise ConfigError(f"text encoder {self.name}: dimensions={self.dimensions} must be at least 1.")

    @classmethod
    def named(cls, name: str, revision: str | None) -> "EndpointTexts":
        """From what `name` gave."""
        model, _, dimensions = name.removeprefix(PREFIX).partition(DIMENSIONS)
        if dimensions and not dimensions.isdigit():
            raise ConfigError(f"text encoder {name!r}: expected {PREFIX}MODEL or {PREFIX}MODEL{DIMENSIONS}256.")
        return cls(model=model, revision=revision, dimensions=int(dimensions) if dimensions else None)

    @property
    def name(self) -> str:
        """What `model.text_encoder` says."""
        return f"{PREFIX}{self.model}" + (f"{DIMENSIONS}{self.dimensions}" if self.dimensions else "")

    @property
    def identity(self) -> str:
        """Model, revision and dimensions, no address."""
        return f"{self.name} {self.revision or 'as served'}, unit length"


class StoredTexts:
    """The same vectors where no server is at hand, as in training: the store has them, or an error says how it gets
    them."""

    def __init__(self, texts: EndpointTexts) -> None:
        self.texts = texts

    @property
    def identity(self) -> str:
        """That of the vectors."""
        return self.texts.identity

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "N W"]:
        """Never."""
        dimensions = f" --dimensions {self.texts.dimensions}" if self.texts.dimensions else ""
        revision = f" --revision {self.texts.revision}" if self.texts.revision else ""
        raise ConfigError(
            f"text encoder {self.texts.name!r}: the store of vectors lacks {len(texts)} texts or more; fill it first "
            f"with `recsys embed DATA --endpoint URL --encoder {self.texts.model}{dimensions}{revision}`."
        )
