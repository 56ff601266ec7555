"""Indexes for large catalogues: built, searched the more thoroughly until they find what an exact search finds.

Of the queries every second one decides how thorough a search must be, the others say what was reached by it. Recall@100
is the share of the 100 best scores that were found, so that equal scores are not told apart.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import faiss
import numpy as np

from recsys.errors import GateError
from recsys.index import FloatArray, ItemIndex, use_one_thread

IndexKind = Literal["auto", "flat", "ivf", "hnsw", "ivfpq"]
APPROXIMATE: tuple[IndexKind, ...] = ("ivf", "hnsw", "ivfpq")
DEPTH = 100
POINTS_A_LIST = 39
"""FAISS wants so many vectors to find the centre of each list."""
REFINED = 4
"""Of an index of short codes so many times as many items are looked at exactly."""
EASIEST, HARDEST = 8, 4_096


@dataclass(frozen=True, kw_only=True)
class IndexChoice:
    """Which index a bundle gets; `auto`: none beside the exact one up to `exact_up_to` items, then the fastest."""

    kind: IndexKind = "auto"
    exact_up_to: int = 200_000
    least_recall: float = 0.99

    def kinds(self, num_items: int) -> tuple[IndexKind, ...]:
        """Those to try."""
        if self.kind == "auto":
            return () if num_items <= self.exact_up_to else APPROXIMATE
        return () if self.kind == "flat" else (self.kind,)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What one index reached: recall@100 on queries that it was not chosen by, and a query's time in one thread."""

    kind: IndexKind
    factory: str
    parameter: str
    value: int
    recall: float
    milliseconds: float
    build_seconds: float


@dataclass(frozen=True)
class Chosen:
    """The fastest of all that were good enough, and what all reached."""

    index: Any
    best: Tried
    tried: list[Tried]

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self.best), "tried": [asdict(one) for one in self.tried]}


def choose_index(choice: IndexChoice, exact: ItemIndex, queries: FloatArray) -> Chosen:
    """Of the kinds to try, where there are any; a `GateError` where none is good enough."""
    use_one_thread()
    if len(queries) < 2:
        raise GateError("export: no history to measure an index by; export with --index flat.")
    tried = [_tried(kind, exact, queries, choice.least_recall) for kind in choice.kinds(exact.num_items)]
    good = [pair for pair in tried if pair[1].recall >= choice.least_recall]
    if not good:
        reached = ", ".join(f"{one.kind} {one.recall:.4f}" for _, one in tried)
        raise GateError(
            f"export: no index reaches recall@{DEPTH} {choice.least_recall} on {len(queries)} histories ({reached}); "
            "export with --index flat, which is exact."
        )
    index, best = min(good, key=lambda pair: pair[1].milliseconds)
    return Chosen(index, best, [one for _, one in tried])


def _tried(kind: IndexKind, exact: ItemIndex, queries: FloatArray, least: float) -> tuple[Any, Tried]:
    """The index, as thorough as it must be; or as it can be."""
    began = time.perf_counter()
    index, factory, parameter = _built(kind, exact)
    built = time.perf_counter() - began
    deciding, telling = queries[::2], queries[1::2]
    worst_of_deciding, worst_of_telling = _worst_of_the_best(exact, deciding), _worst_of_the_best(exact, telling)
    for value in _thoroughness():
        _set(index, parameter, value)
        if _recall(index, deciding, worst_of_deciding) < least and value < HARDEST:
            continue
        began = time.perf_counter()
        recall = _recall(index, telling, worst_of_telling)
        taken = (time.perf_counter() - began) / len(telling)
        if recall >= least:
            break
    return index, Tried(
        kind=kind,
        factory=factory,
        parameter=parameter,
        value=value,
        recall=recall,
        milliseconds=taken * 1e3,
        build_seconds=built,
    )


def _built(kind: IndexKind, exact: ItemIndex) -> tuple[Any, str, str]:
    """The index of all vectors, its name in FAISS, and what makes a search of it thorough."""
    lists = max(1, min(int(4 * math.sqrt(exact.num_items)), exact.num_items // POINTS_A_LIST))
    codes = exact.width // 2 if exact.width % 2 == 0 else exact.width
    factory, parameter = {
        "ivf": (f"IVF{lists},Flat", "nprobe"),
        "hnsw": ("HNSW32,Flat", "efSearch"),
        "ivfpq": (f"IVF{lists},PQ{codes}x4fs,RFlat", "nprobe"),
    }[kind]
    vectors = exact.vectors(np.arange(1, exact.num_items + 1))
    index = faiss.index_factory(exact.width, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    if kind == "ivfpq":
        _set(index, "k_factor_rf", REFINED)
    return index, factory, parameter


def _set(index: Any, parameter: str, value: int) -> None:
    space = faiss.ParameterSpace()
    space.initialize(index)
    space.set_index_parameter(index, parameter, value)


def _thoroughness() -> Iterator[int]:
    value = EASIEST
    while value <= HARDEST:
        yield value
        value *= 2


def _worst_of_the_best(exact: ItemIndex, queries: FloatArray) -> FloatArray:
    """[B], the score that is just good enough; a little less, for sums of another order."""
    _, scores = exact.search(queries, DEPTH)
    worst = scores[:, -1]
    return (worst - 1e-5 * np.abs(worst)).astype(np.float32)


def _recall(index: Any, queries: FloatArray, worst: FloatArray) -> float:
    found, rows = index.search(queries, min(DEPTH, index.ntotal))
    return float(((found >= worst[:, None]) & (rows >= 0)).mean())
