"""A trained ranker becomes files of a bundle (see `recsys.stored_ranker`); needs torch, unlike reading them."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys.batches import Histories
from recsys.contracts import Ranker
from recsys.errors import BundleError
from recsys.export import write_graph
from recsys.index import FloatArray
from recsys.stored_ranker import RANKER_GRAPH, RankerCard, StoredRanker, UserKeys, save_ranker

RANKER_TOLERANCE = 1e-5
UNDECIDED = 1e-5
"""Events whose scores are as near as this may be kept or left, in whichever order numbers are added up."""
MOST_PLACES, MOST_CANDIDATES = 2**20, 2**16


@runtime_checkable
class RankerGraph(Protocol):
    """A ranker as the module that is exported; see `models.dare_graph`."""

    blocks: int
    """B: a user's events lie in so many."""
    kept: int
    """K: events that a candidate is ranked by."""
    recent: int
    """R: newest events that it is ranked by besides; 0 for a graph that does not ask for their places."""

    @property
    def least_places(self) -> int:
        """The smallest M that the graph takes."""
        ...

    def item_keys(self) -> Float[Tensor, "V S"]:
        """Keys of all item rows."""
        ...

    def place_scores(self) -> Float[Tensor, " P"]:
        """What each position adds to an event's score."""
        ...

    def attention(
        self, candidates: Int[Tensor, " C"], keys: Float[Tensor, "B M S"], place_scores: Float[Tensor, "B M"]
    ) -> Float[Tensor, "C N"]:
        """The scores by which events are kept, N = B * M."""
        ...


def write_ranker_files(folder: Path, graph: RankerGraph, card: RankerCard, log_share: FloatArray) -> None:
    """Writes every file of `recsys.stored_ranker.RANKER_FILES` into an existing folder."""
    export_ranker(graph, folder / RANKER_GRAPH)
    save_ranker(folder, card, graph.item_keys().numpy(), graph.place_scores().numpy(), log_share)


def export_ranker(graph: RankerGraph, path: Path) -> None:
    """Writes the graph for any number of candidates and events."""
    assert isinstance(graph, nn.Module)
    blocks, places, width = graph.blocks, graph.least_places + 1, graph.item_keys().shape[1]
    example = {
        "candidates": torch.ones(3, dtype=torch.int64),
        "events": torch.ones((blocks, places), dtype=torch.int64),
        "keys": torch.ones((blocks, places, width)),
        "place_scores": torch.zeros((blocks, places)),
        "positions": torch.ones((blocks, places), dtype=torch.int64),
    }
    events = {1: torch.export.Dim("places", min=graph.least_places, max=MOST_PLACES)}
    shapes: list[dict[int, Any]] = [{0: torch.export.Dim("asked", min=1, max=MOST_CANDIDATES)}, *[events] * 4]
    if graph.recent:
        example["latest"] = torch.zeros(graph.recent, dtype=torch.int64)
        shapes.append({})
    write_graph(graph, tuple(example.values()), list(example), ["logits"], tuple(shapes), path)


@torch.no_grad()
def check_ranker(
    graph: RankerGraph, ranker: Ranker, stored: StoredRanker, histories: Histories, candidates: Int[Tensor, "B C"]
) -> float:
    """Largest difference between the ranker and its files on histories of at least one event; refused if too large.

    Differences count relative to logits larger than 1. Candidates for which the last event kept and the first one left
    are worth the same, up to rounding, are passed over.
    """
    largest = 0.0
    for row in range(len(candidates)):
        history = histories.rows(slice(row, row + 1)).latest(ranker.max_len)
        user = stored.gathered(history.items[0, : int(history.lengths[0])].numpy())
        found = torch.from_numpy(stored.logits(user, candidates[row].numpy()))
        expected = ranker.score(history, candidates[row : row + 1])[0]
        difference = (expected - found).abs() / expected.abs().clamp(min=1)
        difference = difference[_decided(graph, stored, user, candidates[row])]
        largest = max(largest, float(difference.max()) if len(difference) else 0.0)
    if not largest <= RANKER_TOLERANCE:
        raise BundleError(
            f"{RANKER_GRAPH}: differs from torch by {largest:.2g} on {len(candidates)} histories (allowed: "
            f"{RANKER_TOLERANCE:.0e}); this ranker cannot be exported with the installed onnx."
        )
    return largest


def _decided(
    graph: RankerGraph, stored: StoredRanker, user: UserKeys, candidates: Int[Tensor, " C"]
) -> Bool[Tensor, " C"]:
    """Whether rounding cannot change which events are kept."""
    if user.length <= graph.kept:
        return torch.ones(len(candidates), dtype=torch.bool)
    inputs = stored.inputs(user)
    keys, place_scores = (torch.from_numpy(inputs[name]) for name in ("keys", "place_scores"))
    last, left = graph.attention(candidates, keys, place_scores).topk(graph.kept + 1).values[:, -2:].unbind(1)
    return (last - left) > UNDECIDED * last.abs().clamp(min=1)
