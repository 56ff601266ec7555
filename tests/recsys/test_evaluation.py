"""Batched full ranking against a loop over users in plain Python."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from builders import split_of, store_of

from recsys import evaluation
from recsys.batches import Histories
from recsys.evaluation import Ranked, mean_metrics, rank_cases, segments, summarise
from recsys.metrics import case_metrics, list_metrics
from recsys.ranking import NOT_RETURNED
from recsys.splits import build_cases

NUM_ROWS = 24
Seen = Literal["exclude", "keep"]


class TableScorer:
    """Adds up what each event of the window says about each item, the later the louder: whole numbers, many ties."""

    max_len = 4

    def __init__(self, spread: int = 1) -> None:
        self.table = np.random.default_rng(1).integers(0, 3, (NUM_ROWS, NUM_ROWS))
        self.spread = spread

    def one(self, window: Sequence[int]) -> list[int]:
        """Scores of one history; with a `spread` of V no two are equal."""
        votes = [sum((place + 1) * self.table[item, row] for place, item in enumerate(window)) for row in range(24)]
        return [int(vote) * self.spread + row % self.spread for row, vote in enumerate(votes)]

    def scores(self, batch: Histories) -> torch.Tensor:
        """[B, V]."""
        windows = [items[:length] for items, length in zip(batch.items.tolist(), batch.lengths.tolist(), strict=True)]
        return torch.tensor([self.one(window) for window in windows], dtype=torch.float32)


@pytest.fixture(scope="module")
def histories() -> list[list[tuple[int, int]]]:
    """Users of very unlike lengths, some far longer than the scorer's window, with repeats."""
    rng = np.random.default_rng(0)
    return [[(int(item), time) for time, item in enumerate(rng.integers(1, NUM_ROWS, length))] for length in
            (3, 17, 1, 40, 5, 9, 2, 31)]  # fmt: skip


@pytest.fixture(scope="module")
def cases(histories: list[list[tuple[int, int]]]) -> pl.DataFrame:
    """About half of the events; two users have no training event."""
    train = [2, 8, 0, 20, 5, 4, 0, 3]
    return build_cases(store_of(histories), split_of(train, train), "test", NUM_ROWS)


def ranked_by_hand(
    histories: list[list[tuple[int, int]]], cases: pl.DataFrame, scorer: TableScorer, seen: Seen, k: int
) -> tuple[list[int], Counter[int]]:
    """Each case's rank, and how often items were among the first k."""
    ranks: list[int] = []
    listed: Counter[int] = Counter()
    for case in cases.iter_rows(named=True):
        history = [item for item, _ in histories[case["user_idx"]][: case["position"]]]
        scores = scorer.one(history[-scorer.max_len :])
        allowed = [row for row in range(1, NUM_ROWS) if seen == "keep" or row not in history]
        order = sorted(allowed, key=lambda row: (-scores[row], row == case["target"]))
        ranks.append(order.index(case["target"]) + 1 if case["target"] in order else NOT_RETURNED)
        listed.update(order[:k])
    return ranks, listed


@pytest.mark.parametrize("seen", ["exclude", "keep"])
@pytest.mark.parametrize("scores_per_batch", [NUM_ROWS * 7, 1 << 23])
def test_ranks_equal_a_loop_over_cases(
    histories: list[list[tuple[int, int]]],
    cases: pl.DataFrame,
    seen: Seen,
    scores_per_batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "SCORES_PER_BATCH", scores_per_batch)
    scorer, done = TableScorer(), []
    ranked = rank_cases(scorer, store_of(histories), cases, NUM_ROWS, seen, (5,), progress=done.append)
    by_hand, _ = ranked_by_hand(histories, cases, scorer, seen, 5)
    assert ranked.cases.drop("rank").equals(cases)
    assert ranked.cases["rank"].to_list() == by_hand
    assert (NOT_RETURNED in by_hand) == (seen == "exclude")
    assert sum(done) == len(cases)
    assert len(done) == (-(-len(cases) // 7) if scores_per_batch == NUM_ROWS * 7 else 1)


@pytest.mark.parametrize("seen", ["exclude", "keep"])
def test_lists_are_counted_at_every_cutoff(
    histories: list[list[tuple[int, int]]], cases: pl.DataFrame, seen: Seen
) -> None:
    scorer = TableScorer(spread=NUM_ROWS)
    ranked = rank_cases(scorer, store_of(histories), cases, NUM_ROWS, seen, (3, 12))
    for k in (3, 12):
        _, listed = ranked_by_hand(histories, cases, scorer, seen, k)
        assert {row: count for row, count in enumerate(ranked.listed[k].tolist()) if row and count} == dict(listed)


def test_padding_is_never_counted_as_an_item(histories: list[list[tuple[int, int]]], cases: pl.DataFrame) -> None:
    ranked = rank_cases(TableScorer(), store_of(histories), cases, NUM_ROWS, "exclude", (NUM_ROWS,))
    seen = [len({item for item, _ in histories[case[0]][: case[1]]}) for case in cases.rows()]
    assert ranked.listed[NUM_ROWS][1:].sum() == sum(NUM_ROWS - 1 - count for count in seen)


def many_cases(seed: int) -> pl.DataFrame:
    """Ranked cases of every segment."""
    rng = np.random.default_rng(seed)
    decile = rng.integers(0, 11, 900)
    return pl.DataFrame({
        "history_length": rng.choice([0, 1, 5, 6, 20, 21, 50, 51, 200, 201, 999], 900),
        "new_user": rng.random(900) < 0.3,
        "cold_item": decile == 0,
        "popularity_decile": decile.astype(np.int8),
        "rank": rng.integers(1, 60, 900),
    })


def test_segments_partition_the_cases() -> None:
    cases = many_cases(0).with_row_index("case")
    parts = segments(cases)
    for prefixes in (("user:",), ("item:",), ("history:",), ("item: cold", "popularity decile:")):
        chosen = [part["case"] for name, part in parts.items() if name.startswith(prefixes)]
        assert sorted(pl.concat(chosen)) == list(range(len(cases)))
    assert parts["history: 0"]["history_length"].unique().to_list() == [0]
    assert sorted(parts["history: 1-5"]["history_length"].unique()) == [1, 5]
    assert sorted(parts["history: 201+"]["history_length"].unique()) == [201, 999]
    assert parts["popularity decile: 10"]["popularity_decile"].unique().to_list() == [10]
    assert parts["user: new"]["new_user"].all()
    assert parts["item: cold"]["cold_item"].all()


def test_segments_without_cases_are_left_out() -> None:
    parts = segments(many_cases(1).filter(~pl.col("new_user"), pl.col("history_length") == 1))
    assert "user: new" not in parts
    assert [name for name in parts if name.startswith("history")] == ["history: 1-5"]


def test_the_report_holds_means_lists_and_segments() -> None:
    cases, counts = many_cases(2), np.arange(7)
    listed = {5: np.array([0, 3, 1, 0, 0, 2, 9]), 20: np.array([0, 5, 5, 5, 5, 5, 5])}
    report = summarise(Ranked(cases, listed), counts, (5, 20))
    values = case_metrics(cases["rank"].to_numpy(), (5, 20))
    expected = {name: sum(per_case) / 900 for name, per_case in values.items()}
    expected |= list_metrics(listed[5], counts, 5) | list_metrics(listed[20], counts, 20)
    assert report["cases"] == 900
    assert report["metrics"] == pytest.approx(expected)
    buckets = [entry for name, entry in report["segments"].items() if name.startswith("history")]
    assert sum(bucket["cases"] for bucket in buckets) == 900
    weighted = sum(bucket["cases"] * bucket["metrics"]["mrr@20"] for bucket in buckets) / 900
    assert report["metrics"]["mrr@20"] == pytest.approx(weighted)
    assert mean_metrics(cases, (5,)).keys() == {"ndcg@5", "hit_rate@5", "mrr@5"}
