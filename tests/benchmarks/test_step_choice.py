"""Rules for choosing among reasoning steps: figures that are known from elsewhere."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from builders import random_rows, write_dataset
from training import trained

from benchmarks import step_figures
from benchmarks.step_choice import judging, page, rows_of, rule_gains
from benchmarks.step_figures import Maker, Measured, measured
from benchmarks.step_rules import (
    AnswerFigures,
    Gate,
    best_threshold,
    borrowed,
    chosen_gains,
    disturbed,
    halted,
    judged,
    step_weights,
)
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from recsys.runs import open_run

SHARED = np.array([[10, 3, 0], [2, 9, 0]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Measured]:
    """Two seeds of a model that thinks and one of its base, evaluated and measured."""
    folder = tmp_path_factory.mktemp("choice")
    dataset = write_dataset(folder / "dataset", random_rows(1, 40, 25, 700))
    prepared = prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", seen="exclude"))
    names = ("rearec-0", "rearec-1", "sasrec-0")
    for name in names:
        model, seed = name.split("-")
        trained(prepared, folder / name, "training.learning_rate=0.02", model=model, seed=int(seed))
    evaluate(EvaluateConfig(runs=tuple(folder / name for name in names)), Reporter(quiet=True))
    return [measured(open_run(folder / name), folder / "work") for name in names]


def test_halting_stops_where_two_lists_agree() -> None:
    assert halted(SHARED, 9).tolist() == [1, 2, 2]
    assert halted(SHARED, 3).tolist() == [1, 1, 2]
    assert halted(SHARED, 0).tolist() == [1, 1, 1], "a list has to be compared with the one before"
    assert halted(SHARED, 11).tolist() == [2, 2, 2], "never"


def test_the_threshold_is_learned_and_never_stops_without_a_gain() -> None:
    early = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert best_threshold(SHARED, early) == 10, "the first case alone is better early, and it shares ten"
    assert best_threshold(SHARED, np.ones((3, 3))) == 11


def test_items_shared_with_the_list_before() -> None:
    best = np.array([[[1, 2, 3], [4, 5, 6]], [[3, 2, 9], [4, 5, 6]], [[7, 8, 9], [6, 5, 4]]])
    nothing = np.zeros((3, 2))
    figures = AnswerFigures(
        ranks=np.array([[1, 11], [3, 1], [2, 10]]),
        entropy=nothing,
        probability=np.ones((3, 2)),
        margin=nothing,
        popularity=nothing,
        best=best,
    )
    assert figures.shared().tolist() == [[2, 3], [1, 3]]
    assert figures.gains == pytest.approx(np.array([[1, 0], [0.5, 1], [1 / np.log2(3), 1 / np.log2(11)]]))
    assert figures.features(np.array([1, 8])).shape == (2, 15)
    assert figures.cases(np.array([1])).best.tolist() == [[[4, 5, 6]], [[4, 5, 6]], [[6, 5, 4]]]


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_gate_finds_the_better_answer_where_a_feature_tells_it(hidden: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3)) * [1, 100, 1] + [0, 50, 0]
    gains = np.stack([features[:, 1] < 50, features[:, 1] >= 50, np.full(400, 0.4)]) * 0.1
    fresh = rng.normal(size=(200, 3)) * [1, 100, 1] + [0, 50, 0]
    chosen = Gate(features, gains, hidden).choose(fresh)
    assert (chosen == (fresh[:, 1] >= 50)).mean() > 0.9


def test_a_gate_that_is_told_nothing_takes_the_best_on_average() -> None:
    features, gains = np.random.default_rng(0).normal(size=(500, 2)), np.tile([[0.05], [0.07], [0.06]], 500)
    assert Gate(features, gains, 0).choose(features).tolist() == [1] * 500


def test_step_weights_are_where_the_cross_entropy_is_flat() -> None:
    """Its gradient by a step's weight is the mean of that step's scores under softmax, less the target's."""
    rng = np.random.default_rng(1)
    items, target = rng.normal(size=(7, 4)), rng.integers(1, 7, size=60)
    answers = rng.normal(size=(3, 60, 4)) + np.array([0.8, 0.1, 0.3])[:, None, None] * items[target]
    found = step_weights(*(torch.tensor(a, dtype=torch.float32) for a in (answers, items)), torch.tensor(target))
    scores = answers @ items.T
    mixed = np.einsum("s,snv->nv", found.numpy(), scores)[:, 1:]
    shares = np.exp(mixed) / np.exp(mixed).sum(axis=1, keepdims=True)
    gradient = (np.einsum("nv,snv->sn", shares, scores[:, :, 1:]) - scores[:, np.arange(60), target]).mean(axis=1)
    assert np.abs(gradient).max() < 1e-3


def test_borrowed_steps_are_those_of_other_cases_with_equally_many_events() -> None:
    answers, lengths = torch.randn(3, 6, 5), np.array([2, 7, 2, 7, 2, 7])
    lent = borrowed(answers, lengths, np.random.default_rng(0))
    assert (lent[-1] == answers[-1]).all()
    own, others = answers[:-1] - answers[-1], lent[:-1] - answers[-1]
    equal = (own[:, :, None] - others[:, None]).abs().amax(dim=(0, 3)) < 1e-5
    assert (equal.sum(dim=0) == 1).all(), "each difference is that of one case"
    assert not equal.diagonal().any(), "another one"
    pairs = lengths[:, None] == lengths
    assert int((equal.numpy() & pairs).sum()) == 4, "but for the seams between lengths"


def test_disturbed_answers_lie_as_far_away_as_the_steps() -> None:
    answers = torch.randn(3, 6, 5)
    moved = disturbed(answers, np.random.default_rng(0))
    assert (moved[-1] - answers[-1]).abs().max() < 1e-6
    assert (moved - answers[-1]).norm(dim=2) == pytest.approx((answers - answers[-1]).norm(dim=2), abs=1e-5)
    assert (moved[0] - answers[0]).norm(dim=1).min() > 0.1


def test_users_are_resampled_with_their_cases_of_all_runs() -> None:
    rng = np.random.default_rng(0)
    a, b, users = rng.random(50), rng.random(50) + 0.1, np.arange(50)
    once, twice = judged([a], [b], [users]), judged([a, a], [b, b], [users, users])
    assert vars(once) == pytest.approx(vars(twice)), "the same cases once more say nothing more"
    assert once.difference == pytest.approx((b - a).mean())
    assert once.low < once.difference < once.high


def test_figures_of_answers_by_hand(runs: list[Measured]) -> None:
    maker = Maker(runs[0].run)
    cases = step_figures.Cases.of(maker.prepared, "test")
    answers, figures = maker.answers(cases), runs[0].figures("test")
    for case in (0, 3):
        for step in range(3):
            scores = (answers[step, case] @ maker.items.T).double().numpy()
            seen = maker.prepared.store.windows(cases.users[[case]], cases.positions[[case]], 1000).items[0]
            scores[[0, *seen]] = -np.inf
            shares = np.exp(scores) / np.exp(scores).sum()
            order = np.argsort(-scores)
            assert figures.entropy[step, case] == pytest.approx(-sum(p * np.log(p) for p in shares if p), abs=1e-4)
            assert figures.probability[step, case] == pytest.approx(shares.max(), abs=1e-5)
            assert figures.margin[step, case] == pytest.approx(scores[order[0]] - scores[order[1]], abs=1e-4)
            assert figures.best[step, case].tolist() == order[:10].tolist()
            assert figures.ranks[step, case] == 1 + order.tolist().index(cases.targets[case])


def test_the_last_answer_is_what_was_evaluated(runs: list[Measured]) -> None:
    for entry in runs:
        ranked = pl.read_parquet(entry.run.evaluation("test") / "cases.parquet").filter(pl.col("history_length") > 0)
        assert entry.figures("test").ranks[-1].tolist() == ranked["rank"].to_list()


def test_controls_end_with_the_last_answer_and_differ_before(runs: list[Measured]) -> None:
    others = runs[0].others("test")
    assert set(others) == {"borrowed", "disturbed", "dropout", "weighted"}
    for name in ("borrowed", "disturbed", "dropout"):
        assert (others[name][-1] == runs[0].figures("test").ranks[-1]).all()
        assert (others[name][0] != others[name][1]).any()
    assert others["dropout"].shape == runs[2].others("test")["dropout"].shape
    assert set(runs[0].others("validation")) == {"weighted"}


def test_rules_are_judged_on_users_they_have_not_learned_from(runs: list[Measured]) -> None:
    users = runs[0].parts["validation"]["users"]
    held_out = users[judging(runs[0], "validation")]
    assert 0 < len(held_out) < len(users)
    assert not set(held_out) & set(users[step_figures.first_half(users)])
    assert len(judging(runs[0], "test")) == len(runs[0].parts["test"]["users"])


def test_shares_of_the_oracles_gain(runs: list[Measured]) -> None:
    gains = rule_gains(runs[0], "test")
    own = runs[0].figures("test")
    assert (gains["oracle"][0] == np.maximum.reduce(list(own.gains))).all()
    surest = chosen_gains(own.gains, own.entropy.argmin(axis=0))
    assert (gains["lowest entropy"][0] == surest).all()
    result, share, taken = rows_of(runs[:1], "test")["lowest entropy"]
    fixed, oracle = gains["fixed"][0].mean(), gains["oracle"][0].mean()
    assert result.difference == pytest.approx(surest.mean() - fixed)
    assert share == pytest.approx((surest.mean() - fixed) / (oracle - fixed))
    assert taken == 2, "all answers are looked at"


def test_a_page_has_a_section_for_each_model(runs: list[Measured]) -> None:
    text = page(runs)
    assert text.count("\n## ") == 2
    assert "Seeds 0, 1; 25 items; " in text
    assert text.count("`objective: prl`") == 1
    fixed = np.mean([entry.figures("test").gains.mean(axis=1) for entry in runs[:2]], axis=0)
    assert "| test | " + " | ".join(f"{value:.4f}" for value in fixed) + " |" in text
    assert text.count("| dropout |") == 2
    assert text.count("| linear gate |") == 1


def test_what_was_measured_is_not_measured_again(
    runs: list[Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(Maker, "figures", lambda _, part: calls.append(part) or {"users": np.arange(3)})
    for _ in range(2):
        again = measured(runs[0].run, tmp_path)
    assert calls == ["validation", "test"]
    assert again.parts["test"]["users"].tolist() == [0, 1, 2]
    manifest = json.loads(next(tmp_path.glob("*/test/manifest.json")).read_text())
    assert manifest["config"] == {"part": "test"}
