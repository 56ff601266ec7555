"""The windows of amazon-movies-llm4dsr as datasets: the same log clean and with a tenth of the events replaced.

Training windows of a user overlap. They become one sequence a user, each event once: of two windows next to each other
in time the later one goes on where the clean items agree, and follows whole where they do not. An event has the time of
the earliest window that ends with it or after it. Validation and test windows stay apart, each the history of a user of
its own at the time of its target; only their last events are to be predicted. Test windows are there twice in both
logs, with clean and with noisy histories and always a clean target.
"""

import ast
import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.ingest import IngestConfig, ingest
from recsys.sequences import IntArray

LENGTH = 11
SECONDS_APART = 3600
"""Between the parts of a day, so that each part ends before the next one begins."""
VALIDATION_FROM, TEST_FROM = "2016-04-04T00:30:00", "2017-02-06T01:30:00"


@dataclass(frozen=True)
class Window:
    """Consecutive items of a user in both logs, where they differ, and the day of the last one (seconds)."""

    user_id: str
    clean: tuple[int, ...]
    noisy: tuple[int, ...]
    mask: tuple[int, ...]
    day: int


@dataclass(frozen=True)
class UserSequence:
    """All training events of a user, each once."""

    user_id: str
    clean: list[int]
    noisy: list[int]
    mask: list[int]
    times: list[int]


def read_windows(source: Path, part: str) -> list[Window]:
    """Of `train`, `valid` or `test`; row n of both files is the same window."""
    clean_name = "train_10000" if part == "train" else f"{part}_5000"
    clean = _rows(source / "noise_0.0" / f"{clean_name}.csv.gz")
    return [
        Window(
            row["user_id"],
            _numbers(first["item_ids"]),
            _numbers(row["item_ids"]),
            _numbers(row["mask"]),
            int(row["timestamp"]),
        )
        for first, row in zip(clean, _rows(source / "noise_0.1" / f"{part}_5000.csv.gz"), strict=False)
    ]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from csv.DictReader(lines)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(ast.literal_eval(text))


def stitched(windows: Sequence[Window]) -> list[UserSequence]:
    """One sequence a user of overlapping windows; see the module."""
    by_user = defaultdict(list)
    for window in windows:
        by_user[window.user_id].append(window)
    return [_sequence(user, sorted(own, key=lambda window: window.day)) for user, own in by_user.items()]


def _sequence(user_id: str, windows: list[Window]) -> UserSequence:
    first = windows[0]
    sequence = UserSequence(user_id, [*first.clean], [*first.noisy], [*first.mask], [first.day] * LENGTH)
    for before, window in pairwise(windows):
        new = next((new for new in range(1, LENGTH) if before.clean[new:] == window.clean[:-new]), LENGTH)
        sequence.clean.extend(window.clean[-new:])
        sequence.noisy.extend(window.noisy[-new:])
        sequence.mask.extend(window.mask[-new:])
        sequence.times.extend([window.day] * new)
    return sequence


def write_logs(source: Path, work: Path) -> None:
    """`clean` and `noisy` datasets below `work`, as `recsys ingest` makes them."""
    titles = json.loads((source / "noise_0.0" / "id2name4Rec.json").read_text(encoding="utf-8"))
    work.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"item_id": list(titles), "title": list(titles.values())}).write_csv(work / "items.csv")
    sequences = stitched(read_windows(source, "train"))
    for name in ("clean", "noisy"):
        rows = [
            (entry.user_id, item, 1_000_000 * time + place)
            for entry in sequences
            for place, (item, time) in enumerate(zip(getattr(entry, name), entry.times, strict=True))
        ]
        for user, items, seconds in evaluation_windows(source, name):
            rows += [(user, item, 1_000_000 * seconds + place) for place, item in enumerate(items)]
        table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        table.write_csv(work / f"{name}.csv")
        ingest(
            IngestConfig(
                sources=(work / f"{name}.csv",),
                items=work / "items.csv",
                time_unit="us",
                out=work / name,
                overwrite=True,
            )
        )


def evaluation_windows(source: Path, name: str) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """User, items and time of the validation windows of a log, and of the test windows with both histories."""
    for number, window in enumerate(read_windows(source, "valid")):
        yield f"valid-{number:04d}", getattr(window, name), window.day + SECONDS_APART
    for number, window in enumerate(read_windows(source, "test")):
        for kind in ("clean", "noisy"):
            yield f"test-{kind}-{number:04d}", getattr(window, kind), window.day + 2 * SECONDS_APART


def noisy_events(source: Path) -> IntArray:
    """1 at replaced training events, in the order of the noisy dataset's training users."""
    sequences = sorted(stitched(read_windows(source, "train")), key=lambda entry: entry.user_id)
    return np.concatenate([np.array(entry.mask) for entry in sequences])
