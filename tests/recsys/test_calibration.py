"""Isotonic regression by its definition, and thresholds that hold what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.calibration import Operating, isotonic, noise_probability, operating_point
from recsys.errors import DataError

EVENTS = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda events: 0 < sum(noisy for _, noisy in events) < len(events)
)


@given(EVENTS)
def test_isotonic_regression_is_the_min_max_formula(events: list[tuple[int, bool]]) -> None:
    """f(x) = max over a <= x of the min over b >= x of the mean label of scores from a to b."""
    scores = np.array([score for score, _ in events], dtype=np.float64)
    noisy = np.array([label for _, label in events])
    found = isotonic(scores, noisy)
    for score in np.unique(scores):
        lows = [low for low in np.unique(scores) if low <= score]
        highs = [high for high in np.unique(scores) if high >= score]
        expected = max(min(noisy[(low <= scores) & (scores <= high)].mean() for high in highs) for low in lows)
        assert found(np.array([score]))[0] == pytest.approx(expected, abs=1e-12)
    assert found(np.array([-1.0]))[0] == found.values[0]
    assert (np.diff(found.values) > 0).all()
    assert found(scores).mean() == pytest.approx(noisy.mean())


def two_groups(number: int = 40_000, rate: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of noise put in, scores of a log of which a share `rate` is such noise, and which of it is."""
    rng = np.random.default_rng(0)
    noisy = rng.random(number) < rate
    log = np.where(noisy, rng.normal(1.5, 1, number), rng.normal(0, 1, number))
    return rng.normal(1.5, 1, number // 4), log, noisy


def test_probabilities_are_those_of_the_log_that_nobody_labelled() -> None:
    """In each tenth of the probabilities, the share that is noise."""
    put_in, log, noisy = two_groups()
    found = noise_probability(put_in, log, 0.2 * len(log) / len(put_in))(log)
    for low in np.arange(0, 1, 0.1):
        inside = (found >= low) & (found < low + 0.1)
        if inside.sum() > 500:
            assert abs(found[inside].mean() - noisy[inside].mean()) < 0.05
    assert abs(found.mean() - 0.2) < 0.01


@pytest.mark.parametrize("precision", [0.4, 0.6, 0.8])
def test_a_threshold_keeps_what_it_promises(precision: float) -> None:
    put_in, log, noisy = two_groups()
    probability = noise_probability(put_in, log, 0.2 * len(log) / len(put_in))
    found = operating_point(probability(put_in), probability(log), 0.2, precision)
    acted = probability(log) >= found.threshold
    assert precision <= found.precision
    assert abs(noisy[acted].mean() - found.precision) < 0.05
    assert abs(acted[noisy].mean() - found.recall) < 0.05
    assert abs((acted & ~noisy).mean() - found.false_corrections) < 0.02


@given(EVENTS, st.sampled_from([0.2, 0.5, 0.8]), st.integers(1, 5))
def test_the_threshold_is_the_lowest_that_is_precise_enough(
    events: list[tuple[int, bool]], precision: float, fewest: int
) -> None:
    put_in = np.array([score for score, mine in events if mine], dtype=np.float64)
    log = np.array([score for score, mine in events if not mine], dtype=np.float64)
    found = operating_point(put_in, log, 0.3, precision, fewest)
    good = []
    for level in np.unique(log):
        touched, recall = (log >= level).sum(), (put_in >= level).mean()
        noise = min(0.3 * recall * len(log), touched)
        if touched >= fewest and recall > 0 and noise >= precision * touched:
            good.append((level, noise / touched, recall))
    if good:
        assert (found.threshold, found.recall) == pytest.approx((good[0][0], good[0][2]))
        assert found.precision == pytest.approx(good[0][1])
    else:
        assert found == Operating.none()


def test_nothing_to_compare_is_explained() -> None:
    with pytest.raises(DataError, match="calibration: 0 events were put into 3; both are needed"):
        noise_probability(np.zeros(0), np.arange(3.0), 0.1)
