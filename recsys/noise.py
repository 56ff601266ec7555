"""What finds noise in histories: windows to judge, what a detector says of them, and the cheapest detector.

A detector names the odd item of a window: a probability for each event, which sum to 1 over the window (LLM4DSR,
arXiv:2408.08208). How likely an event is noise then follows by calibration (`recsys.calibration`).
Dimensions: N windows, L positions (right-padded, 0 is padding).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys.partitions import user_part
from recsys.relations import Relations, beside_others, other_pairs
from recsys.sequences import IntArray, SequenceStore

FEWEST_EVENTS = 3
"""Of two events neither is the odd one."""
OUTLIER_SHARPNESS = (6.0, 6.0)
"""How much a cosine by co-occurrence and one by text count in the softmax of `OutlierDetector`."""


@dataclass(frozen=True)
class Judged:
    """Windows to judge; `blocks` [N] say which tables of `Relations` know nothing of them."""

    items: Int[np.ndarray, "N L"]
    lengths: Int[np.ndarray, " N"]
    blocks: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, chosen: IntArray) -> "Judged":
        """The windows at `chosen`."""
        return Judged(self.items[chosen], self.lengths[chosen], self.blocks[chosen])


@runtime_checkable
class NoiseDetector(Protocol):
    """Names the odd item of windows."""

    def naming(self, windows: Judged) -> Float[np.ndarray, "N L"]:
        """Probability that each event is the one that does not belong: rows sum to 1, padding has 0."""
        ...


@dataclass(frozen=True)
class NoiseWindows:
    """Windows of events `starts:stops` of `users`, all [N], that judge every event once: those of `starts:ends`.

    events   o o o o o o o       length 3
    windows          [---]
                 [---]           `ends` lies before `stops` in the oldest window alone,
             [---]               which is as long as the others and shares events with the next one
    """

    users: IntArray
    starts: IntArray
    stops: IntArray
    ends: IntArray

    @classmethod
    def cut(cls, stops: IntArray, length: int) -> "NoiseWindows":
        """Of each user's first `stops` [U] events, from the newest backwards; too short histories have none."""
        usable = np.flatnonzero(stops >= FEWEST_EVENTS)
        number = -(-stops[usable] // length)
        users = np.repeat(usable, number)
        back = np.arange(len(users)) - np.repeat(np.cumsum(number) - number, number)
        ends = stops[users] - back * length
        starts = np.maximum(0, ends - length)
        return cls(users, starts, np.minimum(stops[users], starts + length), ends)

    def __len__(self) -> int:
        return len(self.users)

    def load(self, store: SequenceStore, blocks: IntArray) -> Judged:
        """Their items; a user's tables are in block `blocks` [U]."""
        length = int((self.stops - self.starts).max(initial=1))
        windows = store.windows(self.users, self.stops, length, starts=self.starts)
        return Judged(windows.items, windows.lengths.astype(np.int64), blocks[self.users])

    def places(self, store: SequenceStore, width: int) -> Int[np.ndarray, "N L"]:
        """Which event of the store [E] each position judges, -1 where it judges none."""
        steps = np.arange(width)
        first = store.offsets[self.users] + self.starts
        return np.where(steps < (self.ends - self.starts)[:, None], first[:, None] + steps, -1)


def user_folds(store: SequenceStore, number: int) -> IntArray:
    """A fold of `number` for each user, by the user's id alone, [U]."""
    return np.array([user_part(user, number) for user in store.user_ids], dtype=np.int64)


class OutlierDetector:
    """The least like the rest of its window, by co-occurrence and by text; nothing is learned but the vectors.

    A softmax over minus the mean cosine to the `NEAREST` other events, both kinds weighted by `OUTLIER_SHARPNESS`.
    """

    def __init__(self, relations: Relations) -> None:
        self.relations = relations

    def naming(self, windows: Judged) -> Float[np.ndarray, "N L"]:
        """See `NoiseDetector`."""
        rows, lengths = coded(windows, self.relations.num_rows)
        return named(-self.likeness(rows, lengths), lengths).numpy()

    def likeness(self, rows: Int[Tensor, "N L"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "N L"]:
        """Weighted sum of the kinds that there are."""
        pairs = other_pairs(rows, lengths)
        kinds = [beside_others(one, pairs)[2] for one in self.relations.similarities(rows)]
        return torch.stack([sharp * kind for sharp, kind in zip(OUTLIER_SHARPNESS, kinds, strict=False)]).sum(dim=0)


def coded(windows: Judged, num_rows: int) -> tuple[Int[Tensor, "N L"], Int[Tensor, " N"]]:
    """Rows of `Relations` in each window's own block, and lengths; padding is the block's row 0."""
    rows = windows.items + windows.blocks[:, None] * num_rows
    return torch.from_numpy(rows), torch.from_numpy(windows.lengths)


def named(logits: Float[Tensor, "N L"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "N L"]:
    """Softmax over the events of each window; padding gets 0."""
    outside = torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None]
    return logits.masked_fill(outside, -torch.inf).softmax(dim=1)
