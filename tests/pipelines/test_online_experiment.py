"""An online experiment from the service's log to a decision: the truth is known, and what is amiss is said."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_recsys
from exposed import SECOND, START, answer, event, write_log

from pipelines.experiment import SEVERAL, Experiment, ExperimentConfig, run_experiment
from pipelines.exposed import Period
from recsys.errors import ConfigError, DataError
from recsys.experiment import Plan
from recsys.exposures import Attribution

HOUR = 3_600 * SECOND
USERS = 1200
SHARES = {"old": 0.6, "new": 0.4}
ITEMS = ["a", "b", "c", "d"]


def user_rows(
    rng: np.random.Generator, number: int, variant: str, rate: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two answers of a user within the hour, clicks, and events of the days before, as many as the user's rate has."""
    own = rng.gamma(2, 0.5)
    user, began = f"u{number:05}", START + number * 10 * SECOND
    answers = [
        answer(2 * number + place, ITEMS, user_id=user, variant=variant, propensity=SHARES[variant])
        | {"timestamp": began + place * 60 * SECOND}
        for place in range(2)
    ]
    clicks = [
        event(shown, item, value=2.0) for shown in answers for item in ITEMS if rng.random() < min(1.0, rate * own)
    ]
    earlier = [event(answers[0], "z", -3600 * hour) for hour in range(1, 1 + rng.poisson(6 * own))]
    return answers, clicks + earlier


def experiment_log(folder: Path, rates: dict[str, float], seed: int = 0, kept: float = 1.0) -> Path:
    """Of those given to `new`, only the share `kept` was logged."""
    rng = np.random.default_rng(seed)
    answers, outcomes = [], []
    for number in range(USERS):
        variant = "old" if rng.random() < SHARES["old"] else "new"
        if variant == "new" and rng.random() > kept:
            continue
        shown, came = user_rows(rng, number, variant, rates[variant])
        answers, outcomes = answers + shown, outcomes + came
    end = answer(999_999, ITEMS, variant="old", propensity=0.6) | {"timestamp": START + 10 * HOUR}
    return write_log(folder, [*answers, end], outcomes)


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return experiment_log(tmp_path_factory.mktemp("experiment") / "log", {"old": 0.10, "new": 0.15})


def config(log: Path, **other: Any) -> ExperimentConfig:
    return replace(
        ExperimentConfig(logs=(log,), base="old", attribution=Attribution(window=HOUR), horizon=HOUR), **other
    )


def test_a_better_variant_wins_and_cuped_makes_it_plainer(better: Path) -> None:
    found = run_experiment(config(better))
    assert found.split.holds
    assert found.winners == ["new"]
    first = found.effects["new"][0]
    assert first.metric == "outcomes a user"
    assert abs(first.difference - 8 * 0.05) < 3 * first.standard_error, "eight items a user, and a mean rate of 1"
    assert first.saved > 0.15
    assert first.mean_base == pytest.approx(0.8, rel=0.1)
    assert {entry.metric: entry.difference > 0 for entry in found.effects["new"]} == dict.fromkeys(
        ["outcomes a user", "users with an outcome", "outcomes a request", "value a user"], True
    )
    by_metric = {entry.metric: entry for entry in found.effects["new"]}
    assert by_metric["outcomes a request"].mean_base == pytest.approx(first.mean_base / 2)
    assert by_metric["value a user"].mean_base == pytest.approx(2 * first.mean_base)
    blind = run_experiment(config(better, before=1))
    assert blind.effects["new"][0].saved == 0
    assert found.left_out["users whose time is not over yet"] == 1


def test_looking_early_says_so_or_tells_less(better: Path) -> None:
    early = run_experiment(config(better, period=Period(until=START + 2 * HOUR + 200 * 10 * SECOND)))
    assert sum(early.effects["new"][0].users) == 200
    assert early.left_out["users whose time is not over yet"] > 500
    whole, once = run_experiment(config(better)), run_experiment(config(better, plan=Plan(once=True)))
    width = [entry.effects["new"][0].deciding_interval for entry in (whole, once)]
    assert width[0][0] < width[1][0] < width[1][1] < width[0][1]
    with pytest.raises(DataError, match="no user whose time is over has anything of 'outcomes a user'"):
        run_experiment(config(better, period=Period(until=START + HOUR)))


def test_lost_users_stop_the_decision(tmp_path: Path) -> None:
    found = run_experiment(config(experiment_log(tmp_path / "log", {"old": 0.1, "new": 0.2}, kept=0.7)))
    assert not found.split.holds
    assert found.effects["new"][0].decided
    assert found.winners == []
    assert found.sentences()[0].startswith("Sample ratio mismatch: new ")
    assert not any("is better than" in sentence for sentence in found.sentences())


def test_who_saw_several_variants_is_left_out(tmp_path: Path) -> None:
    shown = [
        answer(number, ITEMS, user_id=f"u{number % 200}", variant=name, propensity=SHARES[name])
        for number, name in enumerate(["old"] * 100 + ["new"] * 100 + ["old"] * 120)
    ]
    log = write_log(
        tmp_path / "log",
        [*shown, answer(20_000, ITEMS, user_id=None, variant="new", propensity=0.4)],
        [event(entry, "a") for entry in shown],
    )
    found = run_experiment(config(log))
    assert found.left_out == {
        "answers without a user": 1,
        "users who saw several variants": 20,
        "users whose time is not over yet": 0,
    }
    assert found.effects["new"][0].users == (100, 80)
    assert found.mixed == pytest.approx(0.1)


def test_many_who_changed_sides_stop_the_decision(tmp_path: Path) -> None:
    """Of 400 users each as of the weights, the share `moved` comes back to the other variant after so many hours."""
    rng = np.random.default_rng(0)
    sides = np.where(rng.random(400) < SHARES["old"], "old", "new")

    def judged(moved: int, hours: float) -> Experiment:
        shown = [
            answer(number, ITEMS, variant=str(name), propensity=SHARES[str(name)]) for number, name in enumerate(sides)
        ]
        again = [
            row
            | {"request_id": f"again-{row['request_id']}", "timestamp": row["timestamp"] + int(hours * HOUR)}
            | {"variant": "new" if row["variant"] == "old" else "old"}
            for row in shown[:moved]
        ]
        end = answer(999_999, ITEMS, user_id=None, variant="old", propensity=0.6)
        clicks = [event(row, item) for row in shown for item in ITEMS[: 3 if row["variant"] == "new" else 1]]
        return run_experiment(config(write_log(tmp_path / f"{moved}-{hours}", [*shown, *again, end], clicks)))

    few, many, later = judged(4, 0.5), judged(5, 0.5), judged(400, 1)
    assert few.winners == later.winners == ["new"]
    assert (few.left_out[SEVERAL], later.left_out[SEVERAL]) == (4, 0), "what comes after the horizon does not count"
    assert many.split.holds
    assert many.effects["new"][0].decided
    assert many.winners == []
    assert not any("is better than" in sentence for sentence in many.sentences())
    assert many.sentences()[-1].startswith("1.2% of users saw several variants within their time: those who come often")


@pytest.mark.parametrize("alone", [False, True])
def test_cuped_takes_out_nothing_that_a_variant_did(tmp_path: Path, alone: bool) -> None:
    """Users of `new` do more once they saw it; `--since` begins later. Where one had all traffic, all was before."""
    names = ["old", "new"] * 40
    first = [
        answer(number, ITEMS, user_id=f"u{number}", history=["a"] * 2)
        | ({"variant": "old"} if alone else {"variant": name, "propensity": 0.5})
        for number, name in enumerate(names)
    ]
    later = [
        answer(36_000 + number, ITEMS, user_id=f"u{number}", variant=name, propensity=0.5, history=["a"] * 7)
        for number, name in enumerate(names)
    ]
    before = [event(row, "y", -60 * place) for number, row in enumerate(first) for place in range(1, 1 + number % 3)]
    between = [event(row, "z", 60 * place) for row in first[1::2] for place in range(1, 5)]
    clicks = [event(row, "a") for row in later[::3]]
    end = answer(99_999, ITEMS, user_id=None, variant="old", propensity=0.5)
    log = write_log(tmp_path / "log", [*first, *later, end], before + between + clicks)
    found = run_experiment(config(log, period=Period(since=later[0]["timestamp"])))
    assert found.effects["new"][0].users == (40, 40)
    known = [(number % 3 + 4 * (number % 2), 7) if alone else (number % 3, 2) for number in range(80)]
    np.testing.assert_allclose(found.watched.covariates, np.log1p(known))


def test_duplicates_and_late_events_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [user_rows(rng, number, "old" if number % 5 < 3 else "new", 0.2) for number in range(150)]
    answers, outcomes = ([row for part in parts for row in part] for parts in zip(*rows, strict=True))
    answers.append(answer(90_000, ITEMS, variant="old", propensity=0.6))
    late = [event(entry, "a", 7200) for entry in answers[:-1]]
    late.append(event(answers[0], "a", 10**9))  # a clock that is off ends nobody's time
    plain = run_experiment(config(write_log(tmp_path / "a", answers, outcomes)))
    noisy = run_experiment(config(write_log(tmp_path / "b", answers + answers[:50], outcomes + outcomes[::3] + late)))
    assert noisy.effects == plain.effects


def test_equal_variants_are_seldom_told_apart(tmp_path: Path) -> None:
    decided = [
        bool(run_experiment(config(experiment_log(tmp_path / f"{seed}", dict.fromkeys(SHARES, 0.1), seed))).winners)
        for seed in range(1, 6)
    ]
    assert sum(decided) <= 1


def test_a_variant_that_is_not_there_is_named(better: Path) -> None:
    with pytest.raises(ConfigError, match="--base older: the log has the variants new, old; two or more"):
        run_experiment(config(better, base="older"))
    with pytest.raises(DataError, match="no answers were logged in the time that was asked for"):
        run_experiment(config(better, period=Period(until=1)))
    with pytest.raises(DataError, match="--since: no answers were logged in the time that was asked for"):
        run_experiment(config(better, period=Period(since=2 * START)))


def test_the_command_prints_writes_and_gates(better: Path, tmp_path: Path) -> None:
    common = ("experiment", better, "--base", "old", "--window", "1h", "--horizon", "1h")
    page = tmp_path / "page.html"
    code, output, _ = run_recsys(*common, "--gate", "--report", page)
    assert code == 0
    assert "The split is as intended: new " in output
    assert "new is better than old on outcomes a user by 0." in output
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert text.count("<tr>") == 5
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", text, flags=re.DOTALL)
    code, output, _ = run_recsys(*common, "--json")
    assert json.loads(output)["winners"] == ["new"]
    code, _, error = run_recsys(*("new" if word == "old" else word for word in common), "--gate")
    assert code == 3
    assert "experiment: old should not replace new by this log." in error
    assert run_recsys(*common, "--planned", 0)[0] == 2
    assert "'soon' is not an ISO date" in run_recsys(*common, "--since", "soon")[2]
