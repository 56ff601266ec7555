"""A cell of the benchmark: a task in, a measurement out, each in a process of its own.

Standard library only, for this file is also read inside the environments of the peers.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

WIDTH, BLOCKS, HEADS, FFN = 64, 2, 2, 256
DROPOUT = 0.2
MASK_SHARE = 0.2
LEARNING_RATE = 1e-3
LIST_LENGTH = 100
REPEATS = 3
LONGEST_REPEATS = 10.0

Library = Literal["recsys", "recbole", "rectools"]
Kind = Literal["speed", "floor", "prepare", "quality"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process measures. `folder` holds one dataset; `seconds` is how long to train; `lists` where lists go."""

    kind: Kind
    library: Library
    model: Literal["sasrec", "bert4rec"]
    dataset: str
    window: int
    folder: str
    seconds: float
    precision: Precision = "fp32"
    lists: str = ""

    @property
    def name(self) -> str:
        """The file of its result."""
        return f"{self.kind}-{self.library}-{self.model}-{self.dataset}-{self.window}-{self.precision}"

    @property
    def log(self) -> Path:
        """The events as a RecBole atomic file, tab-separated: user, item, place in the user's history."""
        return Path(self.folder) / f"{self.dataset}.inter"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a process found; zero where the task did not ask.

    `train_seconds` went into `train_batches` with `train_targets` predictions; a pass over the library's own
    training samples has `pass_batches`.
    """

    version: str
    torch: str
    threads: int
    prepare_seconds: float = 0.0
    train_seconds: float = 0.0
    train_targets: int = 0
    train_batches: int = 0
    pass_batches: int = 0
    evaluate_seconds: float = 0.0
    cases: int = 0
    peak_memory_mib: int = 0


class Stopwatch:
    """Times batches: the first `warm_up` do not count, and after `seconds` it is `done`."""

    def __init__(self, seconds: float, warm_up: int = 1) -> None:
        self.limit, self.warm_up = seconds, warm_up
        self.seconds, self.targets, self.batches = 0.0, 0, -warm_up
        self.began = time.perf_counter()

    def lap(self, targets: int) -> None:
        """One batch with so many predictions has ended."""
        self.batches += 1
        if self.batches <= 0:
            self.began = time.perf_counter()
            return
        self.targets += targets
        self.seconds = time.perf_counter() - self.began

    @property
    def done(self) -> bool:
        """Whether enough was measured."""
        return self.batches > 0 and self.seconds >= self.limit


def median_seconds(work: Callable[[], object], warm_up: bool = True) -> float:
    """Median of `REPEATS` runs, of one where they would take too long."""
    if warm_up:
        work()
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < LONGEST_REPEATS:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def peak_memory_mib() -> int:
    """Most memory this process has held, in MiB.

    Linux hands `ru_maxrss` down to a child process, parent's memory and all; `VmHWM` begins anew.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def answer(measure: Callable[[Task], Measurement]) -> None:
    """Main of a measuring process: `python -m MODULE TASK.json RESULT.json`."""
    task_file, result_file = map(Path, sys.argv[1:])
    measurement = measure(Task(**json.loads(task_file.read_text(encoding="utf-8"))))
    measurement = replace(measurement, peak_memory_mib=peak_memory_mib())
    result_file.write_text(json.dumps(asdict(measurement)), encoding="utf-8")
