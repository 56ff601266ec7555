"""A paired decision between runs, or between a run and a floor."""

from dataclasses import astuple
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from builders import random_rows, write_dataset

from pipelines.compare import CompareConfig, compare
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.errors import DataError
from recsys.metrics import ndcg_at_k
from recsys.prepared import Prepared


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Users who mostly walk from one item to the next, and runs of two models on them."""
    folder = tmp_path_factory.mktemp("compare")
    dataset = write_dataset(folder / "dataset", random_rows(0, 50, 30, 1500))
    prepared = prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", seen="keep"))
    runs = tuple(folder / name for name in ("markov", "popularity"))
    for run in runs:
        train(TrainConfig(data=prepared.folder, model=run.name, out=run, tracking=False), Reporter(quiet=True))
    evaluate(EvaluateConfig(runs=runs), Reporter(quiet=True))
    return prepared


def test_the_better_run_wins_whichever_way_it_is_asked(prepared: Prepared) -> None:
    folder = prepared.folder.parent
    differences = compare(CompareConfig(a=folder / "popularity", b=folder / "markov"))
    headline = next(entry for entry in differences if (entry.segment, entry.metric) == ("all", "ndcg@10"))
    cases = [pl.read_parquet(folder / name / "evaluation/test/cases.parquet") for name in ("popularity", "markov")]
    means = [ndcg_at_k(table["rank"].to_numpy().astype(np.int64), 10).mean() for table in cases]
    assert [headline.mean_a, headline.mean_b] == pytest.approx(means)
    assert (headline.cases, headline.users) == (150, cases[0]["user_idx"].n_unique())
    assert headline.decided
    assert headline.sentence("popularity", "markov").startswith("markov is better than popularity on ndcg@10 by 0.")
    turned = compare(CompareConfig(a=folder / "markov", b=folder / "popularity"))[0]
    assert (turned.low, turned.high) == pytest.approx((-headline.high, -headline.low))
    assert turned.p_value == headline.p_value


def test_a_floor_is_compared_by_its_folder(prepared: Prepared) -> None:
    run, floor = prepared.folder.parent / "popularity", prepared.folder / "floors" / "test" / "markov"
    headline = compare(CompareConfig(a=floor, b=run, draws=500))[0]
    assert headline.decided
    assert headline.sentence("markov", "ours").startswith("markov is better than ours on ndcg@10 by ")


def test_a_run_against_itself_has_no_winner(prepared: Prepared) -> None:
    run = prepared.folder.parent / "markov"
    differences = compare(CompareConfig(a=run, b=run, draws=200))
    assert not any(entry.decided or entry.difference for entry in differences)
    assert differences[0].sentence("a", "b").startswith("No winner: b and a cannot be told apart on ndcg@10")


def test_the_seed_decides_the_resamples(prepared: Prepared) -> None:
    folder = prepared.folder.parent

    def found(seed: int) -> tuple[object, ...]:
        return astuple(compare(CompareConfig(a=folder / "popularity", b=folder / "markov", draws=200, seed=seed))[0])

    assert found(1) == found(1) != found(2)


def test_evaluations_under_different_rules_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    folder = prepared.folder.parent
    run = tmp_path / "markov"
    train(TrainConfig(data=prepared.folder, model="markov", out=run, tracking=False), Reporter(quiet=True))
    with pytest.raises(DataError, match="markov: holds no evaluation of the test cases; run `recsys evaluate"):
        compare(CompareConfig(a=folder / "markov", b=run))
    evaluate(EvaluateConfig(runs=(run,), seen="exclude"), Reporter(quiet=True))
    with pytest.raises(DataError, match=r"with seen=keep, .* with exclude; evaluate both the same way"):
        compare(CompareConfig(a=folder / "markov", b=run))


def test_the_part_that_was_asked_for_is_compared(prepared: Prepared) -> None:
    folder = prepared.folder.parent
    with pytest.raises(DataError, match="holds no evaluation of the validation cases"):
        compare(CompareConfig(a=folder / "markov", b=folder / "popularity", part="validation"))
    floor = prepared.folder / "floors" / "test" / "markov"
    with pytest.raises(DataError, match="markov: holds an evaluation of the test cases, not of the validation cases"):
        compare(CompareConfig(a=floor, b=floor, part="validation"))
