"""The simulator's truth is what its days add up to, and the loop finds it: a few days of a small world."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.closed_loop import MODELS, PLACES, Guests, Shop, experiments, split_day, told, write_day
from benchmarks.user_model import CLICKED, People, explained_ratings, logistic, read_chances
from recsys.exposures import read_exposures, read_outcomes

ITEMS, GUESTS = 40, 400


@pytest.fixture(scope="module")
def world() -> tuple[Shop, Guests]:
    """People who like the items that new shows more than those that old does, and agree on no other."""
    rng = np.random.default_rng(0)
    clicks = rng.uniform(0, 0.3, (50, ITEMS))
    clicks[:, : ITEMS // 2] *= 2
    person = rng.integers(0, 50, GUESTS)
    lists = {
        name: [
            [str(1 + item) for item in rng.permutation(ITEMS // 2 if name == "new" else ITEMS)[:PLACES]] for _ in person
        ]
        for name in MODELS
    }
    shop = Shop(Path("nowhere"), People(clicks), 0.0, 0.0)
    histories = [[str(number)] for number in range(GUESTS)]
    earns = {
        name: (clicks[person[:, None], np.array(shown).astype(int) - 1] * read_chances(PLACES)).sum(axis=1)
        for name, shown in lists.items()
    }
    return shop, Guests(person, histories, lists, earns)


def test_a_day_earns_what_its_lists_earn(world: tuple[Shop, Guests], tmp_path: Path) -> None:
    shop, guests = world
    rng = np.random.default_rng(1)
    earned = []
    for day in range(8):
        log = write_day(tmp_path / f"{day}", shop, guests, ["old"] * GUESTS, guests.lists["old"], None, rng)
        shown, clicked = read_exposures(log), read_outcomes(log)
        assert (shown["user_id"].drop_nulls().len(), shown["item_ids"][0].to_list()) == (GUESTS, guests.lists["old"][0])
        earned.append(len(clicked) / GUESTS)
    error = np.std(earned, ddof=1) / np.sqrt(8)
    assert abs(np.mean(earned) - guests.earns["old"].mean()) < 3 * error


def test_the_better_model_wins_its_experiments_and_equal_ones_do_not(world: tuple[Shop, Guests]) -> None:
    rng = np.random.default_rng(2)
    assert experiments(*world, ("old", "new"), 4, rng).share("new") == 1
    assert experiments(*world, ("new", "new"), 4, rng).share("new") <= 0.25


def test_a_model_of_the_split_is_told_and_another_is_not_trusted(world: tuple[Shop, Guests]) -> None:
    rng, write = np.random.default_rng(3), split_day(*world)
    known = told(world[1], "new", write, 15, rng)
    assert known.enough == 1
    assert abs(known.values["ips"].mean() - known.truth) < 3 * known.values["ips"].std(ddof=1) / np.sqrt(15)
    other = told(world[1], "markov", write, 2, rng)
    assert other.enough == 0
    assert other.coverage < 0.2


def test_people_are_fitted_to_their_ratings() -> None:
    rng = np.random.default_rng(4)
    users, items = (part.ravel() for part in np.meshgrid(np.arange(30), np.arange(200), indexing="ij"))
    taste = rng.normal(size=30)
    ratings = np.clip(3 + 1.5 * taste[users] * np.where(items % 2, 1, -1) + rng.normal(0, 0.3, len(users)), 1, 5)
    seen = rng.random(len(users)) < 0.5
    told_ratings = explained_ratings(users[seen], items[seen], ratings[seen], (30, 200))[users[~seen], items[~seen]]
    assert np.sqrt(((told_ratings - ratings[~seen]) ** 2).mean()) < 0.8 < 0.6 * ratings.std()
    clicks = People.fit(users, items, ratings, (30, 200)).clicks
    assert clicks.max() <= CLICKED
    assert clicks[np.argmax(taste), 1] > 3 * clicks[np.argmin(taste), 1]


def test_the_logistic_curve_is_found_again() -> None:
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=20_000)
    outcomes = rng.random(20_000) < 1 / (1 + np.exp(-(1.5 * inputs - 0.7)))
    assert logistic(inputs, outcomes) == pytest.approx((1.5, -0.7), abs=0.08)
