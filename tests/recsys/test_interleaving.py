"""Team-draft interleaving: what a list may be, and that its clicks prefer the better model and only that."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.interleaving import Team, credit, preference, team_draft

LISTS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@given(LISTS, LISTS, st.integers(1, 10), st.text(max_size=3))
def test_every_round_takes_the_best_item_that_each_model_has_left(
    first: list[str], second: list[str], k: int, key: str
) -> None:
    items, teams = team_draft(first, second, k, key)
    assert len(items) == len(teams) == len(set(items)) == min(k, len({*first, *second}))
    for place, (item, team) in enumerate(zip(items, teams, strict=True)):
        left = [other for other in (first, second)[team] if other not in items[:place]]
        assert left[0] == item
    assert (items, teams) == team_draft(first, second, k, key)
    if len(first) == len(second) == 8:
        assert all(sum(teams[place : place + 2]) == 1 for place in range(0, len(teams) - 1, 2))


def test_the_coin_is_fair_and_another_for_each_key() -> None:
    begins = [team_draft("abc", "xyz", 1, f"request {number}")[1][0] for number in range(4000)]
    assert abs(np.mean(begins) - 0.5) < 0.03
    rounds = [tuple(team_draft("abc", "xyz", 6, str(number))[1][::2]) for number in range(800)]
    assert len(set(rounds)) == 8


def test_credit_counts_clicks_by_team() -> None:
    teams: list[Team] = [1, 0, 0, 1]
    assert credit(teams, [0, 3, 1]) == 1
    assert credit(teams, []) == 0


def clicked_preference(rng: np.random.Generator, better: float, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Credits of lists of two models that share half their items; those of the second are clicked `better` as often."""
    owners, earned = [], []
    for user in range(users):
        for number in range(2):
            items, teams = team_draft("abcd", "axcy", 4, f"{user} {number}")
            rates = [0.2 * better if item in "xy" else 0.2 for item in items]
            earned.append(float(credit(teams, np.flatnonzero(rng.random(len(items)) < rates).tolist())))
            owners.append(user)
    return np.array(owners), np.array(earned)


def test_equal_models_are_seldom_told_apart_and_a_better_one_is() -> None:
    rng = np.random.default_rng(0)
    equal = [preference(*clicked_preference(rng, 1.0, 150), draws=300).decided for _ in range(120)]
    assert np.mean(equal) < 0.1
    found = preference(*clicked_preference(rng, 3.0, 300), draws=500)
    assert found.decided
    assert found.preference > 0
    assert found.sentence("old", "new").startswith(f"new is preferred: {found.prefer_second} users prefer new, ")


def test_a_preference_by_hand() -> None:
    found = preference(np.array([0, 0, 1, 2, 2, 3]), np.array([1.0, -1.0, 2.0, -1.0, 0.0, 1.0]), draws=200)
    assert (found.users, found.prefer_first, found.prefer_second) == (4, 1, 2)
    assert found.preference == pytest.approx((2 + 0.5 * 1) / 4 - 0.5)
    assert not found.decided
    assert found.sentence("old", "new").startswith("No winner: 2 users prefer new, 1 old, of 4; preference +0.125")
