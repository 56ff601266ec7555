"""The exported form of a ranker: equal to `score`, in torch and in ONNX Runtime, whatever the search keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rankers import NUM_ITEMS, ranker, scrambled
from tiny import histories_of, random_histories
from torch.testing import assert_close

from models.dare_graph import BLOCKS, SERVED, DAREGraph, best_by_blocks
from recsys.errors import BundleError, ConfigError
from recsys.ranker_export import check_ranker, write_ranker_files
from recsys.stored_ranker import RANKER_ARRAYS, RANKER_GRAPH, RankerCard, StoredRanker

LAYOUTS: list[dict[str, Any]] = [
    *({"method": method} for method in SERVED),
    {"recent": 3, "attention_dim": 2},
    {"recent": 3 * BLOCKS, "kept": 2, "target_aware": False},
    {"num_categories": 0, "kept": 1},
]


def graph_of(**options: Any) -> DAREGraph:
    """A small one with large weights, which reads up to 40 events."""
    return DAREGraph(scrambled(ranker(**{"time_buckets": 0, "max_len": 40} | options)))


class Unexported:
    """Stands for the session of a graph: torch answers, which takes no seconds to begin."""

    def __init__(self, graph: DAREGraph) -> None:
        self.graph = graph

    def run(self, _: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [self.graph(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()]


def card_of(graph: DAREGraph, **settings: Any) -> RankerCard:
    """As an export makes it."""
    sizes: dict[str, Any] = {name: getattr(graph, name) for name in ("blocks", "least_places", "recent")}
    return RankerCard(**sizes | CARD | {"max_len": graph.config.max_len} | settings)


CARD: dict[str, Any] = {"name": "dare", "config": {}, "candidates": 500, "shortest": 1, "weight": None}
SHARES = np.arange(NUM_ITEMS + 1, dtype=np.float32) / 10


def unexported(graph: DAREGraph) -> StoredRanker:
    """What would be read, but for the graph; the log share of row r is r / 10."""
    return StoredRanker(
        card=card_of(graph),
        keys=graph.item_keys().numpy(),
        place_scores=graph.place_scores().numpy(),
        log_share=SHARES,
        graph=Unexported(graph),
    )


def exported(graph: DAREGraph, folder: Path) -> StoredRanker:
    """Written and read again."""
    write_ranker_files(folder, graph, card_of(graph), SHARES)
    return StoredRanker.load(folder)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_keys_and_graph_score_as_the_model_does(layout: dict[str, Any]) -> None:
    """Histories of one event to as many as are read, fewer than are kept and more."""
    graph = graph_of(**layout)
    assert_scores_like_torch(graph, unexported(graph))


@pytest.mark.parametrize("layout", [{}, {"recent": 3, "attention_dim": 2}], ids=["dare", "with a short branch"])
def test_what_is_stored_scores_as_the_model_does(layout: dict[str, Any], tmp_path: Path) -> None:
    graph = graph_of(**layout)
    assert_scores_like_torch(graph, exported(graph, tmp_path))


def assert_scores_like_torch(graph: DAREGraph, ranker_files: StoredRanker) -> None:
    lengths = [1, 2, 4, 5, 17, 39, 40]
    candidates = torch.arange(1, NUM_ITEMS + 1)
    for length in lengths:
        history = histories_of(random_histories(1, NUM_ITEMS, length, seed=length, shortest=length))
        with torch.no_grad():
            expected = graph.model.score(history, candidates[None])[0].numpy()
        user = ranker_files.gathered(history.items[0].numpy())
        np.testing.assert_allclose(ranker_files.logits(user, candidates.numpy()), expected, rtol=1e-5, atol=1e-5)
        scores = ranker_files.scores(user, candidates.numpy())
        np.testing.assert_allclose(scores, expected + SHARES[1:], rtol=1e-5, atol=1e-5)


def test_candidates_in_several_parts_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker_files = unexported(graph_of())
    user = ranker_files.gathered(np.array([3, 1, 4, 1, 5, 9, 2, 6]))
    candidates = np.arange(1, NUM_ITEMS + 1)
    at_once = ranker_files.scores(user, candidates)
    monkeypatch.setattr("recsys.stored_ranker.PAIRS_AT_ONCE", 7 * len(user.rows))
    monkeypatch.setattr("recsys.stored_ranker.LEAST_AT_ONCE", 3)
    np.testing.assert_allclose(ranker_files.scores(user, candidates), at_once, rtol=1e-5, atol=1e-5)


def test_what_lies_behind_a_users_events_counts_for_nothing() -> None:
    """Arrays may be longer than they need to be, and hold later events behind one's own."""
    ranker_files = unexported(graph_of(recent=2))
    rows, candidates = np.array([3, 1, 4, 1, 5]), np.arange(1, NUM_ITEMS + 1)
    alone = ranker_files.gathered(rows)
    longer = ranker_files.gathered(np.tile([*rows, 9], 40))
    np.testing.assert_allclose(
        ranker_files.scores(type(longer)(longer.rows, longer.keys, len(rows)), candidates),
        ranker_files.scores(alone, candidates),
        rtol=1e-5,
        atol=1e-5,
    )


@settings(max_examples=50)
@given(st.integers(1, 5), st.integers(0, 6), st.integers(1, 6), st.data())
def test_the_best_by_blocks_are_the_best(most: int, more: int, blocks: int, data: st.DataObject) -> None:
    """Few different values on purpose: which of equal ones is taken does not matter."""
    places = blocks * (most + more)
    values = data.draw(st.lists(st.integers(0, 9), min_size=places, max_size=places))
    scores = torch.tensor([values, values[::-1]], dtype=torch.float32)
    best, found = best_by_blocks(scores, blocks, most)
    assert_close(best.sort(descending=True).values, scores.sort(descending=True).values[:, :most])
    assert_close(scores.gather(1, found), best)
    assert all(len(set(row)) == most for row in found.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "din"},
            r"model\.method=din searches otherwise than by attention to single events; the service ranks",
        ),
        ({"method": "twin-v2"}, r"ranks by dare, twin, twin-projected, twin-4e"),
        ({"time_buckets": 9}, r"model\.time_buckets=9 asks for times of events, and the service keeps none yet"),
    ],
)
def test_what_cannot_be_served_says_what_can(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        graph_of(**options)


def test_a_graph_of_other_weights_is_found_out() -> None:
    graph = graph_of()
    ranker_files = unexported(graph)
    histories = histories_of(random_histories(6, NUM_ITEMS, 20))
    candidates = torch.arange(1, 8).expand(6, -1)
    assert 0 < check_ranker(graph, graph.model, ranker_files, histories, candidates) < 1e-5
    other = scrambled(ranker(time_buckets=0, max_len=40), seed=1)
    with pytest.raises(BundleError, match=r"ranker\.onnx: differs from torch by .* on 6 histories \(allowed: 1e-05\)"):
        check_ranker(graph, other, ranker_files, histories, candidates)


def test_events_that_are_worth_the_same_are_no_difference() -> None:
    """Positions that say nothing: of a repeated item as many may be kept as there is room for, whichever they are."""
    graph = graph_of(kept=2)
    with torch.no_grad():
        for tables in graph.model.tables.values():
            tables.positions.weight[1:] = tables.positions.weight[1]
            tables.items.weight[8] = tables.items.weight[7]
        graph.model.tables["representation"].items.weight[8] += 5
        graph.model.learn_categories(torch.zeros(NUM_ITEMS + 1, dtype=torch.int64))
    ranker_files = unexported(graph)
    histories = histories_of([[7, 8, 7, 8, 7, 8], [1, 2, 3, 4, 5, 6]])
    assert check_ranker(graph, graph.model, ranker_files, histories, torch.arange(1, 12).expand(2, -1)) < 1e-5


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    ranker_files = exported(graph_of(), tmp_path)
    arrays = {"keys": ranker_files.keys, "place_scores": ranker_files.place_scores, "log_share": ranker_files.log_share}
    cases = {
        "has 3 shares and 30 keys": {"log_share": arrays["log_share"][:3]},
        "has 40 positions": {"place_scores": arrays["place_scores"][1:]},
        "ranker.onnx does not read its inputs": {"keys": arrays["keys"][:, 1:]},
        "gives scores that are not finite": {"log_share": np.full(30, np.nan, dtype=np.float32)},
    }
    for message, wrong in cases.items():
        np.savez(tmp_path / RANKER_ARRAYS, **arrays | wrong)
        with pytest.raises(BundleError, match=message):
            StoredRanker.load(tmp_path)
    (tmp_path / RANKER_GRAPH).write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"ranker\.onnx: ONNX Runtime cannot load it"):
        StoredRanker.load(tmp_path)
