"""Histories with further events in their places: the columns are copied once, and only the users concerned are sorted.

offsets  0   3     5            ann's 3 events and bob's 2, and of three new ones: bob's third, cho's two
item_idx 4 7 2 | 1 9    ->  4 7 2 | 1 5 9 | 6 6
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from recsys.catalog import Catalog
from recsys.partitions import part_numbers, user_part
from recsys.sequences import IntArray, SequenceStore, ranges


@dataclass(frozen=True)
class Growth:
    """A store with further events in their places, and how many more of its events repeat an item of their user's."""

    store: SequenceStore
    more_repeated: int


def grown(store: SequenceStore, added: Sequence[pl.DataFrame], catalog: Catalog, parts: int) -> Growth:
    """`store` with the events of `added`, oldest addition first, each by (user, timestamp, source order).

    Users stand as in a dataset of `parts` parts, by part and then by id. Of equal times, the event of the earlier
    addition comes first. `catalog` is that of the store, extended.
    """
    events = pl.concat(added).select("user_id", "item_id", "timestamp")
    users = user_places(store.user_ids, events["user_id"].unique(), parts)
    places = users.filter("is_new")["place"].to_numpy()
    events = events.join(users, on="user_id", how="left", maintain_order="left")
    events = events.sort("row", "timestamp", maintain_order=True)
    rows, times = events["row"].to_numpy(), events["timestamp"].to_numpy()
    lengths = np.insert(store.lengths, places, 0)
    at = event_places(store, lengths, rows, times)
    larger = SequenceStore(
        offsets=np.concatenate([[0], np.cumsum(lengths + np.bincount(rows, minlength=len(lengths)))]).astype(np.int64),
        item_idx=np.insert(store.item_idx, at, catalog.item_idx(events["item_id"])),
        timestamp=np.insert(store.timestamp, at, times),
        user_ids=inserted(store.user_ids, users.filter("is_new")["user_id"], places),
    )
    known = users.filter(~pl.col("is_new"))["place"].to_numpy()
    return Growth(larger, repeated_events(larger, users["row"].to_numpy()) - repeated_events(store, known))


def user_places(user_ids: pl.Series, wanted: pl.Series, parts: int) -> pl.DataFrame:
    """Where distinct users stand, in the order of a dataset: `place` before which (or at which) row of `user_ids`,
    `is_new`, and the `row` they will have."""
    wanted = wanted.sort()
    numbers = part_numbers(wanted, parts)
    bounds = [bisect.bisect_left(user_ids, part, key=lambda user: user_part(user, parts)) for part in range(parts + 1)]
    tables = []
    for part, (low, high) in enumerate(pairwise(bounds)):
        of_part = wanted.filter(numbers == part)
        places = pl.Series(np.asarray(user_ids[low:high].search_sorted(of_part)).astype(np.int64))
        there = user_ids[low:high].extend_constant("", 1).gather(places)  # behind the last: no user
        tables.append(pl.DataFrame({"user_id": of_part, "place": places + low, "is_new": there != of_part}))
    found = pl.concat(tables)
    return found.with_columns(row=pl.col("place") + pl.col("is_new").cum_sum() - pl.col("is_new"))


def inserted(values: pl.Series, new: pl.Series, places: IntArray) -> pl.Series:
    """`values` with each of `new` before the row of its place (ascending)."""
    order = np.insert(np.arange(len(values)), places, np.arange(len(values), len(values) + len(new)))
    return pl.concat([values, new.alias(values.name)]).gather(order)


def event_places(store: SequenceStore, lengths: IntArray, users: IntArray, times: IntArray) -> IntArray:
    """Before which event of `store` each new one belongs: after those of its user that are not later.

    `lengths`: events that `store` has of every user, new ones included; `users` (rows of these) and `times` of the
    new events, ascending.
    """
    starts = np.cumsum(lengths) - lengths
    is_first = np.diff(users, prepend=-1) > 0
    concerned, of_user = users[is_first], np.cumsum(is_first) - 1
    rows, old = ranges(starts[concerned], starts[concerned] + lengths[concerned])
    old_times = np.asarray(store.timestamp)[old]
    order = np.lexsort((np.repeat([0, 1], [len(rows), len(users)]), np.r_[old_times, times], np.r_[rows, of_user]))
    old_before = np.cumsum(order < len(rows))[order >= len(rows)]
    earlier_users = np.cumsum(lengths[concerned]) - lengths[concerned]
    return starts[users] + old_before - earlier_users[of_user]


def repeated_events(store: SequenceStore, users: IntArray) -> int:
    """Events of these users (rows) whose item their user had before."""
    of_user, events = ranges(store.offsets[users], store.offsets[users + 1])
    pairs = np.sort(of_user << 32 | np.asarray(store.item_idx)[events])
    return int((pairs[1:] == pairs[:-1]).sum())
