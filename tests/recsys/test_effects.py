"""Experiments: splits, effects and CUPED against formulas and against effects that are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from recsys.experiment import Effect, Measured, Plan, check_split, effect

NAMES = ("old", "new")
NOTHING = np.zeros((0, 0))


def measured(earned: np.ndarray, sizes: np.ndarray | None = None) -> Measured:
    return Measured(name="outcomes", earned=earned, sizes=np.ones(len(earned)) if sizes is None else sizes)


def plain(earned: np.ndarray, variants: np.ndarray, sizes: np.ndarray | None = None, **plan: object) -> Effect:
    return effect(measured(earned, sizes), variants, NAMES, np.zeros((len(earned), 0)), Plan(**plan))  # type: ignore[arg-type]


def test_one_look_at_means_is_welchs_test() -> None:
    rng = np.random.default_rng(0)
    variants = (np.arange(900) % 3 == 0).astype(np.int64)
    earned = rng.normal(1 + 0.3 * variants, 1 + variants)
    found = plain(earned, variants, once=True)
    expected = stats.ttest_ind(earned[variants == 1], earned[variants == 0], equal_var=False)
    assert found.difference / found.standard_error == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.1)
    assert found.interval[0] == pytest.approx(expected.confidence_interval().low, abs=0.003)
    assert (found.users, found.deciding_interval) == ((600, 300), found.interval)


def test_a_ratio_has_the_spread_that_users_give_it() -> None:
    rng = np.random.default_rng(1)
    variants = np.tile([0, 1], 1000)
    found = []
    for _ in range(300):
        requests = rng.integers(1, 10, 2000).astype(float)
        earned = rng.poisson(requests * rng.gamma(2, 0.1, 2000)).astype(float)
        found.append(plain(earned, variants, requests))
    spread = np.std([entry.difference for entry in found])
    assert np.mean([entry.standard_error for entry in found]) == pytest.approx(spread, rel=0.1)
    assert found[0].mean_base == pytest.approx(0.2, rel=0.1)
    assert np.mean([entry.p_value < 0.05 for entry in found]) < 0.085


def test_cuped_takes_out_what_was_so_before() -> None:
    rng = np.random.default_rng(2)
    variants = rng.integers(0, 2, 1500)
    before = rng.normal(size=(1500, 2))
    earned = 0.2 * variants + before @ [2.0, -1.0] + rng.normal(size=1500)
    without = plain(earned, variants)
    found = effect(measured(earned), variants, NAMES, before, Plan())
    assert found.standard_error == pytest.approx(2 / np.sqrt(1500), rel=0.05)
    assert found.saved == pytest.approx(5 / 6, abs=0.03)
    assert abs(found.difference - 0.2) < 3 * found.standard_error < abs(without.standard_error) * 3
    assert without.saved == 0
    constant = effect(measured(earned), variants, NAMES, np.ones((1500, 2)), Plan())
    assert constant == without


def test_cuped_moves_no_effect_on_average() -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(1000):
        variants, before = rng.integers(0, 2, 200), rng.normal(size=(200, 1))
        earned = 0.3 * variants + before[:, 0] + rng.normal(size=200)
        found.append(effect(measured(earned), variants, NAMES, before, Plan(once=True)))
    differences = np.array([entry.difference for entry in found])
    assert abs(differences.mean() - 0.3) < 2 * differences.std() / np.sqrt(1000)
    assert 0.91 < np.mean([entry.interval[0] < 0.3 < entry.interval[1] for entry in found]) < 0.985


def test_what_the_figures_mean_is_said() -> None:
    rng = np.random.default_rng(4)
    variants = np.tile([0, 1], 2000)
    better = plain(rng.normal(1 + 0.3 * variants), variants)
    assert better.decided
    assert better.sentence().startswith("new is better than old on outcomes by 0.")
    assert "valid at every look" in better.sentence()
    worse = plain(rng.normal(1 - 0.3 * variants), variants, once=True)
    assert worse.sentence().startswith("old is better than new on outcomes by 0.")
    assert "one look" in worse.sentence()
    same = plain(rng.normal(size=4000), variants)
    assert same.sentence().startswith("No winner yet: new and old cannot be told apart on outcomes (95 % interval -0.")
    few = plain(np.arange(60.0), (np.arange(60) < 49).astype(np.int64))
    assert few.sentence() == "Not enough data: 11 users cannot tell new from old on outcomes."
    assert not replace(better, adjusted=0.2).decided
    assert better.interval[1] < better.always_interval[1]


def test_a_split_is_counted_and_judged() -> None:
    rng = np.random.default_rng(5)
    shares = np.tile([0.3, 0.7], (3000, 1))
    even = check_split(("a", "b"), (rng.random(3000) < 0.7).astype(np.int64), shares)
    assert even.holds
    assert even.p_value == pytest.approx(stats.chisquare(even.users, even.due).pvalue)
    assert even.sentence().startswith(f"The split is as intended: a {even.users[0]:,} users (900 due), b ")
    lost = check_split(("a", "b"), (rng.random(3000) < 0.76).astype(np.int64), shares)
    assert not lost.holds
    assert lost.sentence().startswith("Sample ratio mismatch: a ")
    assert "find the cause first" in lost.sentence()
