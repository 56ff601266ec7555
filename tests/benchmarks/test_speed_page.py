"""What the page says follows from the cells."""

from dataclasses import replace

import pytest

from benchmarks.cells import Measurement, Stopwatch, Task
from benchmarks.speed_page import Cell, Cells, Facts, Setting, Stamp, number, page, ratio

TASK = Task(kind="speed", library="recsys", model="bert4rec", dataset="ml-1m", window=50, folder="data", seconds=20.0)
MEASUREMENT = Measurement(
    version="0.1.0",
    torch="2.13.0",
    threads=2,
    train_seconds=3.0,
    train_targets=200,
    train_batches=4,
    pass_batches=8,
    evaluate_seconds=0.5,
    peak_memory_mib=400,
)
STAMP = Stamp("2026-11-21", "a machine, 2 cores", "0123456789ab")
SIZES = {"ml-1m": Facts(users=6040, items=3416, events=999_611, targets=1000)}


def test_an_epoch_is_scaled_to_all_targets_whatever_was_timed() -> None:
    cells = Cells([Cell(TASK, MEASUREMENT, STAMP, None)], SIZES)
    assert cells.settings == [Setting("ml-1m", 50, "bert4rec")]
    assert cells.epoch("speed", "recsys", cells.settings[0]) == pytest.approx(15.0)
    assert cells.epoch("speed", "recsys", cells.settings[0], "bf16") is None


def test_the_page_has_the_ratio_and_a_dash_for_what_was_not_measured() -> None:
    peer = Cell(replace(TASK, library="recbole"), replace(MEASUREMENT, train_seconds=60.0), STAMP, None)
    narrow = Cell(replace(TASK, precision="bf16"), replace(MEASUREMENT, evaluate_seconds=0.25), STAMP, None)
    text = page([Cell(TASK, MEASUREMENT, STAMP, None), narrow, peer], SIZES)
    assert "| MovieLens-1M | 50 | BERT4Rec | 15 | 15 | 300 | - | 20 x, 20 x | -, - | - | - | -, - |" in text
    assert "| MovieLens-1M | 50 | BERT4Rec | 0.5 | 0.25 | 0.5 | - | 1 x, 2 x | -, - |" in text
    assert "| RecBole | 4 | 8 | 120 | 400 | 2.50 |" in text


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (None, 0.012345, 12.345, 123.45, 1234.5)] == [
        "-",
        "0.0123",
        "12.3",
        "123",
        "1234",
    ]
    assert ratio(10.0, None) == ratio(10.0, 0.0) == "-"


def test_the_stopwatch_leaves_the_warm_up_out() -> None:
    watch = Stopwatch(0.0, warm_up=2)
    laps = []
    for targets in (100, 10, 1):
        watch.lap(targets)
        laps.append((watch.batches, watch.targets, watch.done))
    assert laps == [(-1, 0, False), (0, 0, False), (1, 1, True)]
