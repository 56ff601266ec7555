"""Generated histories have the structure that was planted."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from benchmarks.generated_histories import STRENGTH, World, histories, items, relevance, truth, write
from benchmarks.mutual_information import CategoryCounts
from pipelines.ingest import IngestConfig, ingest
from pipelines.prepare import PrepareConfig, prepare
from recsys.errors import ConfigError
from recsys.item_categories import item_categories
from recsys.prepared import open_prepared

SMALL = World(users=60, events=1500, categories=10, items_of_category=400)
LOOKED_AT = 400


@pytest.fixture(scope="module")
def categories() -> np.ndarray:
    """Of every event."""
    return histories(SMALL)


@pytest.fixture(scope="module")
def information(categories: np.ndarray) -> np.ndarray:
    """[K, K, P]: every event after the first `LOOKED_AT` is a click beside a category drawn at random."""
    rng = np.random.default_rng(0)
    windows = np.lib.stride_tricks.sliding_window_view(categories, LOOKED_AT + 1, axis=1).reshape(-1, LOOKED_AT + 1)
    windows = windows[rng.permutation(len(windows))[:20_000]]
    past, clicked = windows[:, -2::-1], windows[:, -1]
    other = clicked[rng.permutation(len(clicked))]
    labels = np.repeat([1, 0], len(clicked))
    return CategoryCounts.of(np.r_[clicked, other], labels, np.r_[past, past], SMALL.categories).information()


def test_relevance_is_shared_out_over_positions() -> None:
    weights = relevance(SMALL)
    assert weights.sum(axis=1)[:5] == pytest.approx(STRENGTH, rel=0.05)
    assert weights.sum(axis=1)[7:] == pytest.approx(STRENGTH, rel=1e-9)
    assert weights[1, 20] == pytest.approx(weights[1, 0] / 2)
    assert weights[7, 59] == weights[7].max() == pytest.approx(STRENGTH * 4 / 7 / 2)
    assert weights[8, 239] == pytest.approx(weights[8, 119] / 2)
    assert weights[7, :57].sum() == 0


def test_the_same_category_informs_and_others_hardly_do(information: np.ndarray) -> None:
    """Where single events weigh enough to be seen: not with half-lives of 80 and 320."""
    own = information[np.arange(SMALL.categories), np.arange(SMALL.categories)].max(axis=1)
    others = information.copy()
    others[np.arange(SMALL.categories), np.arange(SMALL.categories)] = 0
    heavy = relevance(SMALL).max(axis=1) > 2
    assert heavy.sum() == 7
    assert (own > 2.5 * others.max(axis=(1, 2)))[heavy].all()


def test_information_has_the_order_of_relevance(information: np.ndarray) -> None:
    """Among positions of the same category: fading ones by distance, periodic ones at their bumps."""
    weights = relevance(SMALL)
    for category in range(7):
        places = np.flatnonzero(weights[category, :LOOKED_AT] > 0.02 * weights[category].max())
        if len(places) < 100:  # half-lives that end early
            assert spearmanr(information[category, category, places], weights[category, places]).statistic > 0.8
    for category in range(7, 10):
        found = np.argsort(information[category, category])[::-1][:3]
        assert set(found) <= set(np.flatnonzero(weights[category]))


def test_events_follow_the_formula(categories: np.ndarray) -> None:
    """Probabilities by the definition, event by event, foretell how often each category came."""
    weights = relevance(SMALL)
    foretold, seen = np.zeros(SMALL.categories), np.zeros(SMALL.categories)
    for row in categories[:12]:
        for now in range(700, 800):
            past = row[now - 1 :: -1]
            excited = 1 + np.bincount(past, weights[past, np.arange(now)], SMALL.categories)
            foretold += excited / excited.sum()
            seen[row[now]] += 1
    assert np.abs(foretold - seen).max() < 4 * np.sqrt(foretold.max())
    assert np.corrcoef(foretold, seen)[0, 1] > 0.9


def test_no_item_comes_twice_while_there_are_others(categories: np.ndarray) -> None:
    log = items(SMALL, categories)
    of_user = log.group_by("user_id", maintain_order=True).agg(pl.col("item_id").str.slice(1).cast(pl.Int64))
    for row, numbers in zip(categories, of_user["item_id"], strict=True):
        assert (numbers.to_numpy() // SMALL.items_of_category == row).all()
        often = np.bincount(row).max()
        assert numbers.n_unique() == len(row) or often > SMALL.items_of_category


def test_the_log_goes_the_whole_way_and_again_comes_out_the_same(tmp_path: Path) -> None:
    world = World(users=7, events=130, categories=5, items_of_category=40)
    for name in ("one", "two"):
        write(world, tmp_path / name)
    for file in ("events", "items", "truth"):
        one, two = (pl.read_parquet(tmp_path / name / f"{file}.parquet") for name in ("one", "two"))
        assert one.equals(two)
    log, table = tmp_path / "one" / "events.parquet", tmp_path / "one" / "items.parquet"
    ingest(IngestConfig(sources=(log,), out=tmp_path / "dataset", items=table))
    prepare(PrepareConfig(dataset=tmp_path / "dataset", out=tmp_path / "prepared"))
    prepared = open_prepared(tmp_path / "prepared")
    assert prepared.store.lengths.tolist() == [130] * 7
    assert prepared.time == "timestamp"
    assert set(item_categories(prepared.items, "categories")[1:]) == set(range(1, 6))
    assert set(truth(world)["category"]) == {f"c{number:03d}" for number in range(5)}


def test_a_world_without_users_is_refused() -> None:
    with pytest.raises(ConfigError, match="users=0 must be at least 1"):
        World(users=0)
