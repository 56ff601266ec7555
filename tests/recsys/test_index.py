"""FAISS returns what numpy sorts; only the order of equal scores may differ."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import BundleError
from recsys.index import ItemIndex

SMALL = st.integers(-2, 2)  # exact in float32, and full of ties


def matrix(data: st.DataObject, rows: int, width: int) -> np.ndarray:
    """Drawn whole numbers as float32."""
    drawn = data.draw(st.lists(st.lists(SMALL, min_size=width, max_size=width), min_size=rows, max_size=rows))
    return np.array(drawn, dtype=np.float32).reshape(rows, width)


@given(st.data(), st.integers(2, 14), st.integers(1, 4), st.integers(1, 3), st.integers(1, 16))
def test_search_equals_a_sort(data: st.DataObject, num_rows: int, width: int, users: int, k: int) -> None:
    vectors, queries = matrix(data, num_rows, width), matrix(data, users, width)
    vectors[0] = 99 * queries.sum(axis=0)  # padding would win where it could
    excluded = data.draw(st.lists(st.integers(1, num_rows - 1), max_size=num_rows + 2))
    allowed = sorted(set(range(1, num_rows)) - set(excluded))
    rows, scores = ItemIndex.build(vectors).search(queries, k, np.array(excluded, dtype=np.int64))
    for query, found, values in zip(queries, rows.tolist(), scores.tolist(), strict=True):
        exact = {row: float(vectors[row] @ query) for row in allowed}
        best = np.array(allowed)[np.argsort([-exact[row] for row in allowed], kind="stable")][:k] if allowed else []
        assert len(set(found)) == len(found)
        assert set(found) <= set(allowed)
        assert values == [exact[row] for row in found] == [exact[row] for row in best]


def test_rows_are_those_of_the_catalogue() -> None:
    index = ItemIndex.build(np.diag([9.0, 1, 2, 3]).astype(np.float32))
    assert (index.num_items, index.width) == (3, 4)
    rows, scores = index.search(np.ones((1, 4), dtype=np.float32), 2)
    assert (rows.tolist(), scores.tolist()) == ([[3, 2]], [[3, 2]])
    assert index.vectors(np.array([1, 3])).tolist() == [[0, 1, 0, 0], [0, 0, 0, 3]]


def test_k_beyond_the_catalogue_returns_all_of_it() -> None:
    index = ItemIndex.build(np.arange(6, dtype=np.float32).reshape(6, 1))
    rows, _ = index.search(np.ones((2, 1), dtype=np.float32), 50)
    assert rows.tolist() == [[5, 4, 3, 2, 1]] * 2
    rows, _ = index.search(np.ones((2, 1), dtype=np.float32), 50, np.array([4, 4, 1]))
    assert rows.tolist() == [[5, 3, 2]] * 2


def test_nothing_is_found_where_everything_is_excluded() -> None:
    index = ItemIndex.build(np.ones((3, 2), dtype=np.float32))
    rows, scores = index.search(np.ones((4, 2), dtype=np.float32), 5, np.array([2, 1]))
    assert rows.shape == scores.shape == (4, 0)


def test_random_vectors_are_ranked_as_by_numpy() -> None:
    rng = np.random.default_rng(2)
    vectors, queries = rng.normal(size=(501, 17)).astype(np.float32), rng.normal(size=(23, 17)).astype(np.float32)
    rows, scores = ItemIndex.build(vectors).search(queries, 500)
    exact = queries.astype(np.float64) @ vectors[1:].astype(np.float64).T
    assert (rows == np.argsort(-exact, axis=1) + 1).mean() > 0.999  # float32 may swap near ties
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1), atol=1e-5)


def test_saved_equals_loaded(tmp_path: Path) -> None:
    index = ItemIndex.build(np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32))
    index.save(tmp_path / "index.faiss")
    rows = np.arange(1, 9)
    assert (ItemIndex.load(tmp_path / "index.faiss").vectors(rows) == index.vectors(rows)).all()


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.faiss").write_bytes(b"not an index at all")
    with pytest.raises(BundleError, match=r"index\.faiss: not a FAISS index \(.*\); export the run again"):
        ItemIndex.load(tmp_path / "index.faiss")
