"""What a further part changes in a dataset: new events in their places, repeats rejected, counts brought forward.

The result equals that of one ingest of all files in the order of their arrival. Only events of the part's own users
are looked at: an event can repeat, tie with or follow none but its own user's.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from recsys.cleaning import (
    BOOKKEEPING,
    DUPLICATE,
    ORDER,
    SOURCE,
    CleanRows,
    order_events,
    repeated_events,
    tied_with_previous,
    without_duplicates,
)
from recsys.schema import ROLES, Dataset
from recsys.source_files import LINE, ROW
from recsys.steps import MANIFEST, sha256

Duplicates = Literal["drop", "keep"]


@dataclass(frozen=True, kw_only=True)
class Increment:
    """`rows`: new events (columns of `Events`, in order) and all newly rejected rows; `before` and `after`: all
    events of the part's users without it and with it, in order."""

    rows: CleanRows
    before: pl.DataFrame
    after: pl.DataFrame

    @property
    def new_users(self) -> int:
        """Users of the part who had no event before."""
        return int(self.after["user_id"].n_unique()) - int(self.before["user_id"].n_unique())


def increment(before: pl.DataFrame, part: CleanRows, duplicates: Duplicates) -> Increment:
    """`before`: all earlier events of the part's users; `part`: its rows in source order."""
    earlier = before.with_columns(
        pl.lit("").alias(SOURCE),
        pl.lit(0, pl.Int64).alias(ROW),
        pl.lit(None, pl.Int64).alias(LINE),
        pl.int_range(-len(before), 0, dtype=pl.Int64, eager=True).alias(ORDER),
    ).select(*ROLES, *BOOKKEEPING)
    merged = order_events(pl.concat([earlier, part.events.select(*ROLES, *BOOKKEEPING)]))
    repeated = part.rejected.clear()
    if duplicates == "drop":
        unique = without_duplicates(merged)
        merged, repeated = unique.events, unique.rejected
    new = merged.filter(pl.col(ORDER) >= 0)
    return Increment(
        rows=CleanRows(events=new.select(ROLES), rejected=pl.concat([part.rejected, repeated])),
        before=before,
        after=merged.select(ROLES),
    )


def joined_rejected(earlier: pl.DataFrame, later: pl.DataFrame) -> pl.DataFrame:
    """Rejected rows in the order of one ingest: those that are no events in source order, then duplicates."""
    tables = [earlier, later]
    is_duplicate = pl.col("reason") == DUPLICATE
    return pl.concat([
        *(table.filter(~is_duplicate) for table in tables),
        *(table.filter(is_duplicate) for table in tables),
    ])


def grown_counts(counts: Mapping[str, Any], added: Increment, new_items: int) -> dict[str, Any]:
    """The counts of `log_counts` for the dataset with the part in it."""
    events, rejected = added.rows.events, added.rows.rejected
    accepted = counts["accepted"] + len(events)
    tied = counts["tied_events"] + tied_events(added.after) - tied_events(added.before)
    repeated = counts["repeated_events"] + repeated_events(added.after) - repeated_events(added.before)
    first = [time for time in (counts["first_timestamp"], events["timestamp"].min()) if time is not None]
    last = [time for time in (counts["last_timestamp"], events["timestamp"].max()) if time is not None]
    return {
        "rows": counts["rows"] + len(events) + len(rejected),
        "accepted": accepted,
        "rejected": dict((Counter(counts["rejected"]) + Counter(rejected["reason"])).most_common()),
        "users": counts["users"] + added.new_users,
        "items": counts["items"] + new_items,
        "time": counts["time"],
        "first_timestamp": min(first),
        "last_timestamp": max(last),
        "tied_events": tied,
        "repeated_events": repeated,
        "tied_share": round(tied / accepted, 6),
        "repeat_share": round(repeated / accepted, 6),
    }


def tied_events(events: pl.DataFrame) -> int:
    """Ordered events with the timestamp of the same user's event before them."""
    return int(tied_with_previous(events).sum())


def earlier_events(dataset: Dataset, part: CleanRows) -> pl.DataFrame:
    """All events that the part's users have in `dataset`, in order."""
    return dataset.events_of(part.events["user_id"].unique()).select(ROLES)


def added_since(dataset: Dataset, manifest: str) -> list[pl.DataFrame] | None:
    """Events that were appended since the dataset's manifest had this SHA-256, a table an append, oldest first.

    None where that was never so, or where all parts were written anew since.
    """
    history = dataset.manifest.get("history", [])
    follows = [entry["follows"] for entry in history] + [sha256(dataset.folder / MANIFEST)]
    if manifest not in follows:
        return None
    files = [entry["file"] for entry in history[follows.index(manifest) :]]
    return None if None in files else [pl.read_parquet(dataset.folder / "events" / file) for file in files]
