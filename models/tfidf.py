"""TF-IDF: items whose text is most like that of the last item; the floor of every text model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from recsys.batches import Histories
from recsys.errors import DataError
from recsys.item_text import WORD, has_text, item_texts
from recsys.sparse import csr_arrays, csr_from_arrays, dense, last_items
from recsys.splits import TrainingEvents


@dataclass(frozen=True, kw_only=True)
class TfidfConfig:
    """Nothing to set."""


class Tfidf:
    """score(i) = cosine of the TF-IDF vectors of the last item's text and i's."""

    max_len = 1

    def __init__(self, config: TfidfConfig, vectors: sparse.csr_array) -> None:
        self.config = config
        self.vectors = vectors

    @classmethod
    def fit(cls, config: TfidfConfig, events: TrainingEvents, items: pl.DataFrame) -> "Tfidf":  # noqa: ARG003
        """From the item table alone."""
        texts = item_texts(items)
        if not has_text(items):
            raise DataError("tfidf: the item table has no text; ingest an item table with --items, or leave it out.")
        return cls(config, tfidf_vectors(["", *texts]))

    def scores(self, batch: Histories) -> Float[Tensor, "B V"]:
        """Zero for items without a common word."""
        return dense(self.vectors[last_items(batch)] @ self.vectors.T)

    def arrays(self) -> dict[str, np.ndarray]:
        """Vectors of all item rows."""
        return csr_arrays("vectors", self.vectors)

    @classmethod
    def from_arrays(cls, config: TfidfConfig, arrays: Mapping[str, np.ndarray]) -> "Tfidf":
        """From what `arrays` gave."""
        return cls(config, csr_from_arrays("vectors", arrays))


def tfidf_vectors(texts: list[str]) -> sparse.csr_array:
    """[len(texts), words], unit rows: term count * (ln((1 + N) / (1 + document frequency)) + 1)."""
    vocabulary: dict[str, int] = {}
    rows, words = [], []
    for row, text in enumerate(texts):
        for word in WORD.findall(text.lower()):
            rows.append(row)
            words.append(vocabulary.setdefault(word, len(vocabulary)))
    counts = sparse.csr_array(
        (np.ones(len(rows), dtype=np.float32), (rows, words)), shape=(len(texts), len(vocabulary))
    )
    frequency = np.bincount(counts.indices, minlength=len(vocabulary))
    weighted = counts @ sparse.diags_array(np.log((1 + len(texts)) / (1 + frequency)) + 1)
    norms = np.sqrt(np.maximum(weighted.multiply(weighted).sum(axis=1), 1e-12))
    return sparse.csr_array(sparse.diags_array(1 / norms) @ weighted, dtype=np.float32)
