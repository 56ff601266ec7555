"""Click cases: which items stand beside a target, and that all models are asked alike."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from tiny import random_histories, store_of

from recsys.batches import Histories
from recsys.clicks import NEGATIVES, ClickCases, by_catalog, click_scores
from recsys.negatives import PopularNegatives
from recsys.splits import build_cases, split_last_item

HISTORIES = random_histories(30, 40, 9, shortest=3)
STORE = store_of(HISTORIES)
COUNTS = np.bincount([item for history in HISTORIES for item in history], minlength=61)


def cases() -> pl.DataFrame:
    """The last item of every user."""
    return build_cases(STORE, split_last_item(STORE), "test", 61)


def test_targets_stand_beside_items_that_the_user_did_not_know() -> None:
    clicks = ClickCases.of(cases(), STORE, COUNTS)
    assert clicks.items.shape == (30, 1 + NEGATIVES)
    assert clicks.items[:, 0].tolist() == [history[-1] for history in HISTORIES]
    for row, history in enumerate(HISTORIES):
        assert not set(clicks.items[row, 1:].tolist()) & set(history)
    assert (COUNTS[clicks.items[:, 1:]] > 0).all(), "items that nobody had are never drawn"
    again = ClickCases.of(cases(), STORE, COUNTS)
    np.testing.assert_array_equal(clicks.items, again.items)


def test_popular_items_are_drawn_as_often_as_they_are_counted() -> None:
    counts = np.array([0, 1, 0, 6, 3])
    nothing, stops = np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.int64)
    drawn = PopularNegatives(counts).draw(nothing, stops, 10_000, np.random.default_rng(0)).ravel()
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 10_000, counts / 10, atol=0.02)


@dataclass(frozen=True)
class Remembering:
    """Scores every item by where it stands in the history: a model whose answers can be worked out."""

    max_len: int

    def scores(self, batch: Histories) -> torch.Tensor:
        assert batch.items.shape[1] <= self.max_len
        return batch.items.float().sum(dim=1, keepdim=True) + torch.arange(61) / 100


def test_scores_come_back_in_the_order_of_the_cases_after_the_latest_events() -> None:
    clicks = ClickCases.of(cases(), STORE, COUNTS)
    scorer = Remembering(4)
    for most in (1024, 7):
        scores = click_scores(by_catalog(scorer), 4, STORE, clicks, most)
        known = np.array([sum(history[:-1][-4:]) for history in HISTORIES])
        np.testing.assert_allclose(scores, known[:, None] + clicks.items / 100, rtol=1e-6)
    rows = clicks.rows(scores)
    assert rows["label"].to_list() == [1, 0, 0] * 30
    assert rows["item"].to_list() == clicks.items.ravel().tolist()
    assert rows["user_idx"].to_list() == [user for user in range(30) for _ in range(3)]
