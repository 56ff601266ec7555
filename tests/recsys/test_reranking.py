"""The second stage against lists put in order by hand, and the weight that validation gives it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_prepared

from recsys import reranking, retrieved
from recsys.batches import Histories
from recsys.evaluation import mean_metrics, rank_cases
from recsys.ranking import NOT_RETURNED, allowed_scores, target_ranks, top_k
from recsys.reranking import Reranker
from recsys.retrieved import Retrieved, best_weight


def table(scores: list[list[int]]) -> torch.Tensor:
    """[B, V] with a padding column that would win if it were ranked."""
    return torch.tensor([[100, *row] for row in scores], dtype=torch.float32)


class ByLastItem:
    """A ranker that likes the items before the last one of the history, the nearest best; it reads two events."""

    max_len = 2

    def score(self, batch: Histories, candidates: torch.Tensor) -> torch.Tensor:
        """Of what it was given."""
        assert batch.items.shape[1] <= 2
        last = batch.items.gather(1, (batch.lengths.long() - 1).clamp(min=0)[:, None])
        return -((last - candidates) % 7).float()


class ByNumber:
    """A retriever that finds the first items best, after any history of which it reads three events."""

    max_len = 3

    def __init__(self, num_rows: int) -> None:
        self.by_row = -torch.arange(float(num_rows))

    def scores(self, batch: Histories) -> torch.Tensor:
        """Falls by one from item to item."""
        return self.by_row.expand(len(batch.lengths), -1)


@pytest.mark.parametrize("at_once", [1, 1 << 21])
def test_a_second_stage_orders_what_the_first_found(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six items three are candidates; excluded ones are none, even where they leave fewer than three."""
    monkeypatch.setattr(reranking, "PAIRS_AT_ONCE", at_once)
    scores = allowed_scores(table([[1, 9, 2, 8, 3, 7], [1, 9, 2, 8, 3, 7], [5, 4, 0, 0, 0, 0]]), None)
    scores[1, [2, 4]] = -torch.inf
    scores[2, 3:] = -torch.inf
    histories = Histories(
        items=torch.tensor([[1, 6, 5], [3, 4, 0], [2, 0, 0]]),
        timestamps=torch.zeros((3, 3), dtype=torch.int64),
        lengths=torch.tensor([3, 2, 1]),
    )
    after = Reranker(ByLastItem(), 3, torch.zeros(7), shortest=1).reordered(histories, scores)
    assert after[:, 0].tolist() == [-torch.inf] * 3
    assert top_k(after, 4).items.tolist() == [[4, 2, 6, 0], [3, 6, 5, 0], [2, 1, 0, 0]]
    assert target_ranks(after, torch.tensor([2, 5, 3])).tolist() == [2, 3, NOT_RETURNED]
    assert target_ranks(after, torch.tensor([1, 1, 1])).tolist() == [NOT_RETURNED, NOT_RETURNED, 2]


def test_how_often_items_were_negatives_goes_back_into_their_scores() -> None:
    scores = allowed_scores(table([[1, 9, 2, 8, 3, 7]]), None)
    histories = Histories(torch.tensor([[5]]), torch.zeros((1, 1), dtype=torch.int64), torch.tensor([1]))
    plain = Reranker(ByLastItem(), 3, torch.zeros(7), shortest=1)
    assert top_k(plain.reordered(histories, scores), 3).items.tolist() == [[4, 2, 6]]
    shared = replace(plain, log_share=torch.tensor([0.0, 5, 2.5, 0, 0, 0, 0]))
    assert top_k(shared.reordered(histories, scores), 3).items.tolist() == [[2, 4, 6]]


def test_a_weight_adds_the_second_stage_to_the_first() -> None:
    """After item 5 the candidates 2, 4, 6 have 9, 8, 7 of the retriever and -3, -1, -6 of the ranker."""
    scores = allowed_scores(table([[1, 9, 2, 8, 3, 7]]), None)
    histories = Histories(torch.tensor([[5]]), torch.zeros((1, 1), dtype=torch.int64), torch.tensor([1]))
    for weight, expected in ((0.0, [9.0, 8, 7]), (0.5, [7.5, 7.5, 4]), (2.0, [3.0, 6, -5])):
        after = Reranker(ByLastItem(), 3, torch.zeros(7), weight, shortest=1).reordered(histories, scores)
        assert after[0, [2, 4, 6]].tolist() == expected


def test_after_few_events_the_retrievers_order_stays() -> None:
    scores = allowed_scores(table([[1, 9, 2, 8, 3, 7]] * 3), None)
    events = torch.tensor([[0, 0, 0], [5, 0, 0], [1, 3, 5]])
    histories = Histories(events, torch.zeros_like(events), torch.tensor([0, 1, 3]))
    after = Reranker(ByLastItem(), 3, torch.zeros(7), shortest=2).reordered(histories, scores)
    assert top_k(after, 3).items.tolist() == [[2, 4, 6], [2, 4, 6], [4, 2, 6]]


@pytest.mark.parametrize(("weight", "shortest"), [(0.0, 1), (0.3, 1), (2.0, 2), (None, 1), (2.0, 5)])
@pytest.mark.parametrize("at_once", [1, 64])
def test_kept_lists_are_judged_as_full_ranking_judges(
    tmp_path: Path, weight: float | None, shortest: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranker reads two events, so one that wants five is never asked."""
    monkeypatch.setattr(retrieved, "CASES_AT_ONCE", at_once)
    prepared = tiny_prepared(tmp_path)
    cases, num_rows = prepared.cases("validation"), prepared.catalog.num_rows
    scorer = ByNumber(num_rows)
    reranker = Reranker(ByLastItem(), 12, torch.linspace(0, 3, num_rows), weight, shortest)
    lists = Retrieved.of(scorer, prepared, cases, 12, prepared.seen)
    ranked = rank_cases(scorer, prepared.store, cases, num_rows, prepared.seen, (10,), reranker=reranker)
    figure = lists.ndcg(lists.second_scores(reranker, prepared), reranker)
    assert figure == pytest.approx(mean_metrics(ranked.cases, (10,))["ndcg@10"])
    assert figure > 0


@given(st.lists(st.sampled_from([0.1, 0.2]), min_size=4, max_size=4))
def test_the_best_weight_is_the_smallest_of_the_best(figures: list[float]) -> None:
    """A ranker that adds nothing is not asked; alone it is the last to be."""
    by_weight = dict(zip((0.0, 0.5, 1.0, None), figures, strict=True))
    chosen = best_weight(by_weight)
    assert by_weight[chosen] == max(figures)
    assert chosen == next(weight for weight, figure in by_weight.items() if figure == max(figures))
