"""Which events of a log are corrected, and by what: thresholds, protections and caps, then an item that fits.

Dimensions: E events of the store, U users, V item rows, C corrections.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from recsys.errors import ConfigError
from recsys.noise import Judged, NoiseWindows, coded
from recsys.relations import Relations
from recsys.sequences import IntArray, SequenceStore

CORRECTIONS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is never corrected, and how much at most.

    `max_corrections` of a user's events and no more than `max_share` of them; not the last `protect_last` training
    events of a user, nor items with fewer than `protect_rare` training events.
    """

    max_corrections: int = 3
    max_share: float = 0.2
    protect_last: int = 1
    protect_rare: int = 0

    def __post_init__(self) -> None:
        for name in ("max_corrections", "protect_last", "protect_rare"):
            if getattr(self, name) < 0:
                raise ConfigError(f"denoise: {name}={getattr(self, name)} must be at least 0.")
        if not 0 <= self.max_share <= 1:
            raise ConfigError(f"denoise: max_share={self.max_share} must lie in [0, 1].")


def chosen_events(
    scores: Float[np.ndarray, " E"],
    naming: Float[np.ndarray, " E"],
    threshold: float,
    allowed: Bool[np.ndarray, " E"],
    users: IntArray,
    limits: Limits,
) -> Bool[np.ndarray, " E"]:
    """True at allowed events that score `threshold` or more, of each user the highest; among equals by `naming`.

    `users` [E] is the user of each event; the share of `limits` is one of the user's allowed events.
    """
    wanted = np.flatnonzero(allowed & (scores >= threshold))
    order = wanted[np.lexsort((wanted, -naming[wanted], -scores[wanted], users[wanted]))]
    first = np.searchsorted(users[order], users[order], side="left")
    rank = np.arange(len(order)) - first
    own = np.bincount(users[allowed], minlength=int(users.max(initial=0)) + 1)
    most = np.minimum(limits.max_corrections, np.floor(limits.max_share * own)).astype(np.int64)
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[order[rank < most[users[order]]]] = True
    return chosen


def correctable(store: SequenceStore, stops: IntArray, counts: IntArray, limits: Limits) -> Bool[np.ndarray, " E"]:
    """Training events (the first `stops` [U] of each user) that no rule protects; `counts` [V] are training events."""
    last = np.repeat(np.maximum(0, stops - limits.protect_last), store.lengths)
    return (store.event_positions() < last) & (counts[store.item_idx] >= limits.protect_rare)


def replacements(
    store: SequenceStore, windows: NoiseWindows, blocks: IntArray, chosen: Bool[np.ndarray, " E"], relations: Relations
) -> Int[np.ndarray, " E"]:
    """Item rows [E]: at chosen events the item that fits the rest of their window best, elsewhere what is there.

    The best sum of mean cosines to the window's other events, co-occurrence and text, among items with training
    events that do not stand in the window; events that are chosen themselves are no witnesses, unless nothing else is
    there. So every replacement is an item of the catalogue.
    """
    items = np.array(store.item_idx)
    judged = windows.load(store, blocks)
    places = windows.places(store, judged.items.shape[1])
    asked = np.argwhere((places >= 0) & chosen[np.maximum(places, 0)])
    for first in range(0, len(asked), CORRECTIONS_AT_ONCE):
        part = asked[first : first + CORRECTIONS_AT_ONCE]
        around = judged.rows(part[:, 0])
        events = store.offsets[windows.users[part[:, 0]]] + windows.starts[part[:, 0]]
        marked = chosen[np.minimum(events[:, None] + np.arange(judged.items.shape[1]), len(chosen) - 1)]
        items[places[part[:, 0], part[:, 1]]] = best_fitting(around, part[:, 1], marked, relations)
    return items


def best_fitting(
    around: Judged, places: IntArray, marked: Bool[np.ndarray, "C L"], relations: Relations
) -> Int[np.ndarray, " C"]:
    """For the event at `places` [C] of each window the best item, but for what stands there; see `replacements`."""
    rows, lengths = coded(around, relations.num_rows)
    valid = torch.arange(rows.shape[1]) < lengths[:, None]
    valid[torch.arange(len(rows)), torch.from_numpy(places)] = False
    witnesses = valid & ~torch.from_numpy(marked)
    witnesses = torch.where(witnesses.any(dim=1, keepdim=True), witnesses, valid).float()
    found = np.zeros(len(rows), dtype=np.int64)
    for block in np.unique(around.blocks):
        mine = torch.from_numpy(np.flatnonzero(around.blocks == block))
        scores = relations.fit(int(block), rows[mine], witnesses[mine])
        scores.scatter_(1, rows[mine] % relations.num_rows, -torch.inf)
        scores[:, 0] = -torch.inf
        found[mine.numpy()] = scores.argmax(dim=1).numpy()
    return found
