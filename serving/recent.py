"""What happened lately, for the dashboard: bounded, in this process, and of nobody in particular.

slots of 5 s     requests, refusals, failures            the last five minutes
latest answers   stages, encoding, variant, items        the last 2,000, without who asked
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from serving.encodings import Origin
from serving.queries import STAGES, Answer, Stage

SLOT_SECONDS, SLOTS, ANSWERS = 5, 60, 2_000
QUANTILES = (0.5, 0.95, 0.99)


@dataclass
class Slot:
    """Requests of a few seconds: all, those refused (4xx) and those failed (5xx)."""

    number: int
    requests: int = 0
    refused: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Noted:
    """What is kept of one answer."""

    variant: str
    seconds: dict[Stage, float]
    encoding: Origin | None
    item_ids: Sequence[str]


@dataclass(frozen=True)
class Times:
    """Of `count` times: quantiles in milliseconds, in the order of `QUANTILES`."""

    count: int
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        """None of none."""
        if not seconds:
            return cls(0, (0.0,) * len(QUANTILES))
        return cls(len(seconds), tuple((np.quantile(seconds, QUANTILES) * 1e3).tolist()))


@dataclass(frozen=True)
class Lately:
    """All of it at one moment; `traffic` is the oldest slot first, the last one still being filled."""

    traffic: list[Slot]
    requests: Times
    stages: dict[Stage, Times]
    variants: dict[str, Times]
    encodings: Counter[Origin]
    items: list[tuple[str, int]]

    @property
    def hit_ratio(self) -> float | None:
        """Of histories that had to be encoded, the share that was kept or continued; None of none."""
        asked = self.encodings.total()
        return 1 - self.encodings["full"] / asked if asked else None


@dataclass
class Recent:
    """Safe to share between threads."""

    clock: Callable[[], float] = time.monotonic
    _slots: deque[Slot] = field(default_factory=lambda: deque(maxlen=SLOTS))
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=ANSWERS))
    _answers: deque[Noted] = field(default_factory=lambda: deque(maxlen=ANSWERS))
    _lock: Lock = field(default_factory=Lock)

    def request(self, status: int, seconds: float) -> None:
        """One finished request."""
        number = self._now()
        with self._lock:
            if not self._slots or self._slots[-1].number != number:
                self._slots.append(Slot(number))
            slot = self._slots[-1]
            slot.requests += 1
            slot.refused += 400 <= status < 500
            slot.failed += status >= 500
            self._seconds.append(seconds)

    def answered(self, variant: str, answer: Answer, item_ids: Sequence[str]) -> None:
        """One answer of the API."""
        self._answers.append(Noted(variant, answer.seconds, answer.encoding, item_ids))

    def lately(self, most_items: int) -> Lately:
        """Everything, and the items that were in the most answers."""
        now = self._now()
        with self._lock:
            kept = {slot.number: Slot(**vars(slot)) for slot in self._slots}
            seconds = list(self._seconds)
        answers = list(self._answers)
        variants: dict[str, list[float]] = {}
        for noted in answers:
            variants.setdefault(noted.variant, []).append(sum(noted.seconds.values()))
        return Lately(
            traffic=[kept.get(number, Slot(number)) for number in range(now - SLOTS + 1, now + 1)],
            requests=Times.of(seconds),
            stages={stage: Times.of([n.seconds[stage] for n in answers if n.seconds[stage]]) for stage in STAGES},
            variants={name: Times.of(own) for name, own in variants.items()},
            encodings=Counter(noted.encoding for noted in answers if noted.encoding is not None),
            items=Counter(item_id for noted in answers for item_id in noted.item_ids).most_common(most_items),
        )

    def _now(self) -> int:
        """The number of the present slot."""
        return int(self.clock() // SLOT_SECONDS)
