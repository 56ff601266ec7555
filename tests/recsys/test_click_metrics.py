"""Click metrics against hand arithmetic and counting every pair."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.click_metrics import auc, calibration, calibration_error, click_metrics, gauc, logloss
from recsys.errors import DataError

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=40)
"""User, label, score; few values on purpose: ties are the hard part."""


def by_pairs(labels: list[int], scores: list[float]) -> float | None:
    """Share of pairs of a click and another row that are in order, equal ones half; None without any pair."""
    clicks = [score for label, score in zip(labels, scores, strict=True) if label]
    others = [score for label, score in zip(labels, scores, strict=True) if not label]
    if not clicks or not others:
        return None
    wins = sum((click > other) + (click == other) / 2 for click in clicks for other in others)
    return wins / (len(clicks) * len(others))


def test_auc_by_hand() -> None:
    """Of six pairs four are in order and one is a tie."""
    labels, scores = np.array([1, 0, 1, 0, 0]), np.array([3.0, 3.0, 2.0, 1.0, -4.0])
    assert auc(labels, scores) == pytest.approx(4.5 / 6)
    assert auc(labels, np.zeros(5)) == 0.5


def test_gauc_weighs_users_by_their_rows_and_leaves_out_those_of_one_kind() -> None:
    users = np.array([7, 7, 7, 2, 2, 5, 5, 5])
    labels = np.array([1, 0, 0, 0, 1, 1, 1, 1])
    scores = np.array([0.5, 0.1, 0.9, 0.2, 0.8, 0.1, 0.2, 0.3])
    assert gauc(users, labels, scores) == pytest.approx((3 * 0.5 + 2 * 1.0) / 5)


@given(ROWS)
def test_auc_and_gauc_count_every_pair(rows: list[tuple[int, int, int]]) -> None:
    users, labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores.astype(np.float64)
    expected = by_pairs(labels.tolist(), scores.tolist())
    of_users = [
        (by_pairs(labels[users == user].tolist(), scores[users == user].tolist()), (users == user).sum())
        for user in range(4)
    ]
    known = [(value, size) for value, size in of_users if value is not None]
    if expected is not None:
        assert auc(labels, scores) == pytest.approx(expected)
    if known:
        mean = sum(value * size for value, size in known) / sum(size for _, size in known)
        assert gauc(users, labels, scores) == pytest.approx(mean)


def test_without_both_kinds_there_is_no_auc() -> None:
    with pytest.raises(DataError, match="auc: 3 rows, 3 of them clicks; both kinds are needed"):
        auc(np.ones(3, dtype=np.int64), np.arange(3.0))
    with pytest.raises(DataError, match="gauc: none of 2 users has clicks and other rows"):
        gauc(np.array([0, 1]), np.array([0, 1]), np.arange(2.0))
    with pytest.raises(DataError, match="some scores are no numbers"):
        auc(np.array([0, 1]), np.array([0.0, np.nan]))


def test_logloss_by_hand_and_at_the_ends() -> None:
    labels, probabilities = np.array([1, 0, 1]), np.array([0.8, 0.3, 0.5])
    assert logloss(labels, probabilities) == pytest.approx(-(math.log(0.8) + math.log(0.7) + math.log(0.5)) / 3)
    assert math.isfinite(logloss(np.array([1, 0]), np.array([0.0, 1.0])))


def test_calibration_is_predicted_over_true_clicks() -> None:
    assert calibration(np.array([1, 0, 0, 1]), np.array([0.9, 0.5, 0.7, 0.9])) == pytest.approx(1.5)


def test_calibration_error_by_hand() -> None:
    """Twenty rows in ten bins of two: predictions .05, .1 ... in pairs, of which the upper half was clicked."""
    probabilities = np.repeat(np.arange(10) / 10 + 0.05, 2)
    labels = (np.arange(20) >= 10).astype(np.int64)
    expected = np.mean([abs(place / 10 + 0.05 - (place >= 5)) for place in range(10)])
    order = np.random.default_rng(0).permutation(20)
    assert calibration_error(labels[order], probabilities[order]) == pytest.approx(expected)


def test_a_calibrated_model_has_little_error() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=50_000)
    labels = (rng.random(50_000) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    users = np.zeros(50_000, dtype=np.int64)
    right, wrong = click_metrics(users, labels, logits), click_metrics(users, labels, 2 * logits)
    assert right["calibration_error"] < 0.01 < wrong["calibration_error"]
    assert right["calibration"] == pytest.approx(1, abs=0.02)
    assert right["auc"] == wrong["auc"] == right["gauc"]
    assert right["logloss"] < wrong["logloss"]
