"""Indexes for large catalogues: as good as they say, chosen by what was measured, and searched as the exact one is."""

from pathlib import Path

import numpy as np
import pytest

from recsys.allowed import Allowed
from recsys.approximate import APPROXIMATE, IndexChoice, IndexKind, choose_index
from recsys.errors import GateError
from recsys.index import ItemIndex

NUM_ITEMS, WIDTH = 3_000, 12


def clustered(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Vectors around thirty centres, as those of models are."""
    centres = np.random.default_rng(0).normal(size=(30, WIDTH))
    return (centres[rng.integers(0, 30, rows)] + 0.4 * rng.normal(size=(rows, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module")
def exact() -> ItemIndex:
    return ItemIndex.build(clustered(np.random.default_rng(1), NUM_ITEMS + 1))


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(np.random.default_rng(2), 80)


@pytest.fixture(scope="module", params=APPROXIMATE)
def index(request, exact, queries) -> ItemIndex:
    """Each kind beside the exact one."""
    return ItemIndex(exact.index, choose_index(IndexChoice(kind=request.param), exact, queries).index)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_index_is_as_good_as_it_says(kind: IndexKind, exact: ItemIndex, queries: np.ndarray) -> None:
    """Other histories than those it was chosen and measured by; recall counted by hand."""
    chosen = choose_index(IndexChoice(kind=kind), exact, queries)
    assert (chosen.best.kind, len(chosen.tried)) == (kind, 1)
    assert chosen.best.recall >= 0.99
    others = clustered(np.random.default_rng(3), 60)
    scores = others @ exact.vectors(np.arange(1, NUM_ITEMS + 1)).T
    best = np.argsort(-scores, axis=1)[:, :100]
    _, found = chosen.index.search(others, 100)
    recall = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(best.tolist(), found.tolist(), strict=True)])
    assert recall >= 0.97


def test_up_to_a_size_exact_search_is_all_there_is() -> None:
    assert IndexChoice().kinds(200_000) == ()
    assert IndexChoice().kinds(200_001) == APPROXIMATE
    assert IndexChoice(kind="flat").kinds(10**7) == ()
    assert IndexChoice(kind="hnsw").kinds(10) == ("hnsw",)


def test_beyond_it_the_fastest_that_is_good_enough_is_taken(exact: ItemIndex, queries: np.ndarray) -> None:
    chosen = choose_index(IndexChoice(exact_up_to=2_999), exact, queries)
    assert [one.kind for one in chosen.tried] == list(APPROXIMATE)
    good = [one for one in chosen.tried if one.recall >= 0.99]
    assert chosen.best == min(good, key=lambda one: one.milliseconds)
    assert chosen.as_dict()["tried"][0]["factory"] == "IVF76,Flat"


def test_where_none_is_good_enough_the_gate_says_no(exact: ItemIndex, queries: np.ndarray) -> None:
    choice = IndexChoice(kind="ivf", least_recall=1.5)
    with pytest.raises(GateError, match=r"no index reaches recall@100 1\.5 on 80 histories \(ivf 1\.0000\)"):
        choose_index(choice, exact, queries)
    with pytest.raises(GateError, match="no history to measure an index by"):
        choose_index(IndexChoice(kind="ivf"), exact, queries[:1])


def test_excluded_items_are_not_found_and_give_their_places_to_others(index: ItemIndex, exact: ItemIndex) -> None:
    rng, recalls = np.random.default_rng(5), []
    for query in clustered(rng, 20)[:, None]:
        best, _ = exact.search(query, 150)
        excluded = rng.permutation(best[0])[:60]
        rows, scores = index.search(query, 50, np.append(excluded, 0))
        expected, _ = exact.search(query, 50, excluded)
        assert rows.shape == scores.shape == (1, 50)
        assert not set(rows[0].tolist()) & {0, *excluded.tolist()}
        np.testing.assert_allclose(scores[0], exact.vectors(rows[0]) @ query[0], atol=1e-4)
        assert (np.diff(scores[0]) <= 0).all()
        recalls.append(len(set(rows[0].tolist()) & set(expected[0].tolist())) / 50)
    assert np.mean(recalls) >= 0.97


def test_what_it_does_not_bring_an_exact_search_does(exact: ItemIndex, queries: np.ndarray) -> None:
    """An index of lists looks into some of them only."""
    index = ItemIndex(exact.index, choose_index(IndexChoice(kind="ivf"), exact, queries).index)
    rows, _ = index.search(queries[:1], NUM_ITEMS - 1)
    assert len(set(rows[0].tolist())) == NUM_ITEMS - 1
    few, _ = index.search(queries[:1], 10, np.arange(1, NUM_ITEMS - 4))
    assert sorted(few[0].tolist()) == [NUM_ITEMS - 4, NUM_ITEMS - 3, NUM_ITEMS - 2, NUM_ITEMS - 1, NUM_ITEMS]


def test_few_allowed_items_are_searched_exactly(index: ItemIndex, exact: ItemIndex) -> None:
    rng = np.random.default_rng(6)
    for query in clustered(rng, 20)[:, None]:
        mask = rng.random(NUM_ITEMS + 1) < 0.02
        mask[0] = False
        none = np.empty(0, dtype=np.int64)
        found, scores = index.search_within(query, 20, Allowed(mask), none)
        by_hand = np.sort(exact.vectors(np.flatnonzero(mask)) @ query[0])[::-1][:20]
        np.testing.assert_allclose(scores, by_hand, atol=1e-4)
        assert mask[found].all()


def test_saved_equals_loaded(index: ItemIndex, queries: np.ndarray, tmp_path: Path) -> None:
    index.save(tmp_path / "index.faiss")
    ItemIndex(index.approximate).save(tmp_path / "approximate.faiss")
    loaded = ItemIndex.load(tmp_path / "index.faiss", tmp_path / "approximate.faiss")
    for kept, read in zip(index.search(queries, 30), loaded.search(queries, 30), strict=True):
        np.testing.assert_array_equal(kept, read)
