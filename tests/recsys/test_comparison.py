"""Intervals and p-values against their analytic or enumerated counterparts, and the sentences made of them."""

from dataclasses import astuple, replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.comparison import Difference, PairedCases, compare_cases, corrected
from recsys.errors import DataError
from recsys.metrics import mrr_at_k, ndcg_at_k

DECIDED = Difference(
    metric="ndcg@10",
    segment="all",
    cases=900,
    users=100,
    mean_a=0.2,
    mean_b=0.25,
    difference=0.05,
    low=0.03,
    high=0.07,
    standard_error=0.01,
    p_value=0.001,
    adjusted=0.002,
)


def cases_of(users: np.ndarray, ranks: np.ndarray) -> pl.DataFrame:
    """One row a case; positions count up, so that keys differ."""
    return pl.DataFrame({
        "user_idx": users.astype(np.int32),
        "position": np.arange(len(users), dtype=np.int32),
        "target": np.ones(len(users), dtype=np.int32),
        "history_length": np.arange(len(users), dtype=np.int32),
        "new_user": np.zeros(len(users), dtype=bool),
        "cold_item": np.zeros(len(users), dtype=bool),
        "popularity_decile": np.full(len(users), 3, dtype=np.int8),
        "rank": ranks.astype(np.int32),
    })


def overall(
    users: np.ndarray, ranks_a: np.ndarray, ranks_b: np.ndarray, metric: str = "mrr@50", draws: int = 1000
) -> Difference:
    """The difference over all cases."""
    found = compare_cases(cases_of(users, ranks_a), cases_of(users, ranks_b), (50,), draws, seed=0)
    return next(entry for entry in found if (entry.segment, entry.metric) == ("all", metric))


def test_p_values_of_equal_models_are_uniform() -> None:
    rng = np.random.default_rng(5)
    users = np.repeat(np.arange(50), 3)
    p_values = []
    for seed in range(300):
        taste = rng.integers(1, 30, 50)[users]  # ranks of one user's cases are alike
        a, b = (taste + rng.integers(0, 20, 150) for _ in range(2))
        paired = PairedCases.of(cases_of(users, a), cases_of(users, b), (50,), 200, seed)
        p_values.append(paired.differences("all")[2].p_value)
    shares = [np.mean(np.array(p_values) < level) for level in (0.05, 0.25, 0.5, 0.75)]
    np.testing.assert_allclose(shares, [0.05, 0.25, 0.5, 0.75], atol=0.08)
    assert shares[0] < 0.09


def test_a_clearly_better_model_is_decided_and_said_so() -> None:
    rng = np.random.default_rng(6)
    users, ranks = np.repeat(np.arange(80), 2), rng.integers(2, 40, 160)
    better = overall(users, ranks, np.maximum(1, ranks // 3))
    assert better.decided
    assert 0 < better.low < better.difference < better.high
    assert better.p_value == pytest.approx(1 / 1001)
    worse = overall(users, np.maximum(1, ranks // 3), ranks)
    assert worse.decided
    assert worse.difference == pytest.approx(-better.difference)
    assert better.sentence("old", "new").startswith("new is better than old on mrr@50 by ")
    assert worse.sentence("old", "new").startswith("old is better than new on mrr@50 by ")


def test_a_model_against_itself_is_not() -> None:
    ranks = np.random.default_rng(0).integers(1, 40, 100)
    same = overall(np.arange(100), ranks, ranks)
    assert (same.difference, same.low, same.high, same.p_value, same.decided) == (0, 0, 0, 1, False)


def test_means_and_differences_are_those_of_the_cases() -> None:
    rng = np.random.default_rng(7)
    users, a, b = rng.integers(0, 30, 200), rng.integers(1, 60, 200), rng.integers(1, 60, 200)
    for metric, by_hand in (("mrr@50", mrr_at_k), ("ndcg@50", ndcg_at_k)):
        found = overall(users, a, b, metric)
        assert found.mean_a == pytest.approx(by_hand(a, 50).mean())
        assert found.mean_b == pytest.approx(by_hand(b, 50).mean())
        assert found.difference == pytest.approx(by_hand(b, 50).mean() - by_hand(a, 50).mean())
        assert (found.cases, found.users) == (200, len(set(users.tolist())))


def test_more_cases_of_the_same_users_do_not_make_us_surer() -> None:
    rng = np.random.default_rng(8)
    a = rng.integers(1, 30, 60)
    b = np.maximum(1, a - rng.integers(-4, 6, 60))
    once = overall(np.arange(60), a, b)
    repeated = overall(np.repeat(np.arange(60), 9), np.repeat(a, 9), np.repeat(b, 9))
    others = overall(np.arange(540), np.repeat(a, 9), np.repeat(b, 9))
    assert (repeated.low, repeated.high, repeated.p_value) == pytest.approx((once.low, once.high, once.p_value))
    assert (others.high - others.low) * 2.5 < once.high - once.low  # nine times the users: a third of the width


def test_cases_are_paired_by_key_and_not_by_place() -> None:
    rng = np.random.default_rng(9)
    a, b = (cases_of(np.arange(50), rng.integers(1, 30, 50)) for _ in range(2))
    shuffled = b.sample(fraction=1, shuffle=True, seed=1)
    for one, other in zip(compare_cases(a, shuffled, (10,), 200, 0), compare_cases(a, b, (10,), 200, 0), strict=True):
        assert astuple(one)[2:] == pytest.approx(astuple(other)[2:])


def test_different_cases_are_refused() -> None:
    a = cases_of(np.arange(6), np.ones(6))
    with pytest.raises(DataError, match="A has 6 cases and B 5, of which 5 are the same"):
        compare_cases(a, a.head(5), (10,), 100, 0)
    moved = a.with_columns(target=pl.Series([1, 1, 1, 1, 1, 2], dtype=pl.Int32))
    with pytest.raises(DataError, match="A has 6 cases and B 6, of which 5 are the same; evaluate both on the same"):
        compare_cases(a, moved, (10,), 100, 0)


def test_every_metric_of_every_segment_is_compared() -> None:
    a = cases_of(np.arange(40), np.arange(1, 41))
    found = compare_cases(a, a, (5, 10), 100, 0)
    assert [(entry.segment, entry.cases) for entry in found[::6]] == [
        ("all", 40),
        ("user: known", 40),
        ("item: warm", 40),
        ("history: 0", 1),
        ("history: 1-5", 5),
        ("history: 6-20", 15),
        ("history: 21-50", 19),
        ("popularity decile: 3", 40),
    ]
    metrics = ["ndcg@5", "hit_rate@5", "mrr@5", "ndcg@10", "hit_rate@10", "mrr@10"]
    assert [entry.metric for entry in found] == metrics * 8


def test_the_same_seed_gives_the_same_answer() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(1, 30, 50), rng.integers(1, 30, 50)
    assert overall(np.arange(50), a, b) == overall(np.arange(50), a, b)


def test_several_models_are_corrected_together() -> None:
    rng = np.random.default_rng(11)
    ranks = rng.integers(1, 30, 60)
    base, users = cases_of(np.arange(60), ranks), np.arange(60)
    found = [
        compare_cases(base, cases_of(users, np.maximum(1, ranks - rng.integers(-3, 6, 60))), (10,), 400, 0)
        for _ in range(3)
    ]
    together = corrected(found)
    first = [differences[0].p_value for differences in found]
    by_hand = [min(1.0, max(p * (3 - sorted(first).index(p)) for p in first if p <= own)) for own in first]
    assert [differences[0].adjusted for differences in together] == pytest.approx(by_hand)
    number = sum(len(differences) - 1 for differences in found)
    smallest = min(entry.p_value for differences in found for entry in differences[1:])
    assert min(entry.adjusted for differences in together for entry in differences[1:]) == pytest.approx(
        min(1, smallest * number)
    )


def test_the_difference_that_is_seen_four_times_in_five() -> None:
    """Power 80 % at 5 %: 2.8 standard errors; half as large a difference needs four times the users."""
    assert DECIDED.detectable == pytest.approx(2.8016 * 0.01, rel=1e-4)
    assert replace(DECIDED, difference=-DECIDED.detectable / 2).users_needed == 4 * DECIDED.users
    assert replace(DECIDED, difference=0.0).users_needed is None


@pytest.mark.parametrize("change", [{"users": 19}, {"low": -0.001}, {"low": 0.0}, {"adjusted": 0.05}])
def test_a_decision_needs_users_interval_and_test(change: dict[str, Any]) -> None:
    assert DECIDED.decided
    assert not replace(DECIDED, **change).decided


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {},
            "B is better than A on ndcg@10 by 0.0500 (25.0% of the lower; 95 % interval +0.0300 to +0.0700, "
            "p = 0.0020).",
        ),
        (
            {"mean_a": 0.25, "mean_b": 0.2, "difference": -0.05, "low": -0.07, "high": -0.03, "segment": "user: new"},
            "A is better than B on ndcg@10 for user: new by 0.0500 (25.0% of the lower; 95 % interval +0.0300 to "
            "+0.0700, p = 0.0020).",
        ),
        (
            {"low": -0.01},
            "No winner: B and A cannot be told apart on ndcg@10 (95 % interval -0.0100 to +0.0700, p = 0.0020; a "
            "difference of 0.0280 would be seen four times in five).",
        ),
        (
            {"adjusted": 0.05, "segment": "history: 0"},
            "No winner for history: 0: B and A cannot be told apart on ndcg@10 (95 % interval +0.0300 to +0.0700, "
            "p = 0.0500; a difference of 0.0280 would be seen four times in five).",
        ),
        ({"users": 19}, "Not enough data: 19 users cannot tell B from A on ndcg@10."),
    ],
)
def test_sentences(change: dict[str, Any], sentence: str) -> None:
    assert replace(DECIDED, **change).sentence("A", "B") == sentence
