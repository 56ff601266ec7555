"""What a ranker's search finds, beside what is worth finding: by position, category and category of the candidate.

Gains [K, K, P] say what an event of category b at position p (place p - 1) is worth to a candidate of category c.
Dimensions: N rows (a candidate after a history), L positions, newest first, K categories with 0 for none.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr

from benchmarks.mutual_information import NO_EVENT, CategoryCounts, newest_categories
from benchmarks.search_metrics import search_ndcg_at_k
from models.dare import DARE
from recsys.batches import Histories
from recsys.click_metrics import FloatArray
from recsys.clicks import ClickCases
from recsys.errors import DataError
from recsys.prepared import Prepared
from recsys.sequences import IntArray

KEPT = 20
FEWEST_OF_CATEGORY = 700
MOST_UNCOUNTED = 0.1
AT_ONCE = 256
RULES = ("newest", "same category, newest", "random")
WITHOUT_ATTENTION = {"mean", "sdim", "twin-v2"}
"""Methods whose stage 2 has no score of a category at a position."""


def training_clicks(prepared: Prepared, most: int, seed: int = 0) -> ClickCases:
    """Training events that have a past, at most so many of them drawn at random, beside popular items."""
    events = prepared.training_events()
    places = np.flatnonzero(events.mask & (prepared.store.event_positions() > 0))
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(places, min(most, len(places)), replace=False))
    cases = pl.DataFrame({
        "user_idx": prepared.store.event_users()[places],
        "position": prepared.store.event_positions()[places],
        "target": prepared.store.item_idx[places],
    })
    return ClickCases.of(cases, prepared.store, events.item_counts())


def count_categories(prepared: Prepared, clicks: ClickCases, category_of: IntArray, length: int) -> CategoryCounts:
    """Rows by categories and position."""
    shown = clicks.items.shape[1]
    users, labels, _ = clicks.flat(np.zeros(clicks.items.shape))
    events = newest_categories(prepared.store, users, np.repeat(clicks.positions, shown), category_of, length)
    candidates = category_of[clicks.items.ravel()]
    return CategoryCounts.of(candidates, labels, events, int(category_of.max()) + 1)


@dataclass(frozen=True)
class Searches:
    """Categories of candidates and events of evaluated rows, and which of them count."""

    clicks: ClickCases
    candidates: Int[np.ndarray, " N"]
    events: Int[np.ndarray, "N L"]
    counted: Bool[np.ndarray, " N"]

    @classmethod
    def of(
        cls, prepared: Prepared, clicks: ClickCases, category_of: IntArray, length: int, counts: CategoryCounts
    ) -> "Searches":
        """Rows of clicks with histories; those count whose categories were seen often enough (thuml/DARE's rule)."""
        shown = clicks.items.shape[1]
        users, positions = np.repeat(clicks.users, shown), np.repeat(clicks.positions, shown)
        candidates = category_of[clicks.items.ravel()]
        events = newest_categories(prepared.store, users, positions, category_of, length)
        known = values_of(counts.counted().astype(np.float64), candidates, events)
        uncounted = ((known == 0) & (events != NO_EVENT)).sum(axis=1) / np.maximum(1, (events != NO_EVENT).sum(axis=1))
        rows = (counts.clicks + counts.others)[candidates]
        return cls(clicks, candidates, events, (rows >= FEWEST_OF_CATEGORY) & (uncounted <= MOST_UNCOUNTED))

    def quality(self, gains: Float[np.ndarray, "K K P"], priorities: Float[np.ndarray, "N L"]) -> float:
        """Mean NDCG@20 of a search over the rows that count."""
        if not self.counted.any():
            raise DataError(
                f"attention: none of {len(self.events)} test rows has a category with {FEWEST_OF_CATEGORY} training "
                "rows and events of which nine in ten were counted often enough; give more --clicks."
            )
        worth = values_of(gains, self.candidates, self.events)
        found = search_ndcg_at_k(worth, priorities, self.events != NO_EVENT, KEPT)
        return float(np.nanmean(found[self.counted]))

    def by_rule(self, rule: str) -> Float[np.ndarray, "N L"]:
        """Priorities of a search that learns nothing."""
        newest = np.broadcast_to(-np.arange(self.events.shape[1], dtype=np.float64), self.events.shape)
        if rule == "random":
            return np.random.default_rng(0).random(self.events.shape)
        same = self.events == self.candidates[:, None]
        return newest + self.events.shape[1] * same if rule == "same category, newest" else newest

    def by_model(self, model: DARE, prepared: Prepared, progress: Callable[[int], None]) -> Float[np.ndarray, "N L"]:
        """Priorities of a model's stage 1, newest event first."""
        found = np.zeros((*self.clicks.items.shape, self.events.shape[1]), dtype=np.float64)
        for part, length, priorities in searched(model, prepared, self.clicks):
            found[part, :, :length] = priorities
            progress(len(priorities))
        return found.reshape(len(self.events), -1)


@torch.no_grad()
def searched(
    model: DARE, prepared: Prepared, clicks: ClickCases
) -> Iterator[tuple[slice, int, Float[np.ndarray, "B C L"]]]:
    """Which cases, how long their longest history is, and the priorities of its events, newest first."""
    for first in range(0, len(clicks.users), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        windows = prepared.store.windows(clicks.users[part], clicks.positions[part], model.max_len)
        _, priorities = model.explain(Histories.from_windows(windows), torch.from_numpy(clicks.items[part]))
        width = priorities.shape[2]
        back = torch.from_numpy(windows.lengths).long()[:, None] - 1 - torch.arange(width)
        places = back.clamp(min=0)[:, None].expand(-1, priorities.shape[1], -1)
        yield part, width, priorities.gather(2, places).double().numpy()


def values_of(
    gains: Float[np.ndarray, "K K P"], candidates: Int[np.ndarray, " N"], events: Int[np.ndarray, "N L"]
) -> Float[np.ndarray, "N L"]:
    """What each event is worth; 0 where there is none."""
    found = gains[candidates[:, None], np.maximum(events, 0), np.arange(events.shape[1])]
    return np.where(events == NO_EVENT, 0.0, found)


def planted(truth: pl.DataFrame, items: pl.DataFrame, category_of: IntArray, length: int) -> Float[np.ndarray, "K K P"]:
    """Gains of a file of categories, positions and relevance, each category's events for itself."""
    names = dict(zip(items["categories"].list.first(), category_of[1:], strict=True))
    rows = truth.filter(pl.col("position") <= length)
    gains = np.zeros((int(category_of.max()) + 1, int(category_of.max()) + 1, length))
    of_row = np.array([names[name] for name in rows["category"]])
    gains[of_row, of_row, rows["position"].to_numpy() - 1] = rows["relevance"].to_numpy()
    return gains


def without_items(model: DARE) -> DARE:
    """The same model that knows an item by its category alone."""
    blind = deepcopy(model)
    for name, weight in blind.state_dict().items():
        if name.startswith("tables.") and name.endswith(".items.weight"):
            weight.zero_()
    return blind


@torch.no_grad()
def attention_map(model: DARE) -> Float[np.ndarray, "K K P"] | None:
    """Attention's scores by category of candidate and event and position, items left out; nan for absent categories."""
    if model.config.method in WITHOUT_ATTENTION:
        return None
    categories, first = np.unique(model.category_of.numpy()[1:], return_index=True)
    items = torch.from_numpy(first + 1)
    length = model.max_len
    history = Histories(
        items[:, None].expand(-1, length),
        torch.zeros((len(items), length), dtype=torch.int64),
        torch.full((len(items),), length),
    )
    lookup, _ = without_items(model).explain(history, items.expand(len(items), -1))
    size = int(categories.max()) + 1
    scores = np.full((size, size, length), np.nan)
    scores[np.ix_(categories, categories)] = lookup.scores.flip(2).transpose(0, 1).double().numpy()
    return scores


def map_correlation(scores: Float[np.ndarray, "K K P"], counts: CategoryCounts) -> float:
    """Spearman's correlation of scores and information over cells with enough rows, mean over categories by rows."""
    information, counted = counts.information(), counts.counted() & np.isfinite(scores)
    rows = counts.clicks + counts.others
    chosen = np.flatnonzero((rows >= FEWEST_OF_CATEGORY) & (counted.sum(axis=(1, 2)) > 1))
    if not len(chosen):
        raise DataError(f"attention: no category has {FEWEST_OF_CATEGORY} rows to compare with; give more --clicks.")
    found = [spearmanr(scores[row][counted[row]], information[row][counted[row]]).statistic for row in chosen]
    return float(np.average(found, weights=rows[chosen]))


def summary(values: Mapping[int, float]) -> dict[str, object]:
    """Mean, spread and each seed's figure."""
    figures: FloatArray = np.array(list(values.values()), dtype=np.float64)
    return {"mean": float(figures.mean()), "sd": float(figures.std()), "seeds": dict(values)}
