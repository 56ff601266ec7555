"""Buckets of times by hand, at their borders, and of prefixes."""

import numpy as np
import torch
from torch import Tensor

from recsys.time_buckets import interval_buckets


def times(*seconds: float) -> Tensor:
    """One row of timestamps in microseconds."""
    return torch.tensor([[round(1_000_000 * second) for second in seconds]])


def test_buckets_of_known_intervals() -> None:
    """0 s, 1 s, 3 s, just under a minute, an hour, a day, a year: 1 + floor(log2(1 + s))."""
    year = 365 * 86_400
    gaps = [0.0, 0.999_999, 1.0, 2.999_999, 3.0, 59.0, 3600.0, 86_400.0, year]
    by_hand = [1, 1, 2, 2, 3, 6, 12, 17, 25]
    moments = times(*(1e9 + np.cumsum([0.0, *gaps])))
    assert interval_buckets(moments, 40).tolist() == [[0, *by_hand]]
    assert interval_buckets(moments, 13).tolist() == [[0, 1, 1, 2, 2, 3, 6, 12, 12, 12]]


def test_buckets_change_at_powers_of_two() -> None:
    for power in range(1, 36):
        at = 2**power - 1
        moments = torch.tensor([[0, 1_000_000 * at - 1], [0, 1_000_000 * at]])
        assert interval_buckets(moments, 64).tolist() == [[0, power], [0, power + 1]]


def test_a_step_back_in_time_is_no_time_at_all() -> None:
    """Padding, too, has time 0 after the last event."""
    assert interval_buckets(times(100, 90, 0), 9).tolist() == [[0, 1, 1]]


def test_one_event_or_one_bucket_says_nothing() -> None:
    assert interval_buckets(times(7), 9).tolist() == [[0]]
    assert interval_buckets(times(7, 9, 99), 1).tolist() == [[0, 0, 0]]


def test_buckets_of_a_prefix_are_the_prefix_of_the_buckets() -> None:
    moments = torch.from_numpy(np.random.default_rng(0).integers(0, 10**12, (4, 9)).cumsum(axis=1))
    buckets = interval_buckets(moments, 20)
    assert len(buckets.unique()) > 4
    for length in range(1, 10):
        assert torch.equal(interval_buckets(moments[:, :length], 20), buckets[:, :length])
