"""The corruption task: one wrong item a window, anywhere, never the same one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recsys.corruption import NoiseSource, corrupt_one
from recsys.errors import ConfigError, DataError

COUNTS = np.array([0, 5, 50, 500, 0, 1], dtype=np.int64)


def windows(lengths: list[int], seed: int = 0) -> np.ndarray:
    """Right-padded random rows of five items."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = rng.integers(1, 6, length)
    return rows


@given(st.lists(st.integers(1, 7), min_size=1, max_size=20), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 99))
def test_exactly_one_event_differs_and_it_is_an_item(lengths: list[int], alpha: float, seed: int) -> None:
    items = windows(lengths)
    found = corrupt_one(items, np.array(lengths), NoiseSource(COUNTS, alpha), np.random.default_rng(seed))
    differ = found.items != items
    assert differ.sum(axis=1).tolist() == [1] * len(lengths)
    assert differ.argmax(axis=1).tolist() == found.places.tolist()
    assert (found.places < np.array(lengths)).all()
    assert ((found.items[differ] >= 1) & (found.items[differ] <= 5)).all()


def test_positions_are_uniform() -> None:
    """Chi-square over the eleven positions; the draw is fixed, and at 0.001 a biased one is far out."""
    number, length = 11_000, 11
    items = windows([length] * number)
    places = corrupt_one(items, np.full(number, length), NoiseSource(COUNTS, 0.0), np.random.default_rng(0)).places
    assert stats.chisquare(np.bincount(places, minlength=length)).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_items_are_drawn_by_a_power_of_popularity(alpha: float) -> None:
    drawn = NoiseSource(COUNTS, alpha).draw(50_000, np.random.default_rng(1))
    wanted = np.array([5, 50, 500, 0.5, 1]) ** alpha
    found = np.bincount(drawn, minlength=6)[1:]
    assert stats.chisquare(found, 50_000 * wanted / wanted.sum()).pvalue > 0.001


def test_what_cannot_be_drawn_is_explained() -> None:
    with pytest.raises(DataError, match="corruption: 1 items are too few to put another one in; it takes two"):
        NoiseSource(np.array([0, 7]), 0.0)
    with pytest.raises(ConfigError, match=r"corruption: alpha=-0\.5 must be at least 0"):
        NoiseSource(COUNTS, -0.5)
