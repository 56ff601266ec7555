"""Intervals, p-values and their correction against analytic or enumerated counterparts."""

from itertools import product

import numpy as np
import pytest

from recsys import resampling
from recsys.resampling import Resamples, holm, standard_errors


def drawn(units: int, draws: int, seed: int = 0) -> Resamples:
    return Resamples.of_users(np.arange(units), draws, seed)


@pytest.mark.parametrize("unequal", [False, True])
def test_the_interval_of_a_large_sample_is_the_normal_one(unequal: bool) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 1500).astype(float) if unequal else np.ones(1500)
    sums = rng.normal([0.3, 1.3], 1, (1500, 2)) * sizes[:, None]
    low, high = drawn(1500, 4000).interval(sums, sizes)
    means = sums.sum(axis=0) / sizes.sum()
    errors = np.sqrt(((sums - means * sizes[:, None]) ** 2).sum(axis=0)) / sizes.sum()  # of a ratio of two sums
    np.testing.assert_allclose(standard_errors(sums, sizes), errors, rtol=1e-3)
    np.testing.assert_allclose(low, means - 1.96 * errors, atol=0.15 * errors.max())
    np.testing.assert_allclose(high, means + 1.96 * errors, atol=0.15 * errors.max())


def test_the_p_value_of_few_users_is_the_share_of_all_sign_patterns() -> None:
    sums = np.random.default_rng(2).normal([0.2, 0.6, 0], 1, (9, 3)).round(1)
    patterns = np.array(list(product([-1.0, 1.0], repeat=9)))
    exact = (np.abs(patterns @ sums) >= np.abs(sums.sum(axis=0)) - 1e-9).mean(axis=0)
    draws = 20_000
    found = drawn(9, draws).p_values(sums)
    assert exact.min() < 0.1 < 0.4 < exact.max()
    np.testing.assert_allclose(found, exact, atol=4 * 0.5 / np.sqrt(draws))


def test_many_users_are_drawn_in_groups_with_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(4000), 2)
    values = rng.normal(0.1, 1, 8000) + rng.normal(0, 1, 4000)[users]
    found = []
    for most in (4000, 500):
        monkeypatch.setattr(resampling, "MOST_UNITS", most)
        resamples = Resamples.of_users(users, 2000, seed=1)
        sums, sizes = resamples.sums(values)[:, None], resamples.sums(np.ones(8000))
        assert (len(sums), sizes.sum(), sums.sum()) == (most, 8000, pytest.approx(values.sum()))
        assert len(np.unique(resamples.unit[::2])) == most
        assert (resamples.unit[::2] == resamples.unit[1::2]).all(), "cases of a user stay together"
        low, high = resamples.interval(sums, sizes)
        found.append((high - low).item())
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_part_of_the_cases_has_the_interval_of_its_users() -> None:
    rng = np.random.default_rng(4)
    values, rows = rng.normal(0.2, 1, 900), np.arange(0, 900, 3)
    whole = drawn(900, 4000)
    low, high = whole.interval(whole.sums(values[rows], rows)[:, None], whole.sums(np.ones(300), rows))
    alone = drawn(300, 4000).interval(values[rows][:, None], np.ones(300))
    np.testing.assert_allclose([low, high], alone, atol=0.02)


def test_draws_in_pieces_are_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, sizes = np.random.default_rng(0).normal(1, 1, (100, 2)), np.ones(100)
    resamples = drawn(100, 955)
    whole = (*resamples.interval(sums, sizes), resamples.p_values(sums))
    monkeypatch.setattr(resampling, "DRAWS_PER_CHUNK", 1000)
    np.testing.assert_allclose(whole, (*resamples.interval(sums, sizes), resamples.p_values(sums)))


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert holm([]).shape == (0,)


def test_holm_keeps_the_error_rate_of_the_whole_family() -> None:
    rng = np.random.default_rng(0)
    wrong = plain = 0
    for _ in range(4000):
        p_values = np.r_[rng.uniform(size=8), [1e-6, 1e-5]]  # two differences are real
        wrong += (holm(p_values)[:8] < 0.05).any()
        plain += (p_values[:8] < 0.05).any()
    assert wrong / 4000 < 0.06
    assert plain / 4000 > 0.3
