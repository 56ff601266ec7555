"""Windows that judge every event once, and the cheapest detector on planted noise."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from noisy_logs import clustered_log, training_events

from recsys.click_metrics import auc
from recsys.noise import Judged, NoiseDetector, NoiseWindows, OutlierDetector, user_folds
from recsys.relations import fit_relations


@given(st.lists(st.integers(0, 14), min_size=1, max_size=8), st.integers(3, 6))
def test_every_event_of_a_long_enough_history_is_judged_once(lengths: list[int], length: int) -> None:
    lengths = [max(1, own) for own in lengths]
    events = training_events([[1] * own for own in lengths])
    windows = NoiseWindows.cut(events.stops, length)
    judged = windows.load(events.store, np.zeros(len(lengths), dtype=np.int64))
    places = windows.places(events.store, judged.items.shape[1])
    users = np.repeat(np.arange(len(lengths)), lengths)
    expected = [place for place, user in enumerate(users) if lengths[user] >= 3]
    assert sorted(places[places >= 0].tolist()) == expected
    assert (judged.lengths == np.minimum(length, np.array(lengths)[windows.users])).all()


def test_places_point_at_the_items_that_are_shown() -> None:
    events = training_events([[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]])
    windows = NoiseWindows.cut(np.array([7, 2, 3]), 3)
    judged = windows.load(events.store, np.array([0, 1, 1]))
    places = windows.places(events.store, 3)
    shown = judged.items[places >= 0]
    assert (events.store.item_idx[places[places >= 0]] == shown).all()
    assert sorted(shown.tolist()) == [1, 2, 3, 4, 5, 6, 7, 10, 11, 12]
    assert judged.blocks.tolist() == [0, 0, 0, 1]


def test_folds_are_of_the_id_alone() -> None:
    events = training_events([[1], [2], [3], [4]])
    assert (
        user_folds(events.store, 4).tolist() == user_folds(training_events([[9, 9], [1], [1], [1]]).store, 4).tolist()
    )
    assert set(user_folds(training_events([[1]] * 60).store, 4)) == {0, 1, 2, 3}


def test_cooccurrence_finds_what_comes_from_another_cluster() -> None:
    """The sheet's oracle: AUC above .95, judged by tables that know nothing of the user."""
    log = clustered_log()
    folds = user_folds(log.events.store, 4)
    relations = fit_relations(log.events, folds, np.zeros((log.events.num_rows, 0), dtype=np.float32), 11, 16)
    detector = OutlierDetector(relations)
    assert isinstance(detector, NoiseDetector)
    windows = Judged(np.array(log.seen), np.full(len(log.seen), 11), folds)
    found = detector.naming(windows)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert auc(np.array(log.noisy).astype(np.int64).ravel(), found.ravel().astype(np.float64)) > 0.95
    padded = Judged(np.pad(windows.items, ((0, 0), (0, 2))), windows.lengths, folds)
    np.testing.assert_allclose(detector.naming(padded)[:, :11], found, atol=1e-6)
    assert not detector.naming(padded)[:, 11:].any()
