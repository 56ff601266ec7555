"""Off-policy estimates: by hand, against a truth that is known, and what is said of a log that cannot carry them."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.off_policy import LOGGED, Logged, estimate, estimators, overlap
from recsys.slate_policy import joint, row_weights

BY_HAND = Logged(
    users=np.array([0, 0, 1]),
    requests=np.array([0, 0, 1]),
    positions=np.array([1, 2, 1]),
    rewards=np.array([1.0, 0.0, 2.0]),
    weights=np.array([0.5, 2.0, 3.0]),
    predicted=np.array([0.5, 0.25, 1.0]),
    expected=np.array([1.0, 0.5, 0.5]),
)
LOGS, ROWS = 400, 300
RNG = np.random.default_rng(0)
RATES = RNG.uniform(0.2, 0.9, (5, 6))
"""Of five kinds of requests, what each of six items earns."""
ACTING, OTHER = (RNG.dirichlet(np.ones(6), 5) * 0.8 + 0.2 / 6 for _ in range(2))
TRUTH = float((OTHER * RATES).sum(axis=1).mean())
GUESSED = np.clip(RATES + RNG.normal(0.1, 0.1, RATES.shape), 0, 1)
"""A model of rewards that is wrong, and not by chance."""


def values(log: Logged, clip: float) -> dict[str, float]:
    return {entry.name: entry.value for entry in estimators(log, clip)}


def test_every_estimate_by_hand() -> None:
    assert values(BY_HAND, 1.5) == pytest.approx({
        LOGGED: (1 + 0 + 2) / 2,
        "ips": (0.5 * 1 + 2 * 0 + 3 * 2) / 2,
        "snips": 2 / 2 * (0.5 * 1 + 3 * 2) / (0.5 + 3) + 1 / 2 * 0,
        "clipped": (0.5 * 1 + 1.5 * 0 + 1.5 * 2) / 2,
        "dm": (1 + 0.5 + 0.5) / 2,
        "dr": (1 + 0.5 * 0.5 + 0.5 + 2 * -0.25 + 0.5 + 3 * 1) / 2,
        "switch-dr": (1 + 0.5 * 0.5 + 0.5 + 0.5) / 2,
    })


def test_sums_are_kept_by_unit_not_by_row() -> None:
    """Every column is that of the rows of a unit, and snips has the same by position."""
    log, unit = drawn(np.random.default_rng(5), 90), np.arange(90) % 7
    log = replace(log, positions=np.arange(90) % 4 + 1)
    found = {entry.name: entry for entry in estimators(log, 1.5, unit)}
    of = [unit == number for number in range(7)]
    np.testing.assert_allclose(found["ips"].sums, [[(log.weights * log.rewards)[own].sum(), own.sum()] for own in of])
    snips = found["snips"].sums
    assert snips.shape == (7, 3 * 4 + 1)
    at = [[own & (log.positions == place) for place in range(1, 5)] for own in of]
    np.testing.assert_allclose(snips[:, :4], [[(log.weights * log.rewards)[rows].sum() for rows in row] for row in at])
    np.testing.assert_allclose(snips[:, 4:8], [[log.weights[rows].sum() for rows in row] for row in at])
    np.testing.assert_allclose(snips[:, 8:12], [[rows.sum() for rows in row] for row in at])
    np.testing.assert_allclose(snips[:, 12], [own.sum() for own in of])
    assert {name: entry.value for name, entry in found.items()} == pytest.approx(values(log, 1.5))


def test_without_a_model_of_rewards_only_weights_speak() -> None:
    names = [entry.estimator for entry in estimate(replace(BY_HAND, predicted=None, expected=None), draws=100)]
    assert names == [LOGGED, "ips", "snips", "clipped"]


def drawn(rng: np.random.Generator, rows: int) -> Logged:
    """Rows that ACTING showed, each of a user and request of its own."""
    kind = rng.integers(0, 5, rows)
    item = (rng.random((rows, 1)) > ACTING[kind].cumsum(axis=1)[:, :-1]).sum(axis=1)
    number = np.arange(rows)
    return Logged(
        users=number,
        requests=number,
        positions=np.ones(rows, dtype=np.int64),
        rewards=(rng.random(rows) < RATES[kind, item]).astype(float),
        weights=row_weights(ACTING[kind, item], OTHER[kind, item]),
        predicted=GUESSED[kind, item],
        expected=(OTHER[kind] * GUESSED[kind]).sum(axis=1),
    )


def test_in_simulation_they_are_unbiased_where_they_should_be_and_dr_spreads_less() -> None:
    rng = np.random.default_rng(1)
    found = [values(drawn(rng, ROWS), clip=1.5) for _ in range(LOGS)]
    table = {name: np.array([entry[name] for entry in found]) for name in found[0]}
    off = {name: (column.mean() - TRUTH) / (column.std(ddof=1) / np.sqrt(LOGS)) for name, column in table.items()}
    assert max(abs(off[name]) for name in ("ips", "snips", "dr")) < 2
    assert min(abs(off[name]) for name in (LOGGED, "clipped", "dm", "switch-dr")) > 4, "biased on purpose here"
    spread = {name: column.var() for name, column in table.items()}
    assert spread["dr"] < 0.9 * spread["ips"]
    assert spread["snips"] < 0.9 * spread["ips"]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    held = {"ips": 0, "dr": 0, "snips": 0}
    for number in range(150):
        for entry in estimate(drawn(rng, ROWS), draws=200, seed=number):
            if entry.estimator in held:
                held[entry.estimator] += entry.interval[0] <= TRUTH <= entry.interval[1]
    assert all(0.90 <= count / 150 <= 0.985 for count in held.values()), held


def test_the_difference_is_the_estimate_less_what_was_earned() -> None:
    log = drawn(np.random.default_rng(3), 2000)
    found = {entry.estimator: entry for entry in estimate(log, draws=500)}
    own, ips = found[LOGGED], found["ips"]
    assert own.value == log.rewards.mean()
    assert (own.difference, own.difference_interval) == (0, (0, 0))
    assert ips.difference == pytest.approx(ips.value - own.value)
    assert ips.difference_interval[0] < ips.difference < ips.difference_interval[1]
    same = replace(log, weights=np.ones(2000), predicted=None, expected=None)
    assert all(not entry.decided and entry.difference == pytest.approx(0) for entry in estimate(same, draws=100))


def test_users_not_rows_are_drawn() -> None:
    log = drawn(np.random.default_rng(4), 300)
    [_, alone, *_] = estimate(log, draws=1000)
    twice = {name: np.repeat(values, 4) for name, values in vars(log).items()}
    [_, together, *_] = estimate(Logged(**twice | {"requests": np.arange(1200)}), draws=1000)
    assert together.value == pytest.approx(alone.value)
    assert together.standard_error == pytest.approx(alone.standard_error, rel=0.1)


@pytest.mark.parametrize("reading", ["independent", "cascade", "whole"])
def test_lists_are_estimated_without_bias_where_the_reading_holds(reading: str) -> None:
    """Two places, three items; in the second place an item earns as the first one lets it (a cascade)."""
    rng = np.random.default_rng(5)
    acting, other = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    earns = np.array([[0.1, 0.9, 0.2], [0.1, 0.1, 0.8], [0.5, 0.7, 0.1]])
    truth = float(other @ earns[0] + other @ earns @ other)
    estimates = []
    for _ in range(LOGS):
        items = rng.choice(3, (100, 2), p=acting)
        rates = np.stack([earns[0][items[:, 0]], earns[items[:, 0], items[:, 1]]], axis=1)
        requests = np.repeat(np.arange(100), 2)
        logged, target = (joint(reading, policy[items].ravel(), requests) for policy in (acting, other))
        log = Logged(
            users=requests,
            requests=requests,
            positions=np.tile([1, 2], 100),
            rewards=(rng.random((100, 2)) < rates).ravel().astype(float),
            weights=row_weights(logged, target),
        )
        estimates.append(values(log, 10.0)["ips"])
    off = (np.mean(estimates) - truth) / (np.std(estimates) / np.sqrt(LOGS))
    assert abs(off) > 4 if reading == "independent" else abs(off) < 2


def test_a_good_log_is_not_warned_of() -> None:
    found = overlap(drawn(np.random.default_rng(6), 3000), clip=20.0)
    assert found.warnings() == []
    assert found.effective == pytest.approx(
        3000 / (1 + np.var(drawn(np.random.default_rng(6), 3000).weights)), rel=0.05
    )
    assert (found.rows, found.requests, found.users, found.matched) == (3000, 3000, 3000, 3000)


@pytest.mark.parametrize(
    ("weights", "warning"),
    [
        (np.zeros(1000), "No overlap: the policy would show none of what was shown"),
        (np.r_[np.full(8, 125.0), np.zeros(992)], "Little overlap: 1,000 rows say as much as 8 "),
        (np.tile([0.0, 1.0], 500), "The log covers 50% of what the policy would show"),
        (np.tile([1.0, 2.0], 500), "Weights average 1.50, and 1 is right: logged propensities are too low"),
        (np.r_[np.full(900, 0.8), np.full(100, 2.8)], "One user has 28% of all weight"),
        (np.r_[np.full(990, 0.7), np.full(10, 30.7)], "20.7% of all weight lies above 10, where clipped cuts it"),
    ],
)
def test_what_is_amiss_is_said(weights: np.ndarray, warning: str) -> None:
    number = np.arange(1000)
    log = Logged(
        users=np.minimum(number, 900), requests=number, positions=number, rewards=np.ones(1000), weights=weights
    )
    assert any(text.startswith(warning) for text in overlap(log).warnings()), overlap(log).warnings()


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="rewards of row 1 is nan; every row needs a finite number"):
        replace(BY_HAND, rewards=np.array([1.0, np.nan, 0.0]))
    with pytest.raises(DataError, match=r"the smallest weight is -1\.0"):
        replace(BY_HAND, weights=np.array([1.0, -1.0, 0.0]))
    with pytest.raises(DataError, match="the log has no rows"):
        Logged(**{name: None if values is None else values[:0] for name, values in vars(BY_HAND).items()})
    with pytest.raises(DataError, match="logged propensity of row 1 is 0; what was shown had a probability above 0"):
        row_weights(np.array([0.5, 0.0]), np.ones(2))
    with pytest.raises(DataError, match=r"the policy's probability of row 0 is 1\.5, not in 0\.\.1"):
        row_weights(np.ones(2), np.array([1.5, 1]))
    with pytest.raises(DataError, match="rows of a request are not next to each other"):
        joint("cascade", np.ones(3), np.array([0, 1, 0]))
