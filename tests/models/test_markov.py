"""First-order Markov counts against a dictionary of pairs."""

from collections import Counter
from itertools import pairwise

import torch
from contract import CountingModelContract, table
from hypothesis import given
from hypothesis import strategies as st
from tiny import events_of, histories_of, item_table

from models.markov import Markov, MarkovConfig
from recsys.splits import TrainingEvents

HISTORIES = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=7), min_size=1, max_size=6)


class TestMarkov(CountingModelContract):
    """The contract."""

    def make(self, events: TrainingEvents) -> Markov:
        return Markov.fit(MarkovConfig(), events, table())


def fit(histories: list[list[int]]) -> Markov:
    """Fitted to items 1..7, the last of which nobody takes."""
    return Markov.fit(MarkovConfig(), events_of(histories, 8), item_table(7))


@given(HISTORIES, st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_score_is_transitions_plus_popularity_below_one(histories: list[list[int]], history: list[int]) -> None:
    pairs = Counter(pair for one in histories for pair in pairwise(one))
    counts = Counter(row for one in histories for row in one)
    most = max(counts.values())
    expected = torch.tensor([pairs[history[-1], row] + counts[row] / (most + 1) for row in range(8)])
    torch.testing.assert_close(fit(histories).scores(histories_of([history]))[0], expected)


def test_one_users_last_item_is_not_followed_by_the_next_users_first() -> None:
    scores = fit([[1, 2], [3, 4]]).scores(histories_of([[2], [3]]))
    assert scores[0].max() < 1
    assert int(scores[1].argmax()) == 4


def test_popularity_never_outweighs_a_transition() -> None:
    histories = [[1, 2], *[[3, 3, 3, 3]] * 20]
    scores = fit(histories).scores(histories_of([[1]]))[0]
    assert int(scores.argmax()) == 2
    assert scores[3] < 1
