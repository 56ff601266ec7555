"""Metrics against figures worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.metrics import case_metrics, hit_rate_at_k, list_metrics, mrr_at_k, ndcg_at_k, percentiles


def test_ndcg_of_single_places() -> None:
    # the figures of the SASRec sheet, whose ranks begin at 0: 0, 1, 9 and 10
    assert ndcg_at_k(np.array([1, 2, 10, 11]), 10).round(4).tolist() == [1, 0.6309, 0.2891, 0]


def test_reciprocal_ranks_and_hits_of_single_places() -> None:
    ranks = np.array([1, 2, 4, 5])
    assert mrr_at_k(ranks, 4).tolist() == [1, 0.5, 0.25, 0]
    assert hit_rate_at_k(ranks, 4).tolist() == [1, 1, 1, 0]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 30))
def test_metrics_equal_their_definitions(ranks: list[int], k: int) -> None:
    values = case_metrics(np.array(ranks), (k,))
    relevance = [[place == rank for place in range(1, k + 1)] for rank in ranks]
    by_hand = {
        "ndcg": [sum(hit / math.log2(place + 2) for place, hit in enumerate(row)) for row in relevance],
        "hit_rate": [sum(row) for row in relevance],
        "mrr": [sum(hit / (place + 1) for place, hit in enumerate(row)) for row in relevance],
    }
    assert values.keys() == {f"{name}@{k}" for name in by_hand}
    for name, expected in by_hand.items():
        assert values[f"{name}@{k}"] == pytest.approx(expected)


def test_what_lists_do_to_the_catalogue() -> None:
    # four items with 3, 0, 1, 0 training events; two lists of two: items 1 and 3, items 1 and 2
    figures = list_metrics(np.array([0, 2, 1, 1, 0]), np.array([50, 3, 0, 1, 0]), 2)
    shares = [4 / 8, 1 / 8, 2 / 8, 1 / 8]  # (events + 1) / (4 events + 4 items)
    assert figures == pytest.approx({
        "coverage@2": 3 / 4,
        "novelty@2": -(2 * math.log2(shares[0]) + math.log2(shares[1]) + math.log2(shares[2])) / 4,
        # two items without events share the lower half: mid-rank 1 of 4; then 2.5 of 4 and 3.5 of 4
        "popularity_bias@2": (2 * 3.5 / 4 + 1 / 4 + 2.5 / 4) / 4,
    })


def test_lists_of_nothing_have_no_figures_but_zero() -> None:
    assert set(list_metrics(np.zeros(4, dtype=np.int64), np.array([0, 1, 2, 3]), 5).values()) == {0.0}


def test_random_lists_are_as_popular_as_the_catalogue_and_the_top_is_at_the_top() -> None:
    counts = np.arange(101)
    everything, best = np.ones(101, dtype=np.int64), (counts == 100).astype(np.int64)
    assert list_metrics(everything, counts, 5)["popularity_bias@5"] == pytest.approx(0.5)
    assert list_metrics(best, counts, 5)["popularity_bias@5"] == pytest.approx(0.995)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_percentiles_equal_a_count(values: list[int]) -> None:
    by_hand = [
        (sum(other < value for other in values) + sum(other == value for other in values) / 2) / len(values)
        for value in values
    ]
    assert percentiles(np.array(values)) == pytest.approx(by_hand)
