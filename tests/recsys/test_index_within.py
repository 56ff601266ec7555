"""Searching among allowed items: every plan answers as a sort of the allowed items does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.allowed import Allowed
from recsys.index import ItemIndex, Plan

SMALL = st.integers(-2, 2)  # exact in float32, and full of ties
PLANS: tuple[Plan, ...] = ("few", "most", "selected")


def allowed_of(num_rows: int, rows: list[int]) -> Allowed:
    return Allowed(np.isin(np.arange(num_rows), rows))


@given(st.data(), st.integers(2, 40), st.integers(1, 3), st.integers(1, 45))
def test_every_plan_equals_a_sort(data: st.DataObject, num_rows: int, width: int, k: int) -> None:
    drawn = data.draw(st.lists(SMALL, min_size=num_rows * width, max_size=num_rows * width))
    vectors = np.array(drawn, dtype=np.float32).reshape(num_rows, width)
    query = np.array([data.draw(st.lists(SMALL, min_size=width, max_size=width))], dtype=np.float32)
    vectors[0] = 99 * query[0]  # padding would win where it could
    rows = st.lists(st.integers(1, num_rows - 1), max_size=num_rows, unique=True)
    inside, excluded = data.draw(rows), data.draw(rows)
    left = sorted(set(inside) - set(excluded))
    exact = {row: float(vectors[row] @ query[0]) for row in left}
    index = ItemIndex.build(vectors)
    for plan in (None, *PLANS):
        found, scores = index.search_within(
            query, k, allowed_of(num_rows, inside), np.array(excluded, dtype=np.int64), plan
        )
        assert len(set(found.tolist())) == len(found)
        assert scores.tolist() == [exact[row] for row in found.tolist()] == sorted(exact.values(), reverse=True)[:k]


@pytest.mark.parametrize("plan", PLANS)
def test_random_vectors_among_random_items_are_ranked_as_by_numpy(plan: Plan) -> None:
    rng = np.random.default_rng(4)
    vectors, query = rng.normal(size=(3001, 9)).astype(np.float32), rng.normal(size=(1, 9)).astype(np.float32)
    index, exact = ItemIndex.build(vectors), vectors @ query[0]
    for share in (0.002, 0.05, 0.3, 0.9):
        mask = rng.random(3001) < share
        mask[0] = False
        excluded = rng.integers(1, 3001, 200)
        left = np.setdiff1d(np.flatnonzero(mask), excluded)
        found, scores = index.search_within(query, 50, Allowed(mask), excluded, plan)
        np.testing.assert_allclose(scores, -np.sort(-exact[left])[:50], atol=1e-5)
        np.testing.assert_allclose(exact[found], scores, atol=1e-5)


def test_few_are_compared_one_by_one_and_where_most_are_allowed_others_are_dropped() -> None:
    index = ItemIndex.build(np.zeros((200_001, 1), dtype=np.float32))
    counts = {20_000: "few", 20_001: "most", 200_000: "most"}
    assert {count: index.plan(allowed_of(200_001, list(range(1, count + 1))), 10) for count in counts} == counts
    assert index.plan(allowed_of(200_001, list(range(1, 20_002))), 1_000) == "selected", "15,000 would be fetched"


def test_of_a_small_catalogue_all_are_few() -> None:
    index = ItemIndex.build(np.zeros((10_002, 1), dtype=np.float32))
    assert index.plan(allowed_of(10_002, list(range(1, 10_001))), 10) == "few"
    assert index.plan(allowed_of(10_002, list(range(1, 10_002))), 10) == "most"


def test_where_the_wanted_are_not_the_allowed_the_others_are_still_found() -> None:
    """A filter that bars the best half: what is fetched holds none of it."""
    vectors = np.arange(2_001, dtype=np.float32)[:, None]
    index, lower = ItemIndex.build(vectors), allowed_of(2_001, list(range(1, 1_001)))
    none = np.empty(0, dtype=np.int64)
    found, _ = index.search_within(np.ones((1, 1), dtype=np.float32), 5, lower, none, "most")
    assert found.tolist() == [1_000, 999, 998, 997, 996]


def test_allowed_rows_in_each_form() -> None:
    allowed = allowed_of(12, [1, 2, 9, 11])
    assert (allowed.rows.tolist(), allowed.count) == ([1, 2, 9, 11], 4)
    assert allowed.bits.tolist() == [0b00000011, 0b00000101]
    other = allowed_of(12, [2, 3, 11])
    assert ((allowed & other).rows.tolist(), allowed.without(other).rows.tolist()) == ([2, 11], [1, 9])
