"""Histories to vectors by ONNX Runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recsys.errors import BundleError
from recsys.graph_session import graph_session
from recsys.index import FloatArray
from recsys.sequences import IntArray

INPUTS = {"items", "lengths", "tokens", "kinds", "features"}
MEMORY, NEW_MEMORY = ("keys", "values"), ("new_keys", "new_values")
EVENTS = 3
"""The axis of memory [N, 1, H, L, Dh] that grows."""


class ItemInputs(Protocol):
    """Tables with a row an item that some graphs are given beside the history."""

    def inputs(self) -> dict[str, np.ndarray]:
        """By their names in the graph."""
        ...


@dataclass(frozen=True)
class Encoding:
    """What was computed of one history: vectors [S, D] after 0, 1, ... reasoning steps, and what later events need.

    A model that does not reason has one vector; one that cannot go on has no memory.
    """

    vectors: FloatArray
    memory: tuple[FloatArray, ...] = ()

    def vector(self, steps: int | None = None) -> FloatArray:
        """The query [1, D] after so many reasoning steps, None for all."""
        return self.vectors[-1 if steps is None else steps][None]

    @property
    def nbytes(self) -> int:
        """Memory that its arrays take."""
        return self.vectors.nbytes + sum(part.nbytes for part in self.memory)


class Encoder:
    """A bundle's graphs; may be called from many threads, and computes in the caller's thread alone.

    `tables` are what a model that is made of texts is given beside the history; others may be put in their place.
    `most_steps` is how far its model reasons, 0 for one that does not; `step` is the graph that goes on from an encoded
    history, where the bundle has one.
    """

    def __init__(self, path: Path, step: Path | None = None, tables: ItemInputs | None = None) -> None:
        self.tables = tables
        self._session = graph_session(path)
        self._step = None if step is None else graph_session(step)
        outputs = {entry.name: entry.shape for entry in self._session.get_outputs()}
        self.most_steps: int = outputs["answers"][0] - 1 if "answers" in outputs else 0
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        if step is not None and not set(MEMORY) <= outputs.keys():
            raise BundleError(
                f"{step}: goes on from {', '.join(MEMORY)}, which {path.name} does not give; export the run again."
            )
        self._vectors = "answers" if self.most_steps else "vectors"
        if unknown := sorted(set(self._inputs) - INPUTS):
            raise BundleError(
                f"{path}: asks for {', '.join(unknown)}, and this version feeds {', '.join(sorted(INPUTS))} only; "
                "serve the bundle with the recsys version that exported it."
            )

    @property
    def goes_on(self) -> bool:
        """Whether an encoded history can be continued."""
        return self._step is not None

    def encode(self, rows: IntArray, tables: ItemInputs | None = None) -> Encoding:
        """One history of at least one item row, oldest first; over other `tables` than its own where given."""
        return self.encode_all([rows], tables)[0]

    def encode_all(self, histories: Sequence[IntArray], tables: ItemInputs | None = None) -> list[Encoding]:
        """Several such histories at once."""
        lengths = [len(rows) for rows in histories]
        items = np.zeros((len(histories), max(lengths)), dtype=np.int64)
        for row, history in zip(items, histories, strict=True):
            row[: len(history)] = history
        given = {"items": items, "lengths": np.array(lengths, dtype=np.int32)} | _inputs(tables or self.tables)
        outputs = [self._vectors, *(MEMORY if self._step else ())]
        encoded = self._session.run(outputs, {name: given[name] for name in self._inputs})
        return [_encoding(encoded, place, length) for place, length in enumerate(lengths)]

    def go_on(self, before: Encoding, row: int) -> Encoding:
        """The history of `before` with one event more; both stay usable."""
        assert self._step is not None
        inputs = {"item": np.array([row], dtype=np.int64), **dict(zip(MEMORY, before.memory, strict=True))}
        after = _encoding(self._step.run([self._vectors, *NEW_MEMORY], inputs | _inputs(self.tables)), 0, 1)
        both = zip(before.memory, after.memory, strict=True)
        return Encoding(after.vectors, tuple(np.concatenate(parts, axis=EVENTS) for parts in both))

    def steps_agree(self) -> bool:
        """Whether going on from a history of one event gives what encoding both at once does."""
        rows = np.array([1, 1], dtype=np.int64)
        try:
            by_step = self.go_on(self.encode(rows[:1]), 1).vectors
        except Exception:  # the runtime's own classes share no other base
            return False
        return np.allclose(by_step, self.encode(rows).vectors, rtol=1e-3, atol=1e-3)


def _inputs(tables: ItemInputs | None) -> dict[str, np.ndarray]:
    return {} if tables is None else tables.inputs()


def _encoding(outputs: list[Any], place: int, length: int) -> Encoding:
    """One history of `answers` [S, B, D] or `vectors` [B, D], then memory; a copy, or a part would keep it all."""
    vectors, *memory = outputs
    own = [vectors[:, place] if vectors.ndim == 3 else vectors[place][None]]
    own += [part[:, place : place + 1, :, :length] for part in memory]
    if len(vectors if vectors.ndim == 2 else vectors[0]) > 1:
        own = [part.copy() for part in own]
    return Encoding(own[0], tuple(own[1:]))
