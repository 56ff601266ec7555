"""Training windows, their order, the parts of a batch: nothing is lost and nothing is counted twice."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import histories_of, irregular_times, store_of, windows_of

from recsys import batches
from recsys.batches import TrainBatch, TrainingWindows, WindowShape, next_item_batch, some_targets, thinned
from recsys.negatives import Negatives

STOPS = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@given(STOPS, st.integers(2, 12))
def test_with_an_overlap_of_one_every_event_but_the_first_is_a_target_once(stops: list[int], length: int) -> None:
    windows = TrainingWindows.cut(np.array(stops), WindowShape(length=length, overlap=1))
    targets = Counter(
        (user, place)
        for user, start, stop in zip(windows.users, windows.starts, windows.stops, strict=True)
        for place in range(start + 1, stop)
    )
    assert targets == Counter((user, place) for user, stop in enumerate(stops) for place in range(1, stop))
    sizes = windows.stops - windows.starts
    assert ((sizes >= 2) & (sizes <= length)).all()


@given(STOPS, st.integers(2, 12))
def test_side_by_side_every_event_is_in_one_window(stops: list[int], length: int) -> None:
    windows = TrainingWindows.cut(np.array(stops), WindowShape(length=length, overlap=0))
    events = Counter(
        (user, place)
        for user, start, stop in zip(windows.users, windows.starts, windows.stops, strict=True)
        for place in range(start, stop)
    )
    assert events == Counter((user, place) for user, stop in enumerate(stops) if stop >= 2 for place in range(stop))
    assert (windows.stops - windows.starts).max(initial=0) <= length


def test_only_a_users_oldest_window_is_shorter() -> None:
    windows = TrainingWindows.cut(np.array([7, 1, 4]), WindowShape(length=4, overlap=1))
    assert list(zip(windows.users.tolist(), windows.starts.tolist(), windows.stops.tolist(), strict=True)) == [
        (0, 3, 7),
        (0, 0, 4),
        (2, 0, 4),
    ]
    shorter = TrainingWindows.cut(np.array([6]), WindowShape(length=4, overlap=1))
    assert (shorter.starts.tolist(), shorter.stops.tolist()) == ([2, 0], [6, 3])


def some_windows(count: int) -> TrainingWindows:
    """Windows of 2 to 30 events, one a user."""
    stops = np.random.default_rng(0).integers(2, 31, count)
    return TrainingWindows.cut(stops, WindowShape(length=30, overlap=1))


def test_an_epoch_may_be_so_many_batches_drawn_anew() -> None:
    windows = some_windows(100)
    assert [windows.batches(7), windows.batches(7, 4), windows.batches(7, 40)] == [15, 4, 15]
    first, second = (
        np.concatenate(list(windows.epoch(7, np.random.default_rng(seed), most=4))).tolist() for seed in (0, 1)
    )
    assert len(first) == len(set(first)) == 28
    assert set(first) != set(second)
    assert sorted(np.concatenate(list(windows.epoch(7, np.random.default_rng(0))))) == list(range(100))


@given(st.integers(1, 90), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32))
def test_an_epoch_holds_every_window_once(count: int, batch_size: int, pool: int, seed: int) -> None:
    windows = some_windows(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "POOL_BATCHES", pool)
        epoch = list(windows.epoch(batch_size, np.random.default_rng(seed)))
    assert sorted(np.concatenate(epoch)) == list(range(count))
    sizes = sorted(len(chosen) for chosen in epoch)
    assert len(epoch) == -(-count // batch_size)
    assert sizes[1:] == [batch_size] * (len(epoch) - 1)


def test_epochs_differ_by_seed_and_by_nothing_else() -> None:
    windows = some_windows(50)

    def order(seed: int) -> list[int]:
        return np.concatenate(list(windows.epoch(8, np.random.default_rng(seed)))).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_windows_of_a_batch_are_of_like_length() -> None:
    """Otherwise half of every batch would be padding."""
    windows = some_windows(640)
    lengths = windows.stops - windows.starts
    epoch = list(windows.epoch(16, np.random.default_rng(0)))
    spreads = [int(lengths[chosen].max() - lengths[chosen].min()) for chosen in epoch]
    assert np.mean(spreads) <= 2
    assert [int(lengths[chosen].max()) for chosen in epoch[:5]] != sorted(lengths[chosen].max() for chosen in epoch[:5])


def test_load_gives_the_events_of_the_chosen_windows() -> None:
    windows = TrainingWindows.cut(np.array([6, 3]), WindowShape(length=4, overlap=1))
    loaded = windows.load(store_of([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10]]), np.array([2, 0]))
    assert loaded.items.tolist() == [[8, 9, 10, 0], [3, 4, 5, 6]]
    assert loaded.timestamps.tolist() == [[7, 8, 9, 0], [2, 3, 4, 5]]
    assert loaded.lengths.tolist() == [3, 4]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.floats(0, 0.99), st.integers(0, 2**32))
def test_a_thinned_window_is_a_part_of_it_in_order(lengths: list[int], share: float, seed: int) -> None:
    rows = [list(range(100 * row + 1, 100 * row + length + 1)) for row, length in enumerate(lengths)]
    whole = windows_of(rows)
    left = thinned(whole, share, np.random.default_rng(seed))
    assert left.items.shape == left.timestamps.shape == (len(rows), left.lengths.max())
    for row, given_items in enumerate(rows):
        size = left.lengths[row]
        kept = left.items[row, :size].tolist()
        assert kept == sorted(set(kept) & set(given_items))
        assert size == len(given_items) or size >= 2
        times = dict(zip(given_items, whole.timestamps[row].tolist(), strict=False))
        assert left.timestamps[row, :size].tolist() == [times[item] for item in kept]
        assert not left.items[row, size:].any()
        assert not left.timestamps[row, size:].any()


@pytest.mark.parametrize(("length", "share"), [(2, 0.3), (3, 0.3), (4, 0.5)])
def test_thinned_windows_have_the_expected_length(length: int, share: float) -> None:
    """Binomial, but what would be none or one is all."""
    chances = [math.comb(length, left) * (1 - share) ** left * share ** (length - left) for left in range(length + 1)]
    expected = sum(chance * (left if left >= 2 else length) for left, chance in enumerate(chances))
    rows = 20_000
    left = thinned(windows_of([list(range(1, length + 1))] * rows), share, np.random.default_rng(0))
    assert left.lengths.mean() == pytest.approx(expected, abs=4 * length / 2 / math.sqrt(rows))


def test_thinning_leaves_the_wanted_share_out() -> None:
    windows = windows_of([list(range(1, 101))] * 50)
    left = thinned(windows, 0.3, np.random.default_rng(0))
    assert abs(left.lengths.sum() / 5000 - 0.7) < 0.02  # three standard deviations
    assert len({tuple(row) for row in left.items.tolist()}) == 50


def test_every_event_predicts_the_next_by_hand() -> None:
    batch = next_item_batch(windows_of([[5, 6, 7], [8, 9], [3]]))
    assert batch.history.tolist() == [[5, 6], [8, 0], [0, 0]]
    assert batch.target.tolist() == [[6, 7], [9, 0], [0, 0]]
    assert batch.lengths.tolist() == [2, 1, 0]
    assert batch.num_targets == 3
    assert batch.timestamps.shape == batch.history.shape
    assert batch.timestamps[0].tolist() == irregular_times(2)


def numbered_batch(rows: int, negatives: Negatives | None = None) -> TrainBatch:
    """Row r holds r + 1 everywhere, its times a hundredfold, its targets tenfold."""
    numbers = torch.arange(1, rows + 1)[:, None].expand(-1, 3).contiguous()
    return TrainBatch(
        history=numbers,
        timestamps=100 * numbers,
        target=10 * numbers,
        lengths=torch.arange(1, rows + 1).int(),
        negatives=negatives,
    )


def test_targets_stay_with_the_probability_that_is_their_weight() -> None:
    """The mean over draws is a loss weighted by them; without weights nothing is drawn."""
    batch, weights = numbered_batch(2), np.array([[0.0, 0.25, 1.0], [0.5, 1.0, 0.0]])
    rng = np.random.default_rng(0)
    kept = np.mean([(batch.weighed(weights, rng).target != 0).numpy() for _ in range(4000)], axis=0)
    assert np.abs(kept - weights).max() < 0.03
    assert (kept[weights == 0] == 0).all()
    assert (kept[weights == 1] == 1).all()
    state = rng.bit_generator.state
    assert batch.weighed(None, rng) is batch
    assert rng.bit_generator.state == state


def test_thinning_takes_weights_along() -> None:
    windows = windows_of([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10]])
    weighed = replace(windows, weights=(windows.items / 10).astype(np.float32))
    left = thinned(weighed, 0.5, np.random.default_rng(0))
    assert left.weights is not None
    np.testing.assert_allclose(left.weights, left.items / 10, rtol=1e-6)


@given(st.integers(1, 9), st.integers(1, 12))
def test_the_parts_of_a_batch_are_the_batch(rows: int, parts: int) -> None:
    batch = numbered_batch(rows)
    shares = [batch.share(part, parts) for part in range(parts)]
    assert all(len(share.lengths) >= 1 for share in shares), "a process without rows would leave the others waiting"
    held = [share for share in shares if share.num_targets]
    assert sorted(torch.cat([share.history for share in held])[:, 0].tolist()) == list(range(1, rows + 1))
    assert sum(share.num_targets for share in shares) == batch.num_targets
    for share in held:
        assert torch.equal(share.target, 10 * share.history)
        assert torch.equal(share.timestamps, 100 * share.history)
        assert torch.equal(share.lengths.long(), share.history[:, 0])


def test_a_part_without_rows_predicts_nothing() -> None:
    share = numbered_batch(2).share(4, 5)
    assert share.history.shape == (1, 3)
    assert share.lengths.tolist() == [1]
    assert not share.target.any()


@given(st.integers(1, 9), st.integers(1, 12))
def test_negatives_of_a_position_go_with_its_row(rows: int, parts: int) -> None:
    own = torch.arange(1, rows + 1)[:, None].expand(-1, 3) * 7
    batch = numbered_batch(rows, Negatives(own, -own.double()))
    for part in range(parts):
        share = batch.share(part, parts)
        assert share.negatives is not None
        assert torch.equal(share.negatives.items, 7 * share.history)
        assert torch.equal(share.negatives.log_weight, -7.0 * share.history)


def test_shared_negatives_stay_with_every_part() -> None:
    """All processes and micro-batches compare with the same draw, as one batch would."""
    drawn = Negatives(torch.tensor([2, 5, 9]), torch.tensor([0.5, 1.0, 1.5]))
    for part in range(5):
        share = numbered_batch(3, drawn).share(part, 5).share(0, 2)
        assert share.negatives is not None
        assert torch.equal(share.negatives.items, drawn.items)
        assert torch.equal(share.negatives.log_weight, drawn.log_weight)


def test_a_batch_moves_with_all_it_holds() -> None:
    drawn = Negatives(torch.tensor([2, 5, 9]), torch.tensor([0.5, 1.0, 1.5]))
    moved = numbered_batch(3, drawn).to(torch.device("meta"))
    assert moved.negatives is not None
    tensors = (moved.history, moved.timestamps, moved.target, moved.lengths, moved.negatives.items)
    assert all(tensor.is_meta for tensor in (*tensors, moved.negatives.log_weight))


def test_histories_by_index_and_by_mask() -> None:
    histories = histories_of([[1], [2, 3], [4, 5, 6]])
    assert histories.rows(torch.tensor([2, 0])).items[:, 0].tolist() == [4, 1]
    assert histories.rows(histories.lengths > 1).lengths.tolist() == [2, 3]


def test_batches_hold_windows_of_one_group_but_for_those_at_the_seams() -> None:
    stops = np.random.default_rng(2).integers(2, 10, 3000)
    windows = TrainingWindows.cut(stops, WindowShape(length=10, overlap=1))
    grouped = replace(windows, groups=np.random.default_rng(1).integers(0, 4, len(windows)))
    batches = list(grouped.epoch(32, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(len(windows)))
    assert len(batches) == windows.batches(32)
    mixed = [len(np.unique(grouped.groups[batch])) > 1 for batch in batches]
    assert 0 < sum(mixed) <= 2 * 3, "two pools, three seams each"
    lengths = windows.stops - windows.starts
    alike = [np.ptp(lengths[batch]) <= 1 for batch, seam in zip(batches, mixed, strict=True) if not seam]
    assert np.mean(alike) > 0.9, "neighbours in length stay together"
    same = replace(windows, groups=windows.groups + 7).epoch(32, np.random.default_rng(0))
    for ours, theirs in zip(windows.epoch(32, np.random.default_rng(0)), same, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("most", [1, 3, 4, 5, 9])
def test_the_latest_events_of_histories(most: int) -> None:
    histories = [[4, 7, 2, 9, 5], [3, 1], [8, 6, 2, 5]]
    batch = histories_of(histories).latest(most)
    assert batch.lengths.tolist() == [min(most, len(history)) for history in histories]
    for row, history in enumerate(histories):
        length = batch.lengths[row]
        assert batch.items[row, :length].tolist() == history[-most:]
        assert batch.timestamps[row, :length].tolist() == irregular_times(len(history))[-most:]


def test_some_targets_are_drawn_anew_among_those_allowed() -> None:
    target = torch.tensor([[5, 6, 7, 8, 9], [4, 3, 0, 0, 0], [1, 2, 3, 4, 0]])
    often = np.zeros((3, 5))
    for seed in range(400):
        drawn = some_targets(target, np.array([2, 0, 0]), 2, np.random.default_rng(seed))
        kept = (drawn != 0).numpy()
        assert kept.sum(axis=1).tolist() == [2, 2, 2]
        assert torch.equal(drawn[kept], target[kept])
        often += kept
    expected = 400 * np.array([[0, 0, 2 / 3, 2 / 3, 2 / 3], [1, 1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5, 0]])
    assert (np.abs(often - expected) < 50).all()
    assert torch.equal(some_targets(target, np.array([0, 0, 0]), 9, np.random.default_rng(0)), target)


@pytest.mark.parametrize("stop", range(2, 26))
def test_a_window_that_overlaps_by_half_teaches_every_event_but_the_first_once(stop: int) -> None:
    """A whole window teaches what is behind the overlap, a shorter one all."""
    half = 4
    windows = TrainingWindows.cut(np.array([stop]), WindowShape(length=2 * half, overlap=half))
    taught: list[int] = []
    for start, end in zip(windows.starts.tolist(), windows.stops.tolist(), strict=True):
        taught += range(start + (half if end - start == 2 * half else 1), end)
    assert sorted(taught) == list(range(1, stop))
