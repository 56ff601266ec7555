"""Team-draft interleaving (Radlinski, Kurup & Joachims, 2008): one list of two models, and whose items are clicked.

For applications that show such lists themselves; the service does not. Each user compares both models at once, so far
fewer are needed than where each sees one. Dimensions: Q lists, U users.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys.metrics import FloatArray, IntArray
from recsys.resampling import LEVEL, Resamples

Team = Literal[0, 1]
MIN_USERS = 50


def team_draft(first: Sequence[str], second: Sequence[str], k: int, key: str) -> tuple[list[str], list[Team]]:
    """Up to k items, and which model put each there.

    In each round a coin decides who begins; both add their best item that the list lacks. Coins follow from `key`, such
    as the request's id, so that the teams of a logged list can be told again.
    """
    ranked, taken, coins = (first, second), set[str](), _coins(key)
    items: list[str] = []
    teams: list[Team] = []
    while len(items) < k:
        begins = next(coins)
        added = 0
        for team in (begins, 1 - begins):
            item = next((item for item in ranked[team] if item not in taken), None)
            if item is not None and len(items) < k:
                items.append(item)
                teams.append(1 if team else 0)
                taken.add(item)
                added += 1
        if not added:
            break
    return items, teams


def credit(teams: Sequence[Team], clicked: Iterable[int]) -> int:
    """Clicks on the second model's items less those on the first one's; `clicked` are places of the list, from 0."""
    return sum(1 if teams[place] else -1 for place in clicked)


@dataclass(frozen=True, kw_only=True)
class Preference:
    """How many users preferred which model, and the share of those who prefer the second (ties half) less one half.

    The interval is a percentile bootstrap over users, the p-value that of swapping the two models for whole users.
    """

    users: int
    prefer_first: int
    prefer_second: int
    preference: float
    interval: tuple[float, float]
    p_value: float

    @property
    def decided(self) -> bool:
        """Whether interval and test agree that one of them is preferred."""
        low, high = self.interval
        return self.users >= MIN_USERS and (low > 0 or high < 0) and self.p_value < LEVEL

    def sentence(self, first: str, second: str) -> str:
        """What the figures mean."""
        low, high = self.interval
        counts = f"{self.prefer_second:,} users prefer {second}, {self.prefer_first:,} {first}, of {self.users:,}"
        figures = f"{counts}; preference {self.preference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}"
        if not self.decided:
            return f"No winner: {figures}, p = {self.p_value:.4f}."
        return f"{second if self.preference > 0 else first} is preferred: {figures}, p = {self.p_value:.4f}."


def preference(users: IntArray, earned: FloatArray, draws: int = 2000, seed: int = 0) -> Preference:
    """From the credits of lists [Q] and whose they were; users are the units (Chapelle et al., 2012)."""
    _, own = np.unique(users, return_inverse=True)
    signs = np.sign(np.bincount(own, earned)) / 2
    resamples = Resamples.of_users(np.arange(len(signs)), draws, seed)
    sums, sizes = resamples.sums(signs)[:, None], resamples.sums(np.ones(len(signs)))
    (low,), (high,) = resamples.interval(sums, sizes)
    return Preference(
        users=len(signs),
        prefer_first=int((signs < 0).sum()),
        prefer_second=int((signs > 0).sum()),
        preference=float(signs.mean()),
        interval=(float(low), float(high)),
        p_value=float(resamples.p_values(sums)[0]),
    )


def _coins(key: str) -> Iterator[int]:
    """0 or 1, as many as are needed, always the same for a key."""
    number = 0
    while True:
        for byte in hashlib.sha256(f"{key} {number}".encode()).digest():
            yield byte & 1
        number += 1
