"""Corrections: none without need, more for a lower threshold, never past a cap, always items that fit."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noisy_logs import NUM_ITEMS, cluster_of, clustered_log, training_events

from recsys.corrections import Limits, chosen_events, correctable, replacements
from recsys.errors import ConfigError
from recsys.noise import NoiseWindows, user_folds
from recsys.relations import fit_relations

NO_LIMITS = Limits(max_corrections=99, max_share=1.0, protect_last=0)
LOGS = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=12), min_size=1, max_size=6)
LIMITS = st.builds(
    Limits,
    max_corrections=st.integers(0, 4),
    max_share=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    protect_last=st.integers(0, 2),
    protect_rare=st.integers(0, 3),
)


def drawn(scores: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores in eighths of all users' events, and the users."""
    flat = np.array([score / 8 for user in scores for score in user])
    return flat, np.repeat(np.arange(len(scores)), [len(user) for user in scores])


@given(LOGS, LIMITS, st.integers(0, 8))
def test_limits_hold(scores: list[list[int]], limits: Limits, threshold: int) -> None:
    flat, users = drawn(scores)
    events = training_events([[1 + place % 3 for place in range(len(user))] for user in scores])
    counts = events.item_counts()
    allowed = correctable(events.store, events.stops, counts, limits)
    chosen = chosen_events(flat, flat, threshold / 8, allowed, users, limits)
    for user, own in enumerate(scores):
        mine = users == user
        assert chosen[mine].sum() <= limits.max_corrections
        assert chosen[mine].sum() <= limits.max_share * allowed[mine].sum()
        assert not chosen[mine][max(0, len(own) - limits.protect_last) :].any()
        rest = flat[mine & allowed & ~chosen]
        if chosen[mine].any() and len(rest):
            assert flat[mine & chosen].min() >= max([score for score in rest if score >= threshold / 8], default=0)
    assert (flat[chosen] >= threshold / 8).all()
    assert (counts[events.store.item_idx[chosen]] >= limits.protect_rare).all()


@given(LOGS, LIMITS, st.integers(0, 8))
def test_a_lower_threshold_corrects_no_less(scores: list[list[int]], limits: Limits, threshold: int) -> None:
    flat, users = drawn(scores)
    allowed = np.ones(len(flat), dtype=bool)
    few, many = (chosen_events(flat, flat, at / 8, allowed, users, limits) for at in (threshold, max(0, threshold - 1)))
    assert not (few & ~many).any()


@given(LOGS)
def test_no_threshold_and_no_correction_change_nothing(scores: list[list[int]]) -> None:
    flat, users = drawn(scores)
    allowed = np.ones(len(flat), dtype=bool)
    assert not chosen_events(flat, flat, np.inf, allowed, users, NO_LIMITS).any()
    none = dataclasses.replace(NO_LIMITS, max_corrections=0)
    assert not chosen_events(flat, flat, 0.0, allowed, users, none).any()
    three = dataclasses.replace(NO_LIMITS, max_corrections=3)
    chosen = chosen_events(flat, flat, 0.0, allowed, users, three)
    assert np.bincount(users, chosen).tolist() == [min(3, len(user)) for user in scores]


def test_equal_probabilities_go_by_the_detectors_figure() -> None:
    one = dataclasses.replace(NO_LIMITS, max_corrections=1)
    same, users = np.full(3, 0.5), np.zeros(3, dtype=np.int64)
    chosen = chosen_events(same, np.array([0.1, 0.3, 0.2]), 0.5, np.ones(3, dtype=bool), users, one)
    assert chosen.tolist() == [False, True, False]


def test_what_is_put_in_comes_from_the_catalogue_and_fits() -> None:
    """On the clusters: always the user's own, an item that occurs, and none that stands in the window."""
    log = clustered_log()
    events, folds = log.events, user_folds(log.events.store, 4)
    relations = fit_relations(events, folds, np.zeros((NUM_ITEMS + 1, 0), dtype=np.float32), 11, 16)
    windows = NoiseWindows.cut(events.stops, 11)
    noisy = np.array([bad for user in log.noisy for bad in user])
    better = replacements(events.store, windows, folds, noisy, relations).reshape(len(log.seen), 11)
    assert (better.ravel()[~noisy] == events.store.item_idx[~noisy]).all()
    right = 0
    for after, before, mask, truth in zip(better, log.seen, log.noisy, log.clean, strict=True):
        for item, old, bad in zip(after, before, mask, strict=True):
            if bad:
                assert 1 <= item <= NUM_ITEMS
                assert item not in before
                assert item != old
                right += cluster_of(int(item)) == cluster_of(truth[0])
    assert right > 0.95 * noisy.sum()


def test_an_item_stays_where_only_its_own_user_bought_others() -> None:
    """Replacements come from tables without the user: items that he alone has do not occur there."""
    histories = [[1, 2, 3], *[[4, 5, 6]] * 4]
    events = training_events(histories, 6)
    folds = np.array([0, 1, 1, 1, 1])
    relations = fit_relations(events, folds, np.zeros((7, 0), dtype=np.float32), 3, 3)
    chosen = np.zeros(events.store.num_events, dtype=bool)
    chosen[1] = True
    better = replacements(events.store, NoiseWindows.cut(events.stops, 3), folds, chosen, relations)
    assert better[1] in {4, 5, 6}


def test_bad_limits_are_explained() -> None:
    with pytest.raises(ConfigError, match="denoise: max_corrections=-1 must be at least 0"):
        Limits(max_corrections=-1)
    with pytest.raises(ConfigError, match=r"denoise: max_share=1\.5 must lie in \[0, 1\]"):
        Limits(max_share=1.5)
