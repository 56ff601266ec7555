"""`recsys describe`: what a dataset or prepared data is like, which traps it holds, and a card that shows it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.prepare import iso
from recsys.catalog import Catalog
from recsys.description import DAY, Description, Splits, describe, possible_splits
from recsys.prepared import open_prepared
from recsys.schema import open_dataset
from recsys.sequences import SequenceStore
from recsys.traps import Trap, find_traps


@dataclass(frozen=True)
class Card:
    """A description, and the traps found in it."""

    folder: Path
    step: str
    log: Description
    traps: list[Trap]

    def figures(self) -> dict[str, Any]:
        """For machines: every number of the card."""
        traps = [asdict(trap) for trap in self.traps]
        return {"folder": str(self.folder), "step": self.step, **asdict(self.log), "traps": traps}


def describe_folder(folder: Path) -> Card:
    """The card of a dataset (both splits as they would be made) or of prepared data (the split that was made)."""
    if (folder / "catalog.parquet").is_file():
        prepared = open_prepared(folder)
        made = Splits({prepared.manifest["config"]["split"]: prepared.split}, {})
        return _card(folder, "prepare", describe(prepared.store, prepared.time, made, {}))
    dataset = open_dataset(folder)
    events = dataset.events()
    store = SequenceStore.from_events(events, Catalog.from_ids(events["item_id"].unique()))
    rejected = dataset.manifest["counts"].get("rejected", {})
    splits = possible_splits(store, dataset.time)
    return _card(folder, "ingest", describe(store, dataset.time, splits, rejected))


def _card(folder: Path, step: str, log: Description) -> Card:
    return Card(folder=folder, step=step, log=log, traps=find_traps(log))


def card_lines(card: Card) -> Iterator[str]:
    """The card as text."""
    yield f"{card.folder}: {'prepared data' if card.step == 'prepare' else 'dataset'}"
    for name, value in headline_figures(card.log):
        yield f"  {name}: {value}"
    if not card.traps:
        yield "no known trap was found"
    for trap in card.traps:
        yield f"warning: {trap.name}: {trap.found}. What to do: {trap.advice}."


def headline_figures(log: Description) -> Iterator[tuple[str, str]]:
    """Name and text of what stands first on a card."""
    lengths, items, repeats = log.lengths, log.popularity, log.repeats
    yield "users, items, events", f"{log.users:,}, {log.items:,}, {log.events:,}"
    yield "sparsity", f"{log.sparsity:.4%} of all pairs of user and item never met"
    yield (
        "events a user",
        f"{lengths.mean:.1f} in the mean, median {lengths.median:g}, 90 % {lengths.p90:.0f}, 99 % {lengths.p99:.0f}, "
        f"longest {lengths.longest:,}; {lengths.single:.1%} of the users have one",
    )
    yield (
        "popularity",
        f"the first 1 % of the items hold {items.top_1:.1%} of the events, the first 10 % {items.top_10:.1%}; "
        f"Gini {items.gini:.3f}; {items.once:.1%} of the items have one event",
    )
    yield "repeats", f"{repeats.share:.2%} of the events, {repeats.immediate:.2%} right after the same item"
    if log.ties is not None:
        yield (
            "ties",
            f"{log.ties.share:.2%} of the events; {log.ties.last:.2%} of the users end in one; "
            f"{log.ties.duplicates:.2%} duplicates; resolution of times: {log.ties.resolution}",
        )
    if log.calendar is not None:
        time = log.calendar
        yield (
            "time",
            f"{iso(time.first)[:19]} to {iso(time.last)[:19]} UTC, {(time.last - time.first) / DAY:.1f} days; "
            f"longest gap {time.longest_gap / DAY:.2f} days",
        )
    for kind, parts in log.splits.items():
        for part, shares in parts.items():
            future = "" if shares.future is None else f", {shares.future:.1%} of training lies after a case"
            yield (
                f"split {kind}, {part}",
                f"{shares.cases:,} cases, {shares.new_user:.1%} new users, {shares.cold_item:.1%} cold items{future}",
            )
