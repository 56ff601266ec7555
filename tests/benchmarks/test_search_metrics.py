"""NDCG of a search against its definition, row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.search_metrics import search_ndcg_at_k


def by_definition(gains: list[float], order: list[int], k: int) -> float:
    """A sum over ranks, over the same for the best order."""

    def total(values: list[float]) -> float:
        return sum(value / np.log2(1 + rank) for rank, value in enumerate(values[:k], start=1))

    return total([gains[place] for place in order]) / total(sorted(gains, reverse=True))


def row(values: list[float]) -> np.ndarray:
    """One search."""
    return np.array([values], dtype=np.float64)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 10), st.randoms(use_true_random=False))
def test_it_equals_its_definition(gains: list[int], k: int, random: object) -> None:
    order = list(range(len(gains)))
    random.shuffle(order)  # type: ignore[attr-defined]
    priorities = np.zeros((1, len(gains)))
    priorities[0, order] = -np.arange(len(gains))
    found = search_ndcg_at_k(row(gains), priorities, np.ones((1, len(gains)), dtype=bool), k)[0]
    if not any(gains):
        assert np.isnan(found)
    else:
        assert found == pytest.approx(by_definition(gains, order, k))


def test_what_is_not_visible_is_neither_found_nor_missed() -> None:
    gains, priorities = row([9, 1, 2, 0]), row([9, 2, 1, 0])
    visible = np.array([[False, True, True, True]])
    discount = 1 / np.log2(3)
    assert search_ndcg_at_k(gains, priorities, visible, 2)[0] == pytest.approx((1 + 2 * discount) / (2 + discount))
    assert search_ndcg_at_k(gains, priorities, visible, 1)[0] == pytest.approx(1 / 2)
    assert np.isnan(search_ndcg_at_k(gains, priorities, np.zeros((1, 4), dtype=bool), 2)[0])
