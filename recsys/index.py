"""Inner-product search over item vectors: the one place that knows FAISS."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt

from recsys.allowed import Allowed
from recsys.errors import BundleError

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]
Plan = Literal["few", "most", "selected"]
FEW, FEW_ROWS = 1 / 10, 10_000
"""Up to this share of all items, or so many, are compared one by one; see docs/serving-filters.md."""
MOST_FETCHED = 1 / 20
"""Beyond this share of all items, fetching what is then dropped costs more than asking for each whether it may."""
SPARE = 1.5


def use_one_thread() -> None:
    """Searches compute in the calling thread alone: a service brings its own threads."""
    faiss.omp_set_num_threads(1)


@dataclass(frozen=True)
class ItemIndex:
    """Search by inner product; item row r is vector r - 1 of the FAISS index, so that padding can never be found.

    `index` is exact. Where there is an `approximate` one too, it answers what is asked of all items; few of them are
    always searched exactly.
    """

    index: faiss.Index
    approximate: faiss.Index | None = None

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
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self.approximate is not None and (found := _of_more(self.approximate, queries, k, barred)) is not None:
            return found
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(barred))
        parameters = faiss.SearchParameters(sel=selector) if len(barred) else None  # type: ignore[call-arg]  # stubs lag
        scores, places = self.index.search(queries, k, params=parameters)
        return places + 1, scores

    def plan(self, allowed: Allowed, k: int) -> Plan:
        """How the `k` best of the allowed rows are found the fastest: `few` are compared one by one; where `most` are
        allowed, more than `k` are fetched of all and others dropped; else each vector is asked for whether it may.
        """
        if allowed.count <= max(FEW * self.num_items, FEW_ROWS):
            return "few"
        return "most" if _fetched(allowed, k, self.num_items) <= MOST_FETCHED * self.num_items else "selected"

    def search_within(
        self, query: FloatArray, k: int, allowed: Allowed, excluded: RowArray, plan: Plan | None = None
    ) -> tuple[RowArray, FloatArray]:
        """Rows and scores [k'], best first, of the k best allowed items not in `excluded`, for one `query` [1, D].

        Every `plan` gives the same answer.
        """
        plan = plan or self.plan(allowed, k)
        if plan == "few":
            return self._of_few(query, k, allowed, excluded)
        if plan == "most" and (found := self._of_most(query, k, allowed, excluded)) is not None:
            return found
        return self._selected(query, k, allowed, excluded)

    def _of_few(self, query: FloatArray, k: int, allowed: Allowed, excluded: RowArray) -> tuple[RowArray, FloatArray]:
        barred = _barred(allowed, excluded)
        rows = np.delete(allowed.rows, np.searchsorted(allowed.rows, barred)) if len(barred) else allowed.rows
        scores = self._stored[rows - 1] @ query[0]
        if k < len(rows):
            best = np.argpartition(-scores, k)[:k]
            rows, scores = rows[best], scores[best]
        order = np.argsort(-scores, kind="stable")
        return rows[order], scores[order]

    def _of_most(
        self, query: FloatArray, k: int, allowed: Allowed, excluded: RowArray
    ) -> tuple[RowArray, FloatArray] | None:
        """None where the best of all hold too few of them: those that are wanted are not those that are allowed."""
        fetched = min(self.num_items, _fetched(allowed, k, self.num_items) + len(excluded))
        (rows,), (scores,) = self.search(query, fetched)
        kept = np.flatnonzero(allowed.mask[rows])
        kept = kept[~np.isin(rows[kept], excluded)][:k]
        return (rows[kept], scores[kept]) if len(kept) == k or fetched == self.num_items else None

    def _selected(self, query: FloatArray, k: int, allowed: Allowed, excluded: RowArray) -> tuple[RowArray, FloatArray]:
        places = _barred(allowed, excluded) - 1
        k = min(k, allowed.count - len(places))
        if k <= 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        bits = allowed.bits.copy()
        np.bitwise_and.at(bits, places >> 3, ~(np.uint8(1) << (places & 7).astype(np.uint8)))
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))  # type: ignore[call-arg, arg-type]  # stubs lag
        (scores,), (found,) = self.index.search(np.ascontiguousarray(query, dtype=np.float32), k, params=parameters)
        return found + 1, scores

    @cached_property
    def _stored(self) -> FloatArray:
        """The vectors where FAISS keeps them, [V - 1, D]; not a copy."""
        first = faiss.downcast_index(self.index).get_xb()  # type: ignore[attr-defined]  # stubs lag
        return faiss.rev_swig_ptr(first, self.num_items * self.width).reshape(self.num_items, self.width)

    def vectors(self, rows: RowArray) -> FloatArray:
        """Stored vectors [len(rows), D]."""
        return self._stored[rows - 1]

    def save(self, path: Path) -> None:
        """Writes FAISS's own format."""
        faiss.write_index(self.index, str(path))

    @classmethod
    def load(cls, path: Path, approximate: Path | None = None) -> "ItemIndex":
        """What `save` wrote, and an index of the same items in FAISS's format; both stay on disk, mapped to memory."""
        return cls(_read(path), None if approximate is None else _read(approximate))


def _read(path: Path) -> faiss.Index:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise BundleError(f"{path}: not a FAISS index ({str(error).splitlines()[0]}); export the run again.") from None


def _of_more(index: faiss.Index, queries: FloatArray, k: int, barred: RowArray) -> tuple[RowArray, FloatArray] | None:
    """The `k` best places but for `barred` ones, rows of them; None where a search did not bring enough."""
    scores, places = index.search(queries, min(k + len(barred), index.ntotal))
    kept = (places >= 0) & ~np.isin(places, barred)
    if (kept.sum(axis=1) < k).any():
        return None
    first = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(places, first, axis=1) + 1, np.take_along_axis(scores, first, axis=1)


def _barred(allowed: Allowed, excluded: RowArray) -> RowArray:
    """Which of the allowed rows are excluded, ascending."""
    return np.unique(excluded[allowed.mask[excluded]])


def _fetched(allowed: Allowed, k: int, num_items: int) -> int:
    """Of all items so many, that were the allowed ones spread evenly, `k` of them would be there with some to spare."""
    return int(SPARE * k * num_items / max(allowed.count, 1)) + 20


def of_length_one(vectors: FloatArray) -> FloatArray:
    """Each row scaled, for cosines; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
