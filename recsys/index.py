"""Inner-product search over item vectors: the one place that knows FAISS."""

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from recsys.errors import BundleError

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]


def use_one_thread() -> None:
    """Searches compute in the calling thread alone: a service brings its own threads."""
    faiss.omp_set_num_threads(1)


@dataclass(frozen=True)
class ItemIndex:
    """Exact search; item row r is vector r - 1 of the FAISS index, so that padding can never be found."""

    index: faiss.Index

    @classmethod
    def build(cls, item_vectors: FloatArray) -> "ItemIndex":
        """From a model's item vectors [V, D], padding row included."""
        index = faiss.IndexFlatIP(item_vectors.shape[1])
        index.add(np.ascontiguousarray(item_vectors[1:], dtype=np.float32))
        return cls(index)

    @property
    def num_items(self) -> int:
        """Items that can be found."""
        return self.index.ntotal

    @property
    def width(self) -> int:
        """D."""
        return self.index.d

    def search(self, queries: FloatArray, k: int, excluded: RowArray | None = None) -> tuple[RowArray, FloatArray]:
        """Rows and scores [B, k'], best first, of the k best items not in `excluded` (item rows).

        k' = min(k, items left to find).
        """
        barred = np.unique(excluded[excluded > 0]) - 1 if excluded is not None else np.empty(0, dtype=np.int64)
        k = min(k, self.num_items - len(barred))
        if k <= 0:
            return np.empty((len(queries), 0), dtype=np.int64), np.empty((len(queries), 0), dtype=np.float32)
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(barred))
        parameters = faiss.SearchParameters(sel=selector) if len(barred) else None  # type: ignore[call-arg]  # stubs lag
        scores, found = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), k, params=parameters)
        return found + 1, scores

    def vectors(self, rows: RowArray) -> FloatArray:
        """Stored vectors [len(rows), D]."""
        return self.index.reconstruct_batch(rows - 1)

    def save(self, path: Path) -> None:
        """Writes FAISS's own format."""
        faiss.write_index(self.index, str(path))

    @classmethod
    def load(cls, path: Path) -> "ItemIndex":
        """Reads what `save` wrote."""
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError as error:
            raise BundleError(
                f"{path}: not a FAISS index ({str(error).splitlines()[0]}); export the run again."
            ) from None
