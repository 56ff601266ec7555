"""Popularity against plain counting."""

from collections import Counter
from typing import Any

import pytest
import torch
from contract import CountingModelContract, table
from hypothesis import given
from hypothesis import strategies as st
from tiny import events_of, histories_of, item_table

from models.popularity import Popularity, PopularityConfig
from recsys.errors import ConfigError
from recsys.splits import TrainingEvents

HISTORIES = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=7), min_size=1, max_size=6)


class TestPopularity(CountingModelContract):
    """The contract."""

    def make(self, events: TrainingEvents) -> Popularity:
        return Popularity.fit(PopularityConfig(share=0.4), events, table())


def fit(share: float, histories: list[list[int]], **options: Any) -> Popularity:
    """Fitted to items 1..7, the last of which nobody takes."""
    return Popularity.fit(PopularityConfig(share=share), events_of(histories, 8, **options), item_table(7))


@given(HISTORIES)
def test_all_time_scores_order_items_by_their_counts(histories: list[list[int]]) -> None:
    counts = Counter(row for history in histories for row in history)
    most = max(counts.values())
    expected = [counts[row] + counts[row] / (most + 1) for row in range(8)]
    scores = fit(1.0, histories).scores(histories_of([[1], [2], [3]]))
    torch.testing.assert_close(scores, torch.tensor([expected] * 3))


@given(HISTORIES, st.integers(1, 10))
def test_recent_scores_count_the_latest_events_and_ask_all_time_in_ties(
    histories: list[list[int]], tenths: int
) -> None:
    """Times run through all users in turn, so the latest tenths are the tail of the flat list."""
    flat = [row for history in histories for row in history]
    ever = Counter(flat)
    latest = Counter(flat[int(len(flat) * (1 - tenths / 10)) :])
    most = max(ever.values())
    expected = torch.tensor([latest[row] + ever[row] / (most + 1) for row in range(8)])
    torch.testing.assert_close(fit(tenths / 10, histories).scores(histories_of([[1]]))[0], expected)


def test_recent_means_by_time_not_by_user() -> None:
    """Two users; the later half of the time is all of the second user's and one event of the first."""
    model = fit(0.5, [[1, 2, 3], [4, 5, 5]], timestamps=[1, 2, 50, 3, 60, 70])
    scores = model.scores(histories_of([[1]]))[0]
    assert [int(score) for score in scores] == [0, 0, 0, 1, 0, 2, 0, 0]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"share=.* must lie in \(0, 1\]"):
        PopularityConfig(share=share)
