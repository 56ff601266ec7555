"""Windows are judged once; what a killed run has judged stays, and going on gives the same to the bit."""

from pathlib import Path

import numpy as np
import pytest

from recsys.errors import ConfigError
from recsys.noise import Judged
from recsys.score_store import kept_naming


class Counting:
    """Says of each event its item's share of the window; dies after so many windows."""

    def __init__(self, dies_after: int = 10_000) -> None:
        self.judged, self.dies_after = 0, dies_after

    def naming(self, windows: Judged) -> np.ndarray:
        if self.judged >= self.dies_after:
            raise KeyboardInterrupt
        self.judged += len(windows)
        return (windows.items / np.maximum(windows.items.sum(axis=1, keepdims=True), 1)).astype(np.float32)

    def __call__(self) -> "Counting":
        return self


def judged_windows(number: int = 700, width: int = 5) -> Judged:
    """Of two and more events, in two blocks."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, width + 1, number)
    lengths[0] = width
    items = np.where(np.arange(width) < lengths[:, None], rng.integers(1, 10_000, (number, width)), 0)
    return Judged(items, lengths, rng.integers(0, 2, number))


def test_nothing_is_judged_twice(tmp_path: Path) -> None:
    windows, done, detector = judged_windows(), list[int](), Counting()
    first = kept_naming("key", detector, windows, tmp_path, done.append)
    assert (detector.judged, sum(done)) == (700, 700)
    np.testing.assert_array_equal(first, Counting().naming(windows))
    wider = Judged(np.pad(windows.items, ((0, 0), (0, 3))), windows.lengths, windows.blocks)
    again = kept_naming("key", Counting(dies_after=0), wider, tmp_path, done.append)
    np.testing.assert_array_equal(again[:, :5], first)
    assert sum(done) == 1400


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    windows = judged_windows()
    with pytest.raises(KeyboardInterrupt):
        kept_naming("key", Counting(dies_after=300), windows, tmp_path, lambda _: None)
    detector = Counting()
    kept_naming("key", detector, windows, tmp_path, lambda _: None)
    assert detector.judged == 700 - 512


def test_another_detector_or_block_is_asked_anew(tmp_path: Path) -> None:
    windows = judged_windows(10)
    kept_naming("key", Counting(), windows, tmp_path, lambda _: None)
    other, moved = Counting(), Counting()
    kept_naming("other", other, windows, tmp_path, lambda _: None)
    kept_naming("key", moved, Judged(windows.items, windows.lengths, windows.blocks + 2), tmp_path, lambda _: None)
    assert (other.judged, moved.judged) == (10, 10)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: cannot keep scores there .* set RECSYS_NOISE to another folder"):
        kept_naming("key", Counting(), judged_windows(3), tmp_path / "file", lambda _: None)
