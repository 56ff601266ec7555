"""What a model would have earned, from logs of a split and of chance; the truth is known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import random_rows, write_dataset
from command_line import run_recsys
from exposed import answer, event, write_log

from pipelines.estimate import EstimateConfig, PolicyEstimate, estimate_policy
from pipelines.exposed import Reward
from pipelines.plan import TrainConfig
from pipelines.policy_lists import Policy
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import train
from recsys.errors import ConfigError, DataError
from recsys.exposures import Attribution
from recsys.off_policy import LOGGED

USERS, PLACES, HOUR = 1500, 3, 3_600_000_000
ITEMS = [f"i{number:03}" for number in range(20)]
RATES = np.random.default_rng(9).uniform(0, 0.5, 20)
REWARDS: tuple[Reward, ...] = ("any", "count", "value")
ESTIMATORS = ["ips", "snips", "clipped", "dm", "dr", "switch-dr"]
READS = np.array([1.0, 0.6, 0.3])
"""An item is clicked by its rate times how many read its place."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of three counting models on one log of histories."""
    folder = tmp_path_factory.mktemp("estimate")
    dataset = write_dataset(folder / "dataset", random_rows(0, 60, 20, 1500))
    prepared = prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", seen="keep"))
    for name in ("markov", "popularity", "item-knn"):
        config = TrainConfig(data=prepared.folder, model=name, out=folder / name, tracking=False)
        train(config, Reporter(quiet=True))
    return folder


def clicks(rng: np.random.Generator, shown: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        event(shown, item)
        for item, reads in zip(shown["item_ids"], READS, strict=True)
        if rng.random() < reads * RATES[int(item[1:])]
    ]


def lists_of(run: Path, asked: list[list[str]], k: int) -> pl.Series:
    return Policy.open(run).lists(pl.Series(asked, dtype=pl.List(pl.String)), k)


def histories(rng: np.random.Generator) -> list[list[str]]:
    return [[ITEMS[item] for item in rng.integers(0, 20, rng.integers(0, 4))] for _ in range(USERS)]


def written(folder: Path, answers: list[dict[str, Any]], rng: np.random.Generator) -> Path:
    later = answer(USERS + 90_000, ITEMS[:3], variant=answers[0]["variant"], propensity=answers[0]["propensity"])
    return write_log(folder, [*answers, later], [click for shown in answers for click in clicks(rng, shown)])


@pytest.fixture(scope="module")
def split_log(runs: Path) -> Path:
    """Three users in ten get markov's lists, the others popularity's."""
    rng = np.random.default_rng(1)
    asked = histories(rng)
    lists = {name: lists_of(runs / name, asked, PLACES).to_list() for name in ("markov", "popularity")}
    given = np.where(rng.random(USERS) < 0.3, "markov", "popularity")
    answers = [
        answer(
            number,
            lists[name][number],
            history=asked[number],
            variant=name,
            propensity={"markov": 0.3, "popularity": 0.7}[name],
        )
        for number, name in enumerate(given.tolist())
    ]
    return written(runs / "split-log", answers, rng)


@pytest.fixture(scope="module")
def random_log(runs: Path) -> Path:
    """Six popular items in any order; the first three of them are shown."""
    rng = np.random.default_rng(2)
    [popular] = lists_of(runs / "popularity", [[]], 6).to_list()
    answers = [
        answer(number, rng.permutation(popular)[:PLACES].tolist(), history=history, propensities=[1 / 6] * PLACES)
        for number, history in enumerate(histories(rng))
    ]
    return written(runs / "random-log", answers, rng)


def truth(runs: Path, name: str, log: Path) -> float:
    """Clicks an answer that the model's lists earn on average."""
    asked = pl.read_parquet(log / "answers/part-000.parquet")["history"].to_list()[:USERS]
    lists = lists_of(runs / name, asked, PLACES).to_list()
    return float(np.mean([(READS * RATES[[int(item[1:]) for item in items]]).sum() for items in lists]))


def config(runs: Path, log: Path, policy: str, **other: Any) -> EstimateConfig:
    return EstimateConfig(logs=(log,), policy=runs / policy, attribution=Attribution(window=HOUR), draws=200, **other)


def split_config(runs: Path, log: Path, policy: str, **other: Any) -> EstimateConfig:
    return config(runs, log, policy, shown_by={name: runs / name for name in ("markov", "popularity")}, **other)


def found(settings: EstimateConfig) -> PolicyEstimate:
    return estimate_policy(settings, Reporter(quiet=True))


@pytest.mark.parametrize("policy", ["markov", "popularity"])
@pytest.mark.parametrize("reading", ["independent", "cascade", "whole"])
def test_the_split_of_a_service_values_each_of_its_models(
    runs: Path, split_log: Path, policy: str, reading: Any
) -> None:
    result = found(split_config(runs, split_log, policy, reading=reading))
    right = truth(runs, policy, split_log)
    for name in ("ips", "snips", "dr"):
        entry = result.of(name)
        assert abs(entry.value - right) < 3 * entry.standard_error, name
        assert entry.standard_error < 0.15 * right
    assert result.overlap.enough
    assert result.overlap.requests == USERS
    assert result.left_out["whose window is not over"] == 1


def test_a_third_model_is_known_as_far_as_the_split_shows_its_items(runs: Path, split_log: Path) -> None:
    result = found(split_config(runs, split_log, "item-knn"))
    assert result.overlap.mean_weight < 0.7
    assert result.verdict == "not enough overlap"
    first, second, *_ = result.sentences()
    assert first.startswith("This log cannot judge item-knn. Taken at face value: 0.")
    assert second.startswith(f"The log covers {result.overlap.mean_weight:.0%} of what the policy would show")


def test_items_shown_by_chance_carry_their_own_propensities(runs: Path, random_log: Path) -> None:
    result = found(config(runs, random_log, "popularity"))
    [wanted] = lists_of(runs / "popularity", [[]], PLACES).to_list()
    answers = {row["user_id"]: row["item_ids"] for row in read(random_log, "answers").head(USERS).to_dicts()}
    clicked = read(random_log, "outcomes").select("user_id", "item_id").rows()
    matched = [item for user, item in clicked if answers[user].index(item) == (item in wanted and wanted.index(item))]
    by_hand = 6 * sum(answers[user].index(item) == wanted.index(item) for user, item in clicked if item in wanted)
    assert matched
    assert result.of("ips").value == pytest.approx(by_hand / USERS)
    assert result.of(LOGGED).value == pytest.approx(len(clicked) / USERS)
    assert result.overlap.enough
    right = truth(runs, "popularity", random_log)
    assert all(
        abs(result.of(name).value - right) < 3 * result.of(name).standard_error for name in ("ips", "snips", "dr")
    )
    assert result.of("dr").standard_error < result.of("ips").standard_error
    assert result.verdict == ("better" if result.of("dr").difference_interval[0] > 0 else "no winner")


def read(log: Path, kind: str) -> pl.DataFrame:
    return pl.read_parquet(log / kind / "part-000.parquet")


def test_the_reward_may_be_a_count_or_a_value(runs: Path, tmp_path: Path) -> None:
    shown = [answer(number, ITEMS[:2], propensities=[0.5, 0.5]) for number in range(30)]
    bought = [event(shown[0], ITEMS[1], second, value=2.5) for second in (1, 2, 3)]
    log = write_log(tmp_path / "log", [*shown, answer(90_000, ITEMS[:1])], bought)
    values = {reward: found(config(runs, log, "markov", reward=reward)).of(LOGGED).value for reward in REWARDS}
    assert values == pytest.approx({"any": 1 / 30, "count": 3 / 30, "value": 7.5 / 30})


def test_what_cannot_be_judged_is_left_out_and_said(runs: Path, tmp_path: Path) -> None:
    shown = [
        answer(0, ITEMS[:2], wishes='{"k":2,"fields":["title"]}'),
        answer(1, ITEMS[2:4], position=3),
        answer(2, ITEMS[:2], wishes='{"k":2,"exclude_seen":true}'),
        answer(3, []),
        answer(9000, ITEMS[:1]),
    ]
    log = write_log(tmp_path / "log", shown, [event(shown[0], ITEMS[0])])
    result = found(config(runs, log, "markov"))
    assert list(result.left_out.values()) == [1, 1, 1, 1]
    assert result.overlap.requests == 1
    assert result.sentences()[-1] == "Left out: 1 answers whose window is not over."
    log = write_log(tmp_path / "other", shown[1:], [])
    with pytest.raises(
        DataError, match="no answer is left to judge by: 1 without items; 1 on further pages; 1 to wish"
    ):
        found(config(runs, log, "markov"))


def test_a_log_of_several_variants_must_be_chosen_from(runs: Path, split_log: Path) -> None:
    with pytest.raises(ConfigError, match=r"variants markov, popularity\. Judge by one of them \(--variant markov\)"):
        found(config(runs, split_log, "markov"))
    with pytest.raises(ConfigError, match="--variant old: the log has the variants markov, popularity"):
        found(config(runs, split_log, "markov", variants=("old",)))
    alone = found(config(runs, split_log, "markov", variants=("markov",)))
    assert alone.overlap.mean_weight == 1
    assert alone.of("ips").value == pytest.approx(alone.of(LOGGED).value)
    with pytest.raises(
        DataError, match=r"shares of markov do not add up to 1 for .* name all variants that had traffic"
    ):
        found(config(runs, split_log, "markov", shown_by={"markov": runs / "markov"}))
    wrong = {"markov": runs / "item-knn", "popularity": runs / "popularity"}
    with pytest.raises(DataError, match="rows would have been shown by none of the models of markov, popularity"):
        found(config(runs, split_log, "markov", shown_by=wrong))


def test_lists_are_those_of_the_known_part_of_each_history(runs: Path) -> None:
    asked = [["i003", "nobody knows"], [], ["i004", "i005", "i003"], ["neither"], ["i003"]]
    together = lists_of(runs / "markov", asked, 4).to_list()
    assert together == [lists_of(runs / "markov", [history], 4).to_list()[0] for history in asked]
    assert together[0] == together[2] == together[4] != together[1] == together[3]
    assert together[0][0] == "i004", "most walk to the next item"


def test_several_folders_are_one_log(runs: Path, split_log: Path) -> None:
    settings = split_config(runs, split_log, "markov")
    twice = found(replace(settings, logs=(split_log, split_log)))
    assert twice.overlap == found(settings).overlap


def test_the_command_prints_and_gates(runs: Path, split_log: Path, tmp_path: Path) -> None:
    models = [f"--shown-by={name}={runs / name}" for name in ("markov", "popularity")]
    common = ("estimate", split_log, *models, "--window", "1h", "--draws", 200)
    code, output, _ = run_recsys(*common, "--policy", runs / "markov", "--json")
    content = json.loads(output)
    assert code == 0
    assert [entry["estimator"] for entry in content["estimates"]] == [LOGGED, *ESTIMATORS]
    better = content["verdict"] == "better"
    code, output, error = run_recsys(*common, "--policy", runs / "popularity", "--gate")
    assert code == 3
    assert "(what was shown)" in output
    assert error.splitlines()[-1].startswith("error: estimate: popularity should not ship by this log: ")
    code, *_ = run_recsys(*common, "--policy", runs / "markov", "--gate")
    assert code == (0 if better else 3)
    for wrong, text in (
        (("--window", "1 hour"), "--window 1 hour: expected a duration such as 30m, 24h or 7d."),
        (("--clip", 0), "clip=0 must be above 0"),
        (("--shown-by", "markov"), "--shown-by markov: expected name=column."),
    ):
        code, _, error = run_recsys(*common, "--policy", runs / "markov", *wrong)
        assert code == 2
        assert text in error
    code, _, error = run_recsys("estimate", tmp_path, "--policy", runs / "markov")
    assert code == 1
    assert "holds no answers/; name the folder that RECSYS_EXPOSURES named" in error
