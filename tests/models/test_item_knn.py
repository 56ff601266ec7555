"""Item-KNN against sets of users."""

import math

import numpy as np
import pytest
import torch
from contract import CountingModelContract, table
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from tiny import events_of, histories_of, item_table

from models.item_knn import ItemKNN, ItemKNNConfig, strongest
from recsys.errors import ConfigError
from recsys.splits import TrainingEvents

HISTORIES = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=7), min_size=1, max_size=6)


class TestItemKNN(CountingModelContract):
    """The contract."""

    def make(self, events: TrainingEvents) -> ItemKNN:
        return ItemKNN.fit(ItemKNNConfig(neighbours=4, max_len=5, decay=0.7), events, table())


def fit(histories: list[list[int]], neighbours: int = 100, decay: float = 0.5) -> ItemKNN:
    """Fitted to items 1..7, the last of which nobody takes."""
    config = ItemKNNConfig(neighbours=neighbours, decay=decay)
    return ItemKNN.fit(config, events_of(histories, 8), item_table(7))


def cosine(histories: list[list[int]], one: int, other: int) -> float:
    """Of the sets of users who took the items; 0 for an item with itself."""
    users = [{user for user, history in enumerate(histories) if row in history} for row in (one, other)]
    if one == other or not all(users):
        return 0.0
    return len(users[0] & users[1]) / math.sqrt(len(users[0]) * len(users[1]))


@given(HISTORIES, st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_score_is_the_decayed_sum_of_cosines(histories: list[list[int]], history: list[int]) -> None:
    expected = [
        sum(0.5 ** (len(history) - 1 - place) * cosine(histories, row, item) for place, row in enumerate(history))
        for item in range(8)
    ]
    scores = fit(histories).scores(histories_of([history]))[0]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_only_the_nearest_items_of_each_history_item_count() -> None:
    """Item 1 is nearest to 2 and then to 3; with one neighbour kept, 3 has no score after 1, yet 1 has after 3."""
    histories = [[1, 2], [1, 2], [1, 2, 3], [3, 1], [3, 4], [4], [4]]
    assert cosine(histories, 1, 2) > cosine(histories, 1, 3) > cosine(histories, 3, 4)
    both = fit(histories).scores(histories_of([[1]]))[0]
    nearest = fit(histories, neighbours=1).scores(histories_of([[1], [3]]))
    assert both[3] > 0
    assert nearest[0].nonzero().flatten().tolist() == [2]
    assert nearest[1].nonzero().flatten().tolist() == [1]
    assert float(nearest[0, 2]) == pytest.approx(cosine(histories, 1, 2))


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_the_strongest_entries_of_each_row_stay(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.permutation(42).reshape(7, 6).astype(np.float32) * (rng.random((7, 6)) < 0.6)
    expected = np.zeros_like(matrix)
    for row, values in enumerate(matrix):
        kept = sorted(range(6), key=lambda column: -values[column])[:count]
        expected[row, kept] = values[kept]
    np.testing.assert_array_equal(strongest(sparse.csr_array(matrix), count).toarray(), expected)


@pytest.mark.parametrize("settings", [{"neighbours": 0}, {"max_len": 0}, {"decay": 0.0}, {"decay": 1.1}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1, decay="):
        ItemKNNConfig(**settings)  # type: ignore[arg-type]
