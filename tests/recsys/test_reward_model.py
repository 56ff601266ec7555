"""The model of rewards by hand, and that nobody's rewards are predicted from themselves."""

import numpy as np
import pytest

from recsys.reward_model import PRIOR, RewardModel, cross_fitted


def test_rates_and_lifts_by_hand() -> None:
    items, places = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 0, 1])
    model = RewardModel.fit(items, places, np.array([1.0, 0.0, 1.0, 0.0, 1.0]), num_items=3, num_places=3)
    np.testing.assert_allclose(model.rates, [2 / 3, 1 / 2, 3 / 5])
    np.testing.assert_allclose(model.lifts[0], (1 + PRIOR) / (2 / 3 + 1 / 2 + PRIOR))
    np.testing.assert_allclose(model.lifts[2], 1)
    assert model.predict(np.array([0]), np.array([1]))[0] == pytest.approx(model.rates[1] * model.lifts[0])


def test_it_finds_out_what_items_and_places_earn() -> None:
    rng = np.random.default_rng(0)
    rates, lifts = np.array([0.4, 0.2, 0.1]), np.array([0.5, 1.0, 1.5, 2.0])
    items, places = rng.integers(0, 4, 40_000), rng.integers(0, 3, 40_000)
    rewards = (rng.random(40_000) < rates[places] * lifts[items]).astype(float)
    model = RewardModel.fit(items, places, rewards, 4, 3)
    cells = np.meshgrid(np.arange(4), np.arange(3), indexing="ij")
    np.testing.assert_allclose(model.predict(*cells), np.outer(lifts, rates), atol=0.03)


def test_a_users_rewards_do_not_speak_of_that_user() -> None:
    rng = np.random.default_rng(1)
    users, items = np.repeat(np.arange(50), 4), rng.integers(0, 5, 200)
    places, rewards = np.tile(np.arange(4), 50), rng.random(200)
    before = cross_fitted(users, items, places, rewards, items[::-1].copy())
    changed = np.where(users == 7, 100.0, rewards)
    after = cross_fitted(users, items, places, changed, items[::-1].copy())
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old[users == 7], new[users == 7])
        assert (old[users != 7] != new[users != 7]).sum() > 100
    same = cross_fitted(users, items, places, rewards, items)
    np.testing.assert_array_equal(*same)
