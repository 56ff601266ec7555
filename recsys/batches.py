"""From histories to padded tensors: training windows, their order in an epoch, and the batch types.

Layout everywhere: right-padded, positions counted from the first event of the window. With a causal mask no
key mask is needed then, and the encoding of a prefix is the prefix of the encoding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recsys.catalog import PADDING
from recsys.negatives import Negatives
from recsys.sequences import IntArray, SequenceStore, Windows

POOL_BATCHES = 64


@dataclass(frozen=True)
class Histories:
    """What a model predicts from: item rows (0 is padding), event times (microseconds), valid lengths."""

    items: Int[Tensor, "B L"]
    timestamps: Int[Tensor, "B L"]
    lengths: Int[Tensor, " B"]

    @classmethod
    def from_windows(cls, windows: Windows, device: torch.device | None = None) -> "Histories":
        """Tensors of numpy windows, on `device`."""
        return cls(
            items=torch.from_numpy(windows.items).to(device),
            timestamps=torch.from_numpy(windows.timestamps).to(device),
            lengths=torch.from_numpy(windows.lengths).to(device),
        )

    @property
    def last(self) -> Int[Tensor, " B"]:
        """Item row of each history's last event."""
        return self.items.gather(1, self.lengths.long()[:, None] - 1).squeeze(1)

    def rows(self, chosen: Tensor | slice) -> "Histories":
        """The histories at `chosen` (indices or a bool mask)."""
        return Histories(self.items[chosen], self.timestamps[chosen], self.lengths[chosen])

    def latest(self, most: int) -> "Histories":
        """The last `most` events of each history."""
        if self.items.shape[1] <= most:
            return self
        skipped = (self.lengths.long() - most).clamp(min=0)[:, None]
        places = skipped + torch.arange(most, device=skipped.device)
        return Histories(self.items.gather(1, places), self.timestamps.gather(1, places), self.lengths.clamp(max=most))


@dataclass(frozen=True)
class TrainBatch:
    """Model input and truth: where `target` is 0, nothing is predicted. A sampled loss has its negatives with it."""

    history: Int[Tensor, "B L"]
    timestamps: Int[Tensor, "B L"]
    target: Int[Tensor, "B L"]
    lengths: Int[Tensor, " B"]
    negatives: Negatives | None = None

    @property
    def num_targets(self) -> int:
        """Predictions of the batch."""
        return int((self.target != 0).sum())

    def to(self, device: torch.device) -> "TrainBatch":
        """The batch on `device`."""
        return TrainBatch(
            history=self.history.to(device),
            timestamps=self.timestamps.to(device),
            target=self.target.to(device),
            lengths=self.lengths.to(device),
            negatives=None if self.negatives is None else self.negatives.to(device),
        )

    def rows(self, chosen: Tensor) -> "TrainBatch":
        """The rows at `chosen` (indices)."""
        return TrainBatch(
            history=self.history[chosen],
            timestamps=self.timestamps[chosen],
            target=self.target[chosen],
            lengths=self.lengths[chosen],
            negatives=None if self.negatives is None else self.negatives.rows(chosen),
        )

    def weighed(self, weights: Float[np.ndarray, "B L"] | None, rng: np.random.Generator) -> "TrainBatch":
        """With each target kept with the probability that is its event's weight: in the mean a loss weighted by it."""
        if weights is None:
            return self
        return replace(self, target=self.target * torch.from_numpy(rng.random(weights.shape) < weights))

    def share(self, part: int, parts: int) -> "TrainBatch":
        """Every `parts`-th row from `part`; a part without rows gets one that predicts nothing."""
        rows = torch.arange(len(self.lengths))[part::parts]
        if len(rows):
            return self.rows(rows)
        return replace(self.share(0, len(self.lengths)), target=torch.zeros_like(self.target[:1]))


def thinned(windows: Windows, share: float, rng: np.random.Generator) -> Windows:
    """Windows without the events that each fall out with probability `share`; one left with fewer than two is whole.

    The rest stays in order: inputs and targets alike are fewer, an event also learns what comes some steps later, and
    intervals are those between the events that are left. (Tan et al., DLRS 2016, drop inputs alone.)
    """
    places = np.arange(windows.items.shape[1])
    valid = places < windows.lengths[:, None]
    kept = valid & (rng.random(windows.items.shape) >= share)
    kept |= valid & (kept.sum(axis=1) < 2)[:, None]
    lengths = kept.sum(axis=1).astype(np.int32)
    order = np.argsort(~kept, axis=1, kind="stable")[:, : int(lengths.max())]
    inside = places[: order.shape[1]] < lengths[:, None]
    return Windows(
        items=np.where(inside, np.take_along_axis(windows.items, order, axis=1), PADDING),
        timestamps=np.where(inside, np.take_along_axis(windows.timestamps, order, axis=1), 0),
        lengths=lengths,
        weights=None if windows.weights is None else np.take_along_axis(windows.weights, order, axis=1) * inside,
    )


def next_item_batch(windows: Windows, negatives: Negatives | None = None) -> TrainBatch:
    """Every event predicts the one after it: history is all but the last event, target all but the first."""
    items = torch.from_numpy(windows.items)
    lengths = torch.from_numpy(windows.lengths) - 1
    history = items[:, :-1].clone()
    history[torch.arange(history.shape[1]) >= lengths[:, None]] = 0
    return TrainBatch(
        history=history,
        timestamps=torch.from_numpy(windows.timestamps)[:, :-1],
        target=items[:, 1:],
        lengths=lengths,
        negatives=negatives,
    )


def target_places(target: Int[Tensor, "B L"]) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Places of each row's targets, in order, and which of them are any: rows have different numbers."""
    known = target != 0
    most = max(1, int(known.sum(dim=1).max()))
    places = (~known).int().argsort(dim=1, stable=True)[:, :most]
    return places, known.gather(1, places)


def some_targets(
    target: Int[Tensor, "B L"], first: Int[np.ndarray, " B"], most: int, rng: np.random.Generator
) -> Int[Tensor, "B L"]:
    """At most `most` targets of each row, drawn anew each time among those from place `first` on; the others are 0."""
    allowed = (target != 0).numpy() & (np.arange(target.shape[1]) >= first[:, None])
    turn = np.where(allowed, rng.random(allowed.shape), 2.0)
    last = np.sort(turn, axis=1)[:, min(most, allowed.shape[1]) - 1]
    return target * torch.from_numpy(allowed & (turn <= last[:, None]))


@dataclass(frozen=True)
class WindowShape:
    """How long histories are cut for training: windows of `length` events, neighbours sharing `overlap`."""

    length: int
    overlap: int


@dataclass(frozen=True)
class TrainingWindows:
    """All training windows of a dataset: events `starts:stops` of the user's history; arrays [W].

    Batches are made of one of the `groups` each, but for those at the seams. Where windows overlap by more than their
    model expects, events before place `taught_from` of the history are context alone: their weight is 0.
    """

    users: IntArray
    starts: IntArray
    stops: IntArray
    groups: IntArray
    taught_from: IntArray | None = None

    @classmethod
    def cut(cls, stops: IntArray, shape: WindowShape) -> "TrainingWindows":
        """Windows over each user's first `stops` [U] events, laid from the newest event backwards.

        events   o o o o o o o       length 4, overlap 1
        windows  [-----]             starts at 0, shorter
                     [-----]   ...   every event but the first is a target exactly once

        A model that overlaps more learns from what is behind the overlap, and from all of a shorter window; where a
        whole one starts at 0, the overlap is a window of its own.
        """
        stride = shape.length - shape.overlap
        usable = np.flatnonzero(stops >= 2)
        per_user = np.maximum(1, -(-(stops[usable] - shape.overlap) // stride))
        exact = (stops[usable] >= shape.length) & ((stops[usable] - shape.length) % stride == 0)
        per_user += exact & (shape.overlap > 1)
        users = np.repeat(usable, per_user)
        back = np.arange(len(users)) - np.repeat(np.cumsum(per_user) - per_user, per_user)
        ends = stops[users] - back * stride
        starts = np.maximum(0, ends - shape.length)
        return cls(users=users, starts=starts, stops=ends, groups=np.zeros_like(users))

    def __len__(self) -> int:
        return len(self.users)

    def batches(self, batch_size: int, most: int = 0) -> int:
        """Batches of an epoch."""
        every = math.ceil(len(self) / batch_size)
        return min(every, most) if most else every

    def epoch(self, batch_size: int, rng: np.random.Generator, most: int = 0) -> Iterator[IntArray]:
        """Indices of windows, `most` batches or all: shuffled, yet with neighbours in length together."""
        order = rng.permutation(len(self))[: self.batches(batch_size, most) * batch_size]
        lengths = self.stops - self.starts
        pool = batch_size * POOL_BATCHES
        batches = []
        for first in range(0, len(order), pool):
            block = order[first : first + pool]
            block = block[np.lexsort((lengths[block], self.groups[block]))]
            batches += [block[i : i + batch_size] for i in range(0, len(block), batch_size)]
        for chosen in rng.permutation(len(batches)):
            yield batches[chosen]

    def load(self, store: SequenceStore, chosen: IntArray) -> Windows:
        """The events of windows `chosen`."""
        starts, stops = self.starts[chosen], self.stops[chosen]
        windows = store.windows(self.users[chosen], stops, int((stops - starts).max()), starts=starts)
        if self.taught_from is None:
            return windows
        taught = np.arange(windows.items.shape[1]) >= (self.taught_from[chosen] - starts)[:, None]
        weights = (windows.items != PADDING) if windows.weights is None else windows.weights
        return replace(windows, weights=(weights * taught).astype(np.float32))
