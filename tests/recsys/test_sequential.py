"""Intervals and p-values that hold at every look: by formula, and by looking at each of a thousand users."""

import numpy as np
import pytest

from recsys.resampling import LEVEL
from recsys.sequential import p_value, radius, split_p_values, tuning


def test_the_radius_is_the_papers() -> None:
    users, planned, spread = 700, 2000, 1.3
    rho = np.sqrt((-2 * np.log(LEVEL) + np.log(-2 * np.log(LEVEL) + 1)) / planned)
    theirs = spread * np.sqrt(
        2 * (users * rho**2 + 1) / (users**2 * rho**2) * np.log(np.sqrt(users * rho**2 + 1) / LEVEL)
    )
    assert radius(spread / np.sqrt(users), users, planned) == pytest.approx(theirs)


def test_it_is_the_narrowest_near_the_planned_number() -> None:
    lengths = {planned: radius(1.0, 5000, planned) for planned in (200, 1000, 5000, 25_000, 125_000)}
    assert min(lengths, key=lambda planned: lengths[planned]) == 5000
    assert tuning(1000) == 5 * tuning(5000)


@pytest.mark.parametrize("users", [60, 3000])
def test_the_p_value_is_the_level_at_which_the_interval_touches_zero(users: int) -> None:
    wide = radius(0.2, users, 1000)
    assert p_value(wide, 0.2, users, 1000) == pytest.approx(LEVEL)
    assert p_value(1.01 * wide, 0.2, users, 1000) < LEVEL < p_value(-0.99 * wide, 0.2, users, 1000)
    assert p_value(0.0, 0.2, users, 1000) == 1


def test_without_any_spread_a_difference_is_certain() -> None:
    assert (p_value(0.0, 0.0, 10, 100), p_value(0.1, 0.0, 10, 100)) == (1, 0)


def test_looking_at_every_user_raises_few_false_alarms_where_the_usual_interval_raises_many() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(600, 2000)) - 1
    users = np.arange(1, 2001)
    means = values.cumsum(axis=1) / users
    errors = np.sqrt(((values**2).cumsum(axis=1) / users - means**2) / users)
    looks = slice(99, None)  # of fewer than a hundred users no mean is normal
    widths = np.array([radius(1.0, int(count), 1000) for count in users[looks]])
    ever = (np.abs(means[:, looks]) > widths * errors[:, looks]).any(axis=1).mean()
    usual = (np.abs(means[:, looks]) > 1.96 * errors[:, looks]).any(axis=1).mean()
    assert ever < 0.06
    assert usual > 0.3


def arrivals(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    return (rng.random((len(shares), 1)) > shares.cumsum(axis=1)[:, :-1]).sum(axis=1)


def test_a_split_as_intended_is_hardly_ever_doubted_though_its_shares_change() -> None:
    rng = np.random.default_rng(1)
    shares = np.repeat([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], 700, axis=0)
    doubted = [split_p_values(arrivals(rng, shares), shares)[-1] < LEVEL for _ in range(400)]
    assert np.mean(doubted) < 0.05


def test_a_split_that_is_off_is_found_and_stays_found() -> None:
    rng = np.random.default_rng(2)
    shares = np.full((6000, 2), 0.5)
    found = [split_p_values(arrivals(rng, np.tile([0.54, 0.46], (6000, 1))), shares) for _ in range(60)]
    assert np.mean([values[-1] < 0.01 for values in found]) > 0.95
    assert all((np.diff(values) <= 0).all() for values in found)


def test_the_bets_by_hand() -> None:
    shares = np.array([[0.25, 0.75], [0.25, 0.75]])
    found = split_p_values(np.array([0, 0]), shares)
    up, down = 0.25 * (25 + 1) / (25 + 0.25), 0.75 * 75 / (75 + 0.75)
    assert found == pytest.approx([1, 0.25 / (up / (up + down))])
