"""A paired decision between runs, or between a run and a floor."""

import html
import json
import re
from dataclasses import astuple
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from builders import random_rows, write_dataset

from pipelines.compare import CompareConfig, compare, short_names
from pipelines.comparison_report import running, write_report
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.guardrails import Guardrail
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.comparison import Difference
from recsys.errors import ConfigError, DataError
from recsys.metrics import ndcg_at_k
from recsys.prepared import Prepared


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Users who mostly walk from one item to the next, and runs of three models on them."""
    folder = tmp_path_factory.mktemp("compare")
    dataset = write_dataset(folder / "dataset", random_rows(0, 50, 30, 1500))
    prepared = prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", seen="keep"))
    runs = tuple(folder / name for name in ("markov", "popularity", "item-knn"))
    for run in runs:
        train(TrainConfig(data=prepared.folder, model=run.name, out=run, tracking=False), Reporter(quiet=True))
    evaluate(EvaluateConfig(runs=runs), Reporter(quiet=True))
    return prepared


def differences(base: Path, run: Path, **settings: Any) -> list[Difference]:
    [comparison] = compare(CompareConfig(base=base, runs=(run,), **{"draws": 2000} | settings))
    return comparison.differences


def test_the_better_run_wins_whichever_way_it_is_asked(prepared: Prepared) -> None:
    folder = prepared.folder.parent
    found = differences(folder / "popularity", folder / "markov")
    headline = next(entry for entry in found if (entry.segment, entry.metric) == ("all", "ndcg@10"))
    cases = [pl.read_parquet(folder / name / "evaluation/test/cases.parquet") for name in ("popularity", "markov")]
    means = [ndcg_at_k(table["rank"].to_numpy().astype(np.int64), 10).mean() for table in cases]
    assert [headline.mean_a, headline.mean_b] == pytest.approx(means)
    assert (headline.cases, headline.users) == (150, cases[0]["user_idx"].n_unique())
    assert headline.decided
    assert headline.sentence("popularity", "markov").startswith("markov is better than popularity on ndcg@10 by 0.")
    turned = differences(folder / "markov", folder / "popularity")[0]
    assert (turned.low, turned.high) == pytest.approx((-headline.high, -headline.low))
    assert turned.p_value == headline.p_value


def test_a_floor_is_compared_by_its_folder(prepared: Prepared) -> None:
    run, floor = prepared.folder.parent / "popularity", prepared.folder / "floors" / "test" / "markov"
    headline = differences(floor, run, draws=500)[0]
    assert headline.decided
    assert headline.sentence("markov", "ours").startswith("markov is better than ours on ndcg@10 by ")


def test_a_run_against_itself_has_no_winner(prepared: Prepared) -> None:
    run = prepared.folder.parent / "markov"
    found = differences(run, run, draws=200)
    assert not any(entry.decided or entry.difference for entry in found)
    assert found[0].sentence("a", "b").startswith("No winner: b and a cannot be told apart on ndcg@10")


def test_the_seed_decides_the_resamples(prepared: Prepared) -> None:
    folder = prepared.folder.parent

    def found(seed: int) -> tuple[object, ...]:
        return astuple(differences(folder / "popularity", folder / "markov", draws=200, seed=seed)[0])

    assert found(1) == found(1) != found(2)


def test_evaluations_under_different_rules_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    folder = prepared.folder.parent
    run = tmp_path / "another"
    train(TrainConfig(data=prepared.folder, model="markov", out=run, tracking=False), Reporter(quiet=True))
    with pytest.raises(DataError, match="another: holds no evaluation of the test cases; run `recsys evaluate"):
        differences(folder / "markov", run)
    evaluate(EvaluateConfig(runs=(run,), seen="exclude"), Reporter(quiet=True))
    with pytest.raises(DataError, match=r"with seen=keep, .* with exclude; evaluate both the same way"):
        differences(folder / "markov", run)


def test_the_part_that_was_asked_for_is_compared(prepared: Prepared) -> None:
    folder = prepared.folder.parent
    with pytest.raises(DataError, match="holds no evaluation of the validation cases"):
        differences(folder / "markov", folder / "popularity", part="validation")
    floor = prepared.folder / "floors" / "test" / "markov"
    with pytest.raises(DataError, match="markov: holds an evaluation of the test cases, not of the validation cases"):
        differences(floor, floor, part="validation")


def test_several_runs_stand_against_one(prepared: Prepared) -> None:
    folder = prepared.folder.parent
    runs = (folder / "markov", folder / "item-knn")
    found = compare(CompareConfig(base=folder / "popularity", runs=runs, draws=500))
    assert [entry.name for entry in found] == ["markov", "item-knn"]
    alone = [differences(folder / "popularity", run, draws=500)[0] for run in runs]
    assert [entry.headline.p_value for entry in found] == [entry.p_value for entry in alone]
    smaller = min(entry.p_value for entry in alone)
    assert min(entry.headline.adjusted for entry in found) == pytest.approx(min(1, 2 * smaller))
    with pytest.raises(ConfigError, match=r"markov, .*markov: one of these is named twice"):
        CompareConfig(base=folder / "popularity", runs=(folder / "markov", folder / "markov"))


def test_folders_of_one_name_are_told_apart_by_those_above_them() -> None:
    paths = [Path("/shop/night-1/candidate"), Path("/shop/night-2/candidate"), Path("/shop/night-2/champion")]
    assert short_names(paths) == ["night-1/candidate", "night-2/candidate", "night-2/champion"]
    assert short_names([paths[0], paths[2]]) == ["candidate", "champion"]
    assert short_names([paths[0], paths[0]]) == ["candidate", "candidate"]


def test_a_winner_that_breaks_a_guardrail_may_not_replace(prepared: Prepared) -> None:
    folder = prepared.folder.parent
    base, run = folder / "popularity", folder / "markov"
    [free] = compare(CompareConfig(base=base, runs=(run,), draws=500, guardrails=()))
    assert (free.verdict, free.may_replace, free.not_inferior) == ("better", True, True)
    strict = (Guardrail("popularity_bias@10", -0.9), Guardrail("item: warm/ndcg@10", 0.01))
    [held] = compare(CompareConfig(base=base, runs=(run,), draws=500, guardrails=strict))
    assert [check.holds for check in held.checks] == [True, False]
    assert (held.verdict, held.may_replace) == ("better", False)
    assert "Guardrails broken: item: warm/ndcg@10 is " in held.sentence()
    assert free.as_dict()["may_replace"]
    assert json.loads(json.dumps(held.as_dict()))["guardrails"][1]["holds"] is False


def test_not_worse_than_the_margin_is_said(prepared: Prepared) -> None:
    run = prepared.folder.parent / "markov"
    [same] = compare(CompareConfig(base=run, runs=(run,), draws=200))
    assert (same.verdict, same.not_inferior, same.may_replace) == ("no winner", True, False)
    assert same.sentence().endswith(" markov is not worse by more than 1%.")
    [worse] = compare(CompareConfig(base=run, runs=(prepared.folder.parent / "popularity",), draws=200))
    assert (worse.verdict, worse.not_inferior) == ("worse", False)


def test_the_page_holds_plots_and_every_figure(prepared: Prepared, tmp_path: Path) -> None:
    folder = prepared.folder.parent
    found = compare(CompareConfig(base=folder / "popularity", runs=(folder / "markov",), draws=200))
    write_report(tmp_path / "report.html", found, "test")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert page.count("<svg") == 3  # segments, metrics by segments, time
    assert page.count("<tr>") == 2 + len(found[0].checks) + len(found[0].differences)
    assert html.escape(found[0].sentence()) in page
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", page, flags=re.DOTALL)
    ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])


def test_a_log_without_times_has_no_line_over_time(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_rows(0, 30, 20, 500), time="order")
    data = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared", split="last-item", seen="keep"))
    runs = tuple(tmp_path / name for name in ("markov", "popularity"))
    for run in runs:
        train(TrainConfig(data=data.folder, model=run.name, out=run, tracking=False), Reporter(quiet=True))
    evaluate(EvaluateConfig(runs=runs), Reporter(quiet=True))
    write_report(tmp_path / "r.html", compare(CompareConfig(base=runs[0], runs=runs[1:], draws=200)), "test")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count("<svg") == 2


def test_the_line_over_time_is_the_mean_so_far() -> None:
    rng = np.random.default_rng(0)
    values, users = rng.normal(size=40), rng.integers(0, 9, 40)
    means, errors = running(values, users, np.array([1, 17, 40]))
    assert means == pytest.approx([values[0], values[:17].mean(), values.mean()])
    sums, sizes = np.bincount(users, values), np.bincount(users)
    expected = np.sqrt(((sums - values.mean() * sizes) ** 2).sum()) / 40
    assert errors[2] == pytest.approx(expected)
