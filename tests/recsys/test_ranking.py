"""Ranks and lists against plain Python; among equal scores the target comes last."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.batches import Histories
from recsys.errors import DataError
from recsys.metrics import case_metrics
from recsys.ranking import NOT_RETURNED, FullRanking, RetrieverScorer, allowed_scores, target_ranks, top_k

NUM_ITEMS = 6
SCORES = st.lists(st.integers(-2, 2), min_size=NUM_ITEMS, max_size=NUM_ITEMS)
EXCLUDED = st.sets(st.integers(1, NUM_ITEMS), max_size=NUM_ITEMS)


def table(scores: list[list[int]]) -> torch.Tensor:
    """[B, V] with a padding column that would win if it were ranked."""
    return torch.tensor([[100, *row] for row in scores], dtype=torch.float32)


def mask_of(excluded: list[set[int]]) -> torch.Tensor:
    """[B, V]."""
    return torch.tensor([[row in gone for row in range(NUM_ITEMS + 1)] for gone in excluded])


def rank_by_hand(scores: list[int], excluded: set[int], target: int) -> int:
    """Place in the sorted list of what may be returned, behind everything that scores the same."""
    allowed = [item for item in range(1, NUM_ITEMS + 1) if item not in excluded]
    order = sorted(allowed, key=lambda item: (-scores[item - 1], item == target))
    return order.index(target) + 1


@given(st.lists(st.tuples(SCORES, EXCLUDED, st.integers(1, NUM_ITEMS)), min_size=1, max_size=5))
def test_ranks_are_pessimistic(rows: list[tuple[list[int], set[int], int]]) -> None:
    scores, excluded, target = ([row[place] for row in rows] for place in range(3))
    ranks = target_ranks(allowed_scores(table(scores), mask_of(excluded)), torch.tensor(target)).tolist()
    for rank, (own, gone, item) in zip(ranks, rows, strict=True):
        assert rank == (NOT_RETURNED if item in gone else rank_by_hand(own, gone, item))


def test_an_excluded_target_is_a_miss_even_in_a_catalogue_shorter_than_the_list() -> None:
    scores = allowed_scores(torch.arange(5.0).repeat(2, 1), torch.arange(5).repeat(2, 1) >= 4)
    values = case_metrics(target_ranks(scores, torch.tensor([4, 3])).numpy(), (20,))
    assert {name: per_case.tolist() for name, per_case in values.items()} == {
        "ndcg@20": [0, 1],
        "hit_rate@20": [0, 1],
        "mrr@20": [0, 1],
    }


def test_equal_scores_earn_nothing() -> None:
    ranks = target_ranks(allowed_scores(torch.zeros(30, 31), None), torch.arange(1, 31))
    assert not any(values.any() for values in case_metrics(ranks.numpy(), (1, 10, 29)).values())


def test_scores_that_are_not_numbers_are_an_error() -> None:
    scores = torch.zeros(4, 5)
    scores[2, 3] = torch.nan
    with pytest.raises(DataError, match=r"the model's scores hold NaN \(first in row 2 of the batch\)"):
        target_ranks(allowed_scores(scores, None), torch.ones(4, dtype=torch.int64))


def test_padding_may_hold_anything() -> None:
    scores = torch.arange(5.0).repeat(2, 1)
    scores[:, 0] = torch.nan
    assert target_ranks(allowed_scores(scores, None), torch.tensor([4, 3])).tolist() == [1, 2]


@given(st.lists(st.tuples(SCORES, EXCLUDED), min_size=1, max_size=5), st.integers(1, 9))
def test_lists_hold_the_best_allowed_items(rows: list[tuple[list[int], set[int]]], k: int) -> None:
    scores, excluded = ([row[place] for row in rows] for place in range(2))
    best = top_k(allowed_scores(table(scores), mask_of(excluded)), k)
    for items, values, (own, gone) in zip(best.items.tolist(), best.scores.tolist(), rows, strict=True):
        allowed = [item for item in range(1, NUM_ITEMS + 1) if item not in gone]
        returned = [item for item in items if item != 0]
        assert items == returned + [0] * (len(items) - len(returned))
        assert len(set(returned)) == len(returned) == min(k, len(allowed))
        assert set(returned) <= set(allowed)
        by_hand = sorted((own[item - 1] for item in allowed), reverse=True)[:k]
        assert [own[item - 1] for item in returned] == by_hand == values[: len(returned)]


def test_scores_stay_as_they_were() -> None:
    scores = torch.ones(2, 4)
    allowed_scores(scores, None)
    allowed_scores(scores, torch.ones(2, 4, dtype=torch.bool))
    assert scores.eq(1).all()


class LastAndLength:
    """Encodes a history as (last item, length, 1)."""

    max_len = 3

    def encode(self, batch: Histories) -> torch.Tensor:
        """[B, 3]; refuses what no encoder can answer."""
        assert len(batch.lengths)
        assert (batch.lengths > 0).all()
        last = batch.items.gather(1, batch.lengths.long()[:, None] - 1).squeeze(1)
        return torch.stack([last, batch.lengths.long(), torch.ones_like(last)], dim=1).float()

    def item_vectors(self) -> torch.Tensor:
        """[5, 3]."""
        return torch.tensor([[9.0, 9, 9], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])


def test_a_retriever_scores_by_inner_product_and_knows_what_to_do_without_history() -> None:
    scorer = RetrieverScorer(LastAndLength(), torch.tensor([0.0, 7, 6, 5, 8]))
    items = torch.tensor([[4, 2], [0, 0], [3, 0]])
    batch = Histories(items, torch.zeros_like(items), torch.tensor([2, 0, 1], dtype=torch.int32))
    assert scorer.scores(batch)[:, 1:].tolist() == [[2, 2, 1, 5], [7, 6, 5, 8], [3, 1, 1, 5]]
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[:, 4] = True
    best = FullRanking(scorer).recommend(batch, 1, mask)
    assert best.items[1:].tolist() == [[1], [1]]
    assert best.scores.tolist() == [[2], [7], [3]]


def test_a_batch_without_any_history_is_never_encoded() -> None:
    scorer = RetrieverScorer(LastAndLength(), torch.arange(5.0))
    items = torch.zeros(2, 1, dtype=torch.int64)
    batch = Histories(items, items, torch.zeros(2, dtype=torch.int32))
    assert scorer.scores(batch).tolist() == [[0, 1, 2, 3, 4]] * 2
