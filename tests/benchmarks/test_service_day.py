"""The service's own log, from requests to decisions: a short day of a tiny shop."""

import numpy as np
import polars as pl
import pytest
from builders import random_rows, write_dataset

from benchmarks import service_day
from benchmarks.closed_loop import Shop
from benchmarks.service_day import RUNS, SHARES, VISITS, Findings, judged, page, serve_day
from benchmarks.user_model import People
from pipelines.export import ExportConfig, export
from pipelines.plan import TrainConfig
from pipelines.policy_lists import Policy
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.exposures import read_exposures, read_outcomes

GUESTS, PERSONS, ITEMS = 40, 12, 40
SMALL = ("model.embedding_dim=8", "model.ffn_dim=8", "model.num_blocks=1", "model.max_len=8")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Two barely trained models and a floor; people click half of what they read.

    BERT4Rec, since its bundle has one graph and most of the time is spent on making graphs.
    """
    folder = tmp_path_factory.mktemp("shop")
    rows = [(str(1 + int(user[1:])), str(1 + int(item[1:])), when) for user, item, when in random_rows(0, 12, 40, 300)]
    prepare(PrepareConfig(dataset=write_dataset(folder / "dataset", rows), out=folder / "prepared", seen="keep"))
    for name, model in (("old", "bert4rec"), ("new", "bert4rec"), ("popularity", "popularity")):
        settings = (*SMALL, "training.epochs=1") if model == "bert4rec" else ()
        seed = int(name == "new")
        run = TrainConfig(
            data=folder / "prepared", model=model, out=folder / name, settings=settings, seed=seed, tracking=False
        )
        train(run, Reporter(quiet=True))
    for run in RUNS.values():
        export(ExportConfig(run=folder / run, out=folder / f"bundle-{run}"))
    return Shop(folder, People(np.full((PERSONS, ITEMS), 0.5)), 0.0, 0.0)


@pytest.fixture(scope="module")
def found(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = tmp_path_factory.mktemp("day")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_day, "WATCHED", 500_000)
        day = serve_day(shop, folder, GUESTS, SHARES, np.random.default_rng(0))
        answers, events = read_exposures(day.log), read_outcomes(day.log)
        assert len(answers) == GUESTS * VISITS + 1
        assert len(events) == day.events
        assert answers["variant"].unique().sort().to_list() == ["control", "new"]
        assert answers.drop_nulls("user_id").group_by("user_id").agg(pl.col("variant").n_unique())["variant"].max() == 1
        return judged(shop, day, folder, 0.0)


def test_every_event_comes_back(found: Findings) -> None:
    assert found.ingested == found.events


def test_both_models_are_known_by_the_split_and_told_as_they_are(found: Findings) -> None:
    for run in ("old", "new"):
        result = found.estimates[run]
        assert result.overlap.mean_weight == pytest.approx(1, abs=0.3)
        assert abs(result.of("ips").value - found.earned[run]) < 4 * result.of("ips").standard_error
    assert sum(found.experiment.split.users) == GUESTS
    assert sum(found.experiment.effects["new"][0].users) == GUESTS
    assert found.experiment.left_out["answers without a user"] == 1


def test_the_page_says_it(found: Findings) -> None:
    text = page(found, GUESTS)
    assert f"reads {found.events:,} events back" in text
    assert text.count("\n|") == 2 + 9


def test_a_bundle_is_judged_as_the_run_that_it_was_made_of(shop: Shop) -> None:
    asked = pl.Series([["3", "4"], [], ["40"]], dtype=pl.List(pl.String))
    lists = [Policy.open(shop.folder / name).lists(asked, 5).to_list() for name in ("old", "bundle-old", "new")]
    assert lists[0] == lists[1] != lists[2]
    assert [len(items) for items in lists[0]] == [5, 5, 5]
