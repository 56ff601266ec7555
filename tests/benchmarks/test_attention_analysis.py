"""The analyses of rankers against what is known otherwise, and the whole command on a small log."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from builders import random_rows, write_dataset
from rankers import asked, clicks, ranker, scrambled
from torch.testing import assert_close
from training import run_of

from benchmarks import attention_analysis, gradient_probe
from benchmarks.discriminability import clustered_information, network_inputs
from benchmarks.mutual_information import NO_EVENT, CategoryCounts
from benchmarks.search_quality import (
    Searches,
    attention_map,
    count_categories,
    map_correlation,
    planted,
    training_clicks,
    values_of,
    without_items,
)
from models.dare import DARE
from pipelines.click_evaluation import part_clicks
from pipelines.prepare import PrepareConfig, prepare
from recsys.batches import Histories
from recsys.errors import DataError
from recsys.item_categories import item_categories
from recsys.prepared import Prepared

LENGTH = 11
RUN = (
    "model.max_len=11",
    "model.kept=4",
    "model.embedding_dim=4",
    "model.positives=5",
    "training.epochs=1",
    "training.batch_size=8",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """29 items with five categories or none, and 50 users, as `rankers` has them."""
    folder = tmp_path_factory.mktemp("attention")
    kinds = [[f"k{row % 6}"] if row % 6 else None for row in range(1, 30)]
    items = pl.DataFrame({"item_id": [f"i{row:03}" for row in range(29)], "categories": kinds})
    dataset = write_dataset(folder / "dataset", random_rows(0, users=50, items=29, events=900), items)
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", split="last-item", seen="keep"))


@pytest.fixture(scope="module")
def category_of(prepared: Prepared) -> np.ndarray:
    """Of each item row."""
    return item_categories(prepared.items, "categories")


@pytest.fixture
def searches(prepared: Prepared, category_of: np.ndarray) -> Searches:
    """Of all test cases."""
    counts = count_categories(prepared, training_clicks(prepared, 500), category_of, LENGTH)
    return Searches.of(prepared, part_clicks(prepared, "test"), category_of, LENGTH, counts)


def test_training_clicks_are_training_events_with_a_past(prepared: Prepared, category_of: np.ndarray) -> None:
    clicks = training_clicks(prepared, 100_000)
    assert (clicks.positions > 0).all()
    assert (clicks.positions < prepared.split.train_stop[clicks.users]).all()
    assert len(clicks.users) == int(np.maximum(prepared.split.train_stop - 1, 0).sum())
    assert (
        clicks.items[:, 0] == prepared.store.item_idx[prepared.store.offsets[clicks.users] + clicks.positions]
    ).all()
    assert len(training_clicks(prepared, 100).users) == 100
    counts = count_categories(prepared, clicks, category_of, LENGTH)
    assert counts.clicks.sum() * 2 == counts.others.sum() == 2 * len(clicks.users)
    assert counts.clicked[:, :, 0].sum() == len(clicks.users)


@pytest.mark.parametrize("method", ["dare", "last-k", "din", "sim-hard"])
def test_priorities_are_in_the_order_of_positions(
    prepared: Prepared, searches: Searches, category_of: np.ndarray, method: str
) -> None:
    """Beside the model asked row by row; last-k's own are those of the rule."""
    model = scrambled(ranker(method, time_buckets=0))
    model.learn_categories(torch.from_numpy(category_of))
    found = searches.by_model(model, prepared, lambda _: None)
    row = 40
    user, position = searches.clicks.users[row // 3], searches.clicks.positions[row // 3]
    window = prepared.store.windows(np.array([user]), np.array([position]), LENGTH)
    candidate = torch.from_numpy(searches.clicks.items[[row // 3], row % 3])[:, None]
    _, priorities = model.explain(Histories.from_windows(window), candidate)
    length = int(window.lengths[0])
    assert found[row, :length] == pytest.approx(priorities[0, 0].flip(0).double().detach().numpy(), abs=1e-6)
    assert searches.events[row].tolist() == [
        *category_of[window.items[0, :length][::-1]],
        *[NO_EVENT] * (LENGTH - length),
    ]
    rule = {"last-k": "newest", "sim-hard": "same category, newest"}.get(method)
    searches.counted[:] = True
    gains = np.random.default_rng(0).random((6, 6, LENGTH))
    if rule is not None:
        assert searches.quality(gains, found) == pytest.approx(searches.quality(gains, searches.by_rule(rule)))
    assert searches.quality(gains, values_of(gains, searches.candidates, searches.events)) == pytest.approx(1)
    assert searches.quality(gains, searches.by_rule("random")) < 0.95


def test_rows_count_where_their_categories_were_seen_often(prepared: Prepared, category_of: np.ndarray) -> None:
    counts = count_categories(prepared, training_clicks(prepared, 500), category_of, LENGTH)
    rare = Searches.of(prepared, part_clicks(prepared, "test"), category_of, LENGTH, counts)
    assert not rare.counted.any()
    with pytest.raises(DataError, match="none of 150 test rows"):
        rare.quality(counts.information(), rare.by_rule("newest"))
    with pytest.raises(DataError, match="no category has 700 rows"):
        map_correlation(counts.information(), counts)
    often = type(counts)(*(1000 * part for part in (counts.clicked, counts.other, counts.clicks, counts.others)))
    frequent = Searches.of(prepared, part_clicks(prepared, "test"), category_of, LENGTH, often)
    assert frequent.counted.mean() > 0.5


def test_planted_relevance_is_found_under_the_numbers_of_the_data(prepared: Prepared, category_of: np.ndarray) -> None:
    truth = pl.DataFrame({"category": ["k4", "k2", "k2"], "position": [1, 3, 99], "relevance": [0.5, 2.0, 7.0]})
    gains = planted(truth, prepared.items, category_of, LENGTH)
    assert np.argwhere(gains).tolist() == [[2, 2, 2], [4, 4, 0]]
    assert gains.sum() == 2.5


def test_the_map_is_attention_without_items() -> None:
    """Products of category vectors over the root of both fields' width, and of position vectors."""
    model = scrambled(ranker(time_buckets=0))
    scores = attention_map(model)
    assert scores is not None
    tables = model.tables["attention"]
    category, position = tables.categories.weight.detach().numpy(), tables.positions.weight.detach().numpy()
    expected = category[2] @ category[5] / np.sqrt(6) + position[0] @ position[4] / np.sqrt(3)
    assert scores[2, 5, 3] == pytest.approx(expected, rel=1e-5)
    assert scores.shape == (6, 6, LENGTH)
    assert attention_map(ranker("mean")) is None
    assert not without_items(model).tables["representation"].items.weight.any()
    assert model.tables["representation"].items.weight.any()


def test_correlation_is_one_where_scores_are_the_information(prepared: Prepared, category_of: np.ndarray) -> None:
    counts = count_categories(prepared, training_clicks(prepared, 800), category_of, LENGTH)
    counts = type(counts)(*(1000 * part for part in (counts.clicked, counts.other, counts.clicks, counts.others)))
    assert map_correlation(counts.information() ** 3, counts) == pytest.approx(1)
    assert map_correlation(-counts.information(), counts) == pytest.approx(-1)


def test_the_two_gradients_add_up_to_that_of_twin() -> None:
    twin = scrambled(ranker("twin"))
    batch, split = clicks(twin), gradient_probe.apart(twin)
    found = gradient_probe.conflicts(split, batch)
    twin.loss(batch).backward()
    own = dict(twin.named_parameters())
    for field, (attention, representation) in gradient_probe.pairs(split).items():
        total = attention.grad + representation.grad  # type: ignore[operator]
        assert_close(total, own[f"tables.representation.{field}.weight"].grad)
    assert set(found) == {"items", "categories", "positions", "ages"}
    assert all(0 < each.opposed < each.rows for name, each in found.items() if name != "categories")
    gradient_probe.share_gradients(split)
    torch.optim.Adam(split.parameters(), lr=0.1).step()
    for attention, representation in gradient_probe.pairs(split).values():
        assert torch.equal(attention, representation)


def test_a_conflict_by_hand() -> None:
    attention = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    representation = torch.tensor([[-1.0, 5.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    found = gradient_probe.conflict(attention, representation)
    assert (found.opposed, found.rows) == (1, 2)
    assert found.cosine == pytest.approx(3 / np.sqrt(14 * 31))
    assert (found.attention, found.representation) == pytest.approx((np.sqrt(14), np.sqrt(31)))
    summaries = gradient_probe.figures([{"items": found}, {"items": gradient_probe.conflict(-attention, attention)}])
    assert summaries["items"]["opposed_batches"] == 0.5
    assert summaries["items"]["opposed_rows"] == 4 / 5
    assert summaries["items"]["length_ratio"] == pytest.approx((np.sqrt(31 / 14) + 1) / 2)


def test_a_trained_twin_is_left_as_it_is(prepared: Prepared, category_of: np.ndarray) -> None:
    twin = scrambled(ranker("twin"))
    before = {name: weight.clone() for name, weight in twin.state_dict().items()}
    assert len(gradient_probe.probe(twin, prepared, 8, 2)) == 2
    assert all(torch.equal(weight, before[name]) for name, weight in twin.state_dict().items())
    watched = gradient_probe.probe_training(twin.config, category_of, prepared, 8, 3, 0.01)
    again = gradient_probe.probe_training(twin.config, category_of, prepared, 8, 3, 0.01)
    assert watched == again
    assert len({each["items"].cosine for each in watched}) == 3


def test_clusters_tell_what_vectors_know() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    vectors = np.stack([20.0 * labels, np.zeros(400)], axis=1) + rng.normal(size=(400, 2))
    known, chance = clustered_information(vectors, labels, 2, seed=1)
    assert known == pytest.approx(1)
    assert chance < 0.05
    assert clustered_information(rng.normal(size=(400, 2)), labels, 2, seed=1)[0] < 0.05


@torch.no_grad()
def test_inputs_of_the_network_are_what_it_reads(prepared: Prepared) -> None:
    """From them and the layers come the scores."""
    model = scrambled(ranker())
    cases = part_clicks(prepared, "test")
    inputs = network_inputs(model, prepared, cases)
    x = torch.from_numpy(np.concatenate([inputs["candidate and history"], inputs["product"]], axis=1))
    for layer, activation in zip(model.head.layers, model.head.activations, strict=True):
        x = activation(layer(x))
    windows = prepared.store.windows(cases.users, cases.positions, LENGTH)
    scores = model.score(Histories.from_windows(windows), torch.from_numpy(cases.items))
    assert_close(model.head.logit(x).squeeze(1), scores.flatten(), rtol=1e-4, atol=1e-4)


def test_explained_priorities_are_those_that_are_kept() -> None:
    model: DARE = scrambled(ranker())
    histories, candidates = asked()
    lookup, priorities = model.explain(histories, candidates)
    places = model._attended(lookup, model.search(lookup)).places  # type: ignore[misc]
    best = priorities.masked_fill(~lookup.seen.visible, -torch.inf).topk(4).indices
    assert best[0].tolist() == places[0].tolist()  # type: ignore[index]


def test_the_command_writes_page_numbers_and_pictures(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        run_of(prepared, tmp_path / method, "dare", (*RUN, f"model.method={method}")).folder
        for method in ("mean", "twin", "dare")
    ]
    truth = tmp_path / "truth.parquet"
    pl.DataFrame({"category": ["k1"], "position": [1], "relevance": [1.0]}).write_parquet(truth)
    monkeypatch.setattr("benchmarks.search_quality.FEWEST_OF_CATEGORY", 1)
    monkeypatch.setattr("benchmarks.search_quality.MOST_UNCOUNTED", 1.0)
    monkeypatch.setattr(CategoryCounts, "counted", lambda counts: (counts.clicked > 0) & (counts.other > 0))
    monkeypatch.setattr("benchmarks.discriminability.CLUSTERS", (2, 5))
    arguments = ["--out", str(tmp_path), "--steps", "3", "--truth", str(truth), "--title", "a small log"]
    monkeypatch.setattr(sys, "argv", ["attention", str(prepared.folder), *map(str, runs), *arguments])
    attention_analysis.main()
    figures = json.loads((tmp_path / "attention.json").read_text())
    assert list(figures["search"]["planted, as it searches"]) == ["dare", "twin", "mean"]
    assert list(figures["attention"]) == ["dare", "twin"]
    page = (tmp_path / "attention.md").read_text()
    assert page.startswith("# What rankers attend to: a small log\n")
    for picture in ("attention-maps.png", "attention-curves.png"):
        assert f"({picture})" in page
        assert (tmp_path / picture).stat().st_size > 1000


def test_runs_on_other_data_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    run = run_of(prepared, tmp_path / "run", "dare", RUN)
    other = write_dataset(tmp_path / "dataset", random_rows(1, users=20, items=29, events=300))
    others = prepare(PrepareConfig(dataset=other, out=tmp_path / "prepared", split="last-item", seen="keep"))
    with pytest.raises(DataError, match="was trained on other data"):
        attention_analysis.read_subjects([run.folder], others)
    longer = run_of(prepared, tmp_path / "longer", "dare", (*RUN, "model.max_len=12"))
    with pytest.raises(DataError, match=r"read \[11, 12\] events"):
        attention_analysis.read_subjects([run.folder, longer.folder], prepared)
