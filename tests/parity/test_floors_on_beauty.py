"""The counting models on a public file, against figures computed independently for the same file and protocol.

Amazon Beauty 2014, 5-core; leave-one-out, seen items excluded, all items ranked. The published figures give a
target in a tie the middle rank, rounded towards the better; ours is the last of the tie, so that no model earns
anything by it. Both are checked: the middle rank to the last published digit, ours to lie just below it.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.markov import Markov, MarkovConfig
from models.popularity import Popularity, PopularityConfig
from recsys.batches import Histories
from recsys.evaluation import mean_metrics, rank_cases, seen_mask
from recsys.ranking import allowed_scores
from recsys.sequences import SequenceStore
from recsys.splits import TrainingEvents, build_cases, split_last_item

NUM_ITEMS = 12_101
FIGURES = {  # HR@10, NDCG@10
    "popularity, train": (0.0120, 0.0056),
    "markov, train": (0.0670, 0.0441),
    "markov, train+validation": (0.0759, 0.0505),
}


@cache
def beauty(file: Path) -> SequenceStore:
    """`user item item ...` a line, in time order; ids count from 1."""
    rows = [np.array(line.split()[1:], dtype=np.int32) for line in file.read_text(encoding="utf-8").splitlines()]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    users = pl.Series([str(user) for user in range(len(rows))])
    return SequenceStore(offsets, np.concatenate(rows), np.arange(offsets[-1]), users)


def fitted(name: str, store: SequenceStore) -> Any:
    """A model of `FIGURES`."""
    kind, fit_on = name.split(", ")
    events = TrainingEvents(store, split_last_item(store).fit_stops(fit_on), NUM_ITEMS + 1)  # type: ignore[arg-type]
    if kind == "popularity":
        return Popularity.fit(PopularityConfig(), events, pl.DataFrame())
    return Markov.fit(MarkovConfig(), events, pl.DataFrame())


def middle_ranks(model: Any, store: SequenceStore, cases: pl.DataFrame) -> np.ndarray:
    """1 + items scored higher + half of the others scored equal (rounded down), case by case."""
    users, positions, target = (
        cases[column].to_numpy().astype(np.int64) for column in ("user_idx", "position", "target")
    )
    ranks = []
    for chosen in np.array_split(np.arange(len(cases)), 50):
        histories = Histories.from_windows(store.windows(users[chosen], positions[chosen], 1))
        mask = seen_mask(store, users[chosen], positions[chosen], NUM_ITEMS + 1)
        scores = allowed_scores(model.scores(histories), mask).numpy()
        own = scores[np.arange(len(chosen)), target[chosen]][:, None]
        ranks.append(1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) // 2)
    return np.concatenate(ranks)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_reproduced(name: str, real_data: Callable[[str], Path]) -> None:
    store = beauty(real_data("amazon-beauty-2014") / "Beauty.txt")
    assert (store.num_users, store.num_events, int(store.item_idx.max())) == (22_363, 198_502, NUM_ITEMS)
    cases = build_cases(store, split_last_item(store), "test", NUM_ITEMS + 1)
    model = fitted(name, store)
    ranks = middle_ranks(model, store, cases)
    hit_rate, ndcg = FIGURES[name]
    assert (ranks <= 10).mean() == pytest.approx(hit_rate, abs=5.1e-5)
    assert np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean() == pytest.approx(ndcg, abs=5.1e-5)
    ours = rank_cases(model, store, cases, NUM_ITEMS + 1, "exclude", (10,)).cases
    assert (ours["rank"].to_numpy() >= ranks).all()
    figures = mean_metrics(ours, (10,))
    assert hit_rate - 0.0012 < figures["hit_rate@10"] < hit_rate
    assert ndcg - 0.0005 < figures["ndcg@10"] < ndcg
