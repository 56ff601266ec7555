"""The second stage of a bundle: its files, and how they score candidates. Numpy and ONNX Runtime; no torch.

ranker.json    what it is, and how its scores join those of the first stage
ranker.onnx    candidates [C] i64 and a user's events -> logits [C]; the events lie in blocks [B, M], some places empty:
               events, positions i64, keys [B, M, S], place_scores f32 (-inf where empty), latest [R] i64
ranker.npz     keys f32[V, S] of all item rows; place_scores f32[P] of all positions; log_share f32[V], added to logits
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from recsys.errors import BundleError
from recsys.graph_session import graph_session
from recsys.index import FloatArray, RowArray

RANKER_CARD, RANKER_GRAPH, RANKER_ARRAYS = "ranker.json", "ranker.onnx", "ranker.npz"
RANKER_FILES = (RANKER_CARD, RANKER_GRAPH, RANKER_ARRAYS)
PAIRS_AT_ONCE = 1 << 20
"""Candidates times places that are compared at a time: their scores stay near to the processor."""
LEAST_AT_ONCE = 128
"""Candidates at a time in any case, for the keys are laid out anew for each part."""


@dataclass(frozen=True, kw_only=True)
class RankerCard:
    """Content of `ranker.json`.

    The retriever's best `candidates`, or as many as are asked for, are ranked after the latest `max_len` events; with
    fewer than `shortest` the retriever's order stands. `weight`: final score = retriever's + weight x ranker's; None:
    the ranker's alone. `blocks`, `least_places`, `recent`: B, the smallest M, and R of the graph.
    """

    name: str
    config: dict[str, Any]
    max_len: int
    blocks: int
    least_places: int
    recent: int
    candidates: int
    shortest: int
    weight: float | None


@dataclass(frozen=True)
class UserKeys:
    """Keys of a user's events, oldest first, at the start of longer arrays: `rows` [N'] and `keys` [N', S].

    What lies behind the first `length` counts for nothing, but has to be numbers.
    """

    rows: RowArray
    keys: FloatArray
    length: int


@runtime_checkable
class Session(Protocol):
    """What of ONNX Runtime's session is called."""

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> Sequence[Any]:
        """The named outputs."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoredRanker:
    """Scores candidates of one user at a time, in the caller's thread alone; may be shared between threads."""

    card: RankerCard
    keys: FloatArray
    place_scores: FloatArray
    log_share: FloatArray
    graph: Session

    @classmethod
    def load(cls, folder: Path) -> "StoredRanker":
        """What a bundle holds."""
        card = RankerCard(**json.loads((folder / RANKER_CARD).read_text(encoding="utf-8")))
        with np.load(folder / RANKER_ARRAYS) as stored:
            arrays = {name: stored[name] for name in ("keys", "place_scores", "log_share")}
        ranker = cls(card=card, graph=graph_session(folder / RANKER_GRAPH), **arrays)
        _check_fit(ranker, folder)
        return ranker

    @property
    def num_rows(self) -> int:
        """Item rows that it knows; it can say nothing of later ones."""
        return len(self.keys)

    def places(self, length: int) -> int:
        """Places that the arrays of a `UserKeys` of so many events must have at least."""
        blocks = self.card.blocks
        return blocks * max(self.card.least_places, -(-length // blocks))

    def gathered(self, rows: RowArray) -> UserKeys:
        """Keys of item rows, made anew."""
        padded = np.zeros(self.places(len(rows)), dtype=np.int64)
        padded[: len(rows)] = rows
        return UserKeys(padded, self.keys[padded], len(rows))

    def scores(self, user: UserKeys, candidates: RowArray) -> FloatArray:
        """Logits with the items' log share added, [C]: what `recsys.ranking.Reranker` sorts by."""
        return self.logits(user, candidates) + self.log_share[candidates]

    def logits(self, user: UserKeys, candidates: RowArray) -> FloatArray:
        """Of a click, [C]; at least one event, at most `max_len`, and candidates that are known rows."""
        inputs = self.inputs(user)
        parts = in_parts(candidates, inputs["events"].size)
        return np.concatenate([self.graph.run(["logits"], {"candidates": part} | inputs)[0] for part in parts])

    def inputs(self, user: UserKeys) -> dict[str, npt.NDArray[Any]]:
        """All that the graph is given beside candidates."""
        count, length, blocks = self.places(user.length), user.length, self.card.blocks
        positions = np.zeros(count, dtype=np.int64)
        positions[:length] = np.arange(length, 0, -1)
        place_scores = np.full(count, -np.inf, dtype=np.float32)
        place_scores[:length] = self.place_scores[length:0:-1]
        latest = np.arange(length - 1, length - 1 - self.card.recent, -1)
        inputs: dict[str, npt.NDArray[Any]] = {
            "events": user.rows[:count].reshape(blocks, -1),
            "keys": user.keys[:count].reshape(blocks, count // blocks, -1),
            "place_scores": place_scores.reshape(blocks, -1),
            "positions": positions.reshape(blocks, -1),
        }
        # a graph without a short branch does not ask for it
        return inputs | ({"latest": np.where(latest >= 0, latest, count - 1)} if self.card.recent else {})


def in_parts(candidates: RowArray, places: int) -> list[RowArray]:
    """Those that are compared with so many places at a time."""
    step = max(LEAST_AT_ONCE, PAIRS_AT_ONCE // places)
    return [candidates[first : first + step] for first in range(0, len(candidates), step)]


def save_ranker(
    folder: Path, card: RankerCard, keys: FloatArray, place_scores: FloatArray, log_share: FloatArray
) -> None:
    """Writes the files beside the graph."""
    np.savez(folder / RANKER_ARRAYS, keys=keys, place_scores=place_scores, log_share=log_share)
    (folder / RANKER_CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")


def _check_fit(ranker: StoredRanker, folder: Path) -> None:
    """A `BundleError` where the parts, each unaltered, do not belong together."""
    row = np.ones(1, dtype=np.int64)
    complaints = {
        f"{RANKER_ARRAYS} has {len(ranker.log_share)} shares and {ranker.num_rows} keys": len(ranker.log_share)
        != ranker.num_rows,
        f"{RANKER_ARRAYS} has {len(ranker.place_scores)} positions": len(ranker.place_scores)
        != ranker.card.max_len + 1,
    }
    if not any(complaints.values()):
        try:
            finite = np.isfinite(ranker.scores(ranker.gathered(row), row)).all()
        except Exception as error:  # the runtime's own classes share no other base
            complaints[f"{RANKER_GRAPH} does not read its inputs ({str(error).splitlines()[0]})"] = True
        else:
            complaints[f"{RANKER_GRAPH} gives scores that are not finite"] = not finite
    if found := [complaint for complaint, holds in complaints.items() if holds]:
        raise BundleError(f"{folder}: {', '.join(found)}; export the run again.")
