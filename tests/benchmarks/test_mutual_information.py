"""Mutual information of clicks and histories: golden numbers, counts by hand, and what chance alone gives."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import entropy as entropy_by_scipy

from benchmarks.mutual_information import (
    NO_EVENT,
    CategoryCounts,
    information_of_counts,
    newest_categories,
    normalised_information,
    shared_information,
)
from recsys.sequences import SequenceStore


def by_hand(clicked: int, other: int, clicks: int, others: int) -> float:
    """From entropies: H(X) + H(Y) - H(X, Y)."""
    cells = np.array([[clicked, other], [clicks - clicked, others - other]])
    h = [entropy_by_scipy(part.ravel(), base=2) for part in (cells.sum(axis=0), cells.sum(axis=1), cells)]
    return h[0] + h[1] - h[2]


def test_the_golden_numbers_of_the_sheet() -> None:
    counts = (np.array([30, 20]), np.array([10, 40]), np.array([100, 100]), np.array([200, 200]))
    information = information_of_counts(*counts)
    assert information[0] == pytest.approx(0.0818146, abs=1e-7)
    assert information[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("counts", [(30, 10, 100, 200), (0, 7, 5, 9), (5, 0, 5, 9), (0, 0, 3, 4), (3, 4, 3, 4)])
def test_information_is_a_difference_of_entropies(counts: tuple[int, int, int, int]) -> None:
    """Empty cells included."""
    information = information_of_counts(*(np.array(count) for count in counts))
    assert information.item() == pytest.approx(by_hand(*counts), abs=1e-12)


def test_rows_are_counted_by_category_of_candidate_and_event() -> None:
    """Five rows, three categories; the fourth row has but one event, the fifth none."""
    candidates, labels = np.array([1, 1, 2, 1, 1]), np.array([1, 0, 1, 1, 0])
    events = np.array([[2, 0], [2, 1], [1, 1], [2, NO_EVENT], [NO_EVENT, NO_EVENT]])
    counts = CategoryCounts.of(candidates, labels, events, 3)
    assert counts.clicks.tolist() == [0, 2, 1]
    assert counts.others.tolist() == [0, 2, 0]
    assert counts.clicked[1].tolist() == [[0, 1], [0, 0], [2, 0]]
    assert counts.other[1].tolist() == [[0, 0], [0, 1], [1, 0]]
    assert counts.clicked[2].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert counts.clicked[0].sum() == counts.other[2].sum() == 0
    information = counts.information()
    assert information[1, 2, 0] == pytest.approx(by_hand(2, 1, 2, 2))
    assert information[1, 1, 1] == pytest.approx(by_hand(0, 1, 2, 2))
    assert information[0].sum() == 0
    assert np.argwhere(counts.counted(1)).tolist() == [[1, 2, 0]]


def test_counting_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, 50), rng.integers(0, 2, 50), rng.integers(NO_EVENT, 4, (50, 7))
    whole = CategoryCounts.of(*rows, 4)
    monkeypatch.setattr("benchmarks.mutual_information.CELLS_AT_ONCE", 21)
    parts = CategoryCounts.of(*rows, 4)
    for field in ("clicked", "other", "clicks", "others"):
        assert np.array_equal(getattr(whole, field), getattr(parts, field))


def test_what_is_independent_has_the_information_of_chance_alone() -> None:
    """1 / (2 rows ln 2) on average, and a planted bond far more."""
    rng = np.random.default_rng(0)
    labels, events = rng.integers(0, 2, 4000), rng.integers(0, 5, (4000, 20))
    events[:, 3] = np.where(rng.random(4000) < 0.3, labels, events[:, 3])
    information = CategoryCounts.of(np.zeros(4000, dtype=np.int64), labels, events, 5).information()[0]
    independent = np.delete(information, 3, axis=1)
    assert independent.mean() == pytest.approx(1 / (2 * 4000 * np.log(2)), rel=0.25)
    assert information[:2, 3].min() > 20 * independent.max()
    shuffled = CategoryCounts.of(np.zeros(4000, dtype=np.int64), rng.permutation(labels), events, 5).information()
    assert shuffled.max() < information[:2, 3].min() / 20


def test_shared_information_of_sortings() -> None:
    """The same sorting under other names tells all; halves across halves tell nothing."""
    one = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    assert shared_information(one, np.array([5, 5, 0, 0, 3, 3, 3, 3])) == pytest.approx(1.5)
    assert normalised_information(one, np.array([5, 5, 0, 0, 3, 3, 3, 3])) == pytest.approx(1)
    assert normalised_information(one, np.array([0, 1] * 4)) == pytest.approx(0)
    assert normalised_information(np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64)) == 0
    two = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    shared = entropy_by_scipy([4, 4], base=2) - 0.5 * entropy_by_scipy([1, 3], base=2) - 0.25
    assert shared_information(one, two) == pytest.approx(shared)
    assert normalised_information(one, two) == pytest.approx(shared / ((1.5 + 1) / 2))


def test_categories_of_the_newest_events_first() -> None:
    items = np.array([1, 2, 3, 4, 5], dtype=np.int32)
    store = SequenceStore(np.array([0, 2, 5]), items, np.zeros(5, dtype=np.int64), pl.Series(["a", "b"]))
    category_of = np.array([9, 10, 20, 30, 40, 50])
    found = newest_categories(store, np.array([1, 1, 0]), np.array([2, 3, 0]), category_of, 3)
    assert found.tolist() == [[40, 30, NO_EVENT], [50, 40, 30], [NO_EVENT] * 3]
