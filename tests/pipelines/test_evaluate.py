"""Runs and floors rank the same cases, and one row a case is kept."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import Row, write_dataset
from rich.console import Console

from pipelines import evaluate as evaluate_module
from pipelines import loading as loading_module
from pipelines.evaluate import EvaluateConfig, Evaluation, common_data, evaluate, open_evaluation, verdict
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.tables import evaluation_table, segment_table
from pipelines.train import train
from recsys.errors import ConfigError, DataError
from recsys.metrics import case_metrics
from recsys.prepared import Prepared
from recsys.ranking import NOT_RETURNED
from recsys.runs import Run, open_run

HISTORIES = {  # items and seconds; before 11 trains, before 20 validates
    "ann": [("a", 1), ("b", 2), ("a", 3), ("c", 11), ("b", 21)],
    "bob": [("a", 4), ("b", 5), ("c", 6), ("a", 22), ("b", 27)],
    "cho": [("b", 7), ("c", 8), ("d", 12), ("a", 23), ("b", 28), ("a", 29)],
    "dan": [("b", 9), ("c", 10), ("e", 24)],
    "eve": [("a", 25), ("c", 26)],
}
ROWS: list[Row] = [(user, item, second * 1_000_000) for user, events in HISTORIES.items() for item, second in events]
CASES = ["ann b", "bob a", "bob b", "cho a", "cho b", "cho a", "dan e", "eve a", "eve c"]
LAST = ["c", "c", "a", "d", "a", "b", "c", None, "a"]

# Training counts: a -> b twice, b -> a once, b -> c three times; popularity b 4, a 3, c 3, d and e 0.
# After c, d and nothing popularity alone decides: b, then a and c alike, then d and e alike.
# After a: b, then a and c alike. After b: c, then a.
RUN_KEEP = [1, 3, 1, 3, 1, 2, 5, 3, 3]
# Without what the user had: of cho's last item only a and e are left, of dan's a, then d and e alike, of eve's b, c.
RUN_EXCLUDE = [NOT_RETURNED, NOT_RETURNED, NOT_RETURNED, 1, NOT_RETURNED, NOT_RETURNED, 3, 3, 2]
# The floor also knows the validation events a -> c and c -> d, after which c is as popular as b and d was seen once.
# After c: d, then b and c alike, then a. After a: b, then c.
FLOOR_KEEP = [3, 4, 1, 3, 1, 2, 5, 3, 2]


def quiet() -> Reporter:
    """A reporter that says nothing."""
    return Reporter(quiet=True)


def prepared_in(folder: Path, items: pl.DataFrame | None = None, rows: list[Row] = ROWS) -> Prepared:
    """The log above."""
    dataset = write_dataset(folder / "dataset", rows, items)
    instants = {"validation_from": "1970-01-01T00:00:11", "test_from": "1970-01-01T00:00:20"}
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", seen="keep", **instants))


def trained(prepared: Prepared, model: str, name: str | None = None) -> Run:
    """A counting model's run."""
    out = prepared.folder.parent / "runs" / (name or model)
    run = train(TrainConfig(data=prepared.folder, model=model, out=out, tracking=False), quiet())
    assert run is not None
    return run


def evaluated(*runs: Run, **settings: Any) -> Evaluation:
    """Evaluates runs."""
    return evaluate(EvaluateConfig(runs=tuple(run.folder for run in runs), **settings), quiet())


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """The log above, items without text."""
    return prepared_in(tmp_path)


def ranks_in(folder: Path) -> list[int]:
    """The ranks that were kept."""
    return pl.read_parquet(folder / "cases.parquet")["rank"].to_list()


@pytest.mark.parametrize(("seen", "expected"), [("keep", RUN_KEEP), ("exclude", RUN_EXCLUDE)])
def test_ranks_of_markov_counts_are_those_worked_out_by_hand(
    prepared: Prepared, seen: str, expected: list[int]
) -> None:
    run = trained(prepared, "markov")
    evaluation = evaluated(run, seen=seen)
    assert evaluation.seen == seen
    cases = pl.read_parquet(run.evaluation("test") / "cases.parquet")
    users, items = prepared.store.user_ids, prepared.catalog.item_ids
    assert [f"{users[case[0]]} {items[case[2] - 1]}" for case in cases.rows()] == CASES
    assert cases["rank"].to_list() == expected
    expected_means = {
        name: pytest.approx(values.mean()) for name, values in case_metrics(np.array(expected), (10, 20)).items()
    }
    assert evaluation.runs["markov"]["metrics"].items() >= expected_means.items()


def test_the_floors_stand_beside_and_know_all_events_before_the_part(prepared: Prepared) -> None:
    evaluation = evaluated(trained(prepared, "markov", "ours"))
    assert list(evaluation.floors) == ["popularity", "popularity-recent", "markov", "item-knn"]
    for name in evaluation.floors:
        folder = prepared.folder / "floors" / "test" / name
        assert len(ranks_in(folder)) == len(CASES)
        assert json.loads((folder / "report.json").read_text()) == evaluation.floors[name]
    assert ranks_in(prepared.folder / "floors" / "test" / "markov") == FLOOR_KEEP


def test_floors_of_the_validation_part_know_the_training_events_alone(prepared: Prepared) -> None:
    run = trained(prepared, "markov")
    evaluated(run, part="validation")
    assert ranks_in(run.evaluation("validation")) == ranks_in(prepared.folder / "floors" / "validation" / "markov")
    # ann's c comes after a: b, then a and c alike; cho's d after c: b, a and c, then d and e alike
    assert ranks_in(run.evaluation("validation")) == [3, 5]


def test_text_and_time_decide_which_floors_there_are(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": list("abcde"), "title": ["one", "two", "one two", "three", None]})
    evaluation = evaluated(trained(prepared_in(tmp_path, items), "popularity"))
    assert list(evaluation.floors) == ["popularity", "popularity-recent", "markov", "item-knn", "tfidf"]


def test_a_log_without_times_has_no_recent_popularity(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", ROWS, time="order")
    prepared = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared", split="last-item"))
    assert list(evaluated(trained(prepared, "markov")).floors) == ["popularity", "markov", "item-knn"]


def test_floors_are_ranked_once_for_the_same_settings(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    run, fitted = trained(prepared, "popularity"), []
    fit_floor = evaluate_module.fit_floor
    monkeypatch.setattr(evaluate_module, "fit_floor", lambda name, *rest: fitted.append(name) or fit_floor(name, *rest))
    first = evaluated(run)
    assert fitted == ["popularity", "popularity-recent", "markov", "item-knn"]
    assert evaluated(run).floors == first.floors
    assert len(fitted) == 4
    evaluated(run, seen="exclude")
    evaluated(run, seen="exclude", cutoffs=(1,))
    evaluated(run, seen="exclude", cutoffs=(1,), part="validation")
    assert len(fitted) == 16


def test_a_run_is_ranked_again_when_asked(prepared: Prepared) -> None:
    run = trained(prepared, "markov")
    evaluated(run)
    evaluated(run, seen="exclude")
    assert ranks_in(run.evaluation("test")) == RUN_EXCLUDE


def test_runs_on_different_data_cannot_stand_in_one_table(tmp_path: Path) -> None:
    one = trained(prepared_in(tmp_path / "one"), "markov", "one")
    other = trained(prepared_in(tmp_path / "other", rows=ROWS[:-1]), "markov", "other")
    with pytest.raises(DataError, match=r"runs/other was trained on .*; only runs on the same prepared data can"):
        evaluated(one, other)
    assert common_data([one, one]).folder == tmp_path / "one" / "prepared"


def test_data_that_was_prepared_again_is_not_what_the_run_knew(tmp_path: Path) -> None:
    run = trained(prepared_in(tmp_path), "markov")
    prepare(PrepareConfig(dataset=tmp_path / "dataset", out=tmp_path / "prepared", split="last-item", overwrite=True))
    with pytest.raises(DataError, match="which holds other data since; train again"):
        evaluated(run)


def test_data_prepared_again_to_the_same_end_is_the_same_data(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    run = trained(prepared, "markov")
    shutil.rmtree(tmp_path / "prepared")
    shutil.rmtree(tmp_path / "dataset")
    assert prepared_in(tmp_path).fingerprint == prepared.fingerprint
    evaluated(run)


def test_a_floor_of_other_settings_is_ranked_anew(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(prepared, "markov")
    before = evaluated(run).floors
    for module in (evaluate_module, loading_module):
        monkeypatch.setattr(module, "preset", lambda _: {"model": {}})
    after = evaluated(run).floors
    assert after["popularity-recent"]["metrics"] == before["popularity"]["metrics"], "no preset: all time"
    assert after["popularity-recent"]["metrics"] != before["popularity-recent"]["metrics"]


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    runs = [trained(prepared, "markov", "a/markov"), trained(prepared, "popularity", "b/markov")]
    with pytest.raises(ConfigError, match="2 runs are called 'markov'"):
        evaluated(*runs)


@pytest.mark.parametrize("cutoffs", [(), (10, 0)])
def test_lists_have_a_length(cutoffs: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must be whole numbers from 1"):
        EvaluateConfig(runs=(Path("run"),), cutoffs=cutoffs)


def test_at_least_one_run_is_named() -> None:
    with pytest.raises(ConfigError, match="name at least one run"):
        evaluate(EvaluateConfig(runs=()), quiet())


def report(value: float) -> dict[str, Any]:
    """A report with one figure."""
    return {"metrics": {"ndcg@5": 0.9, "ndcg@10": value}}


def test_verdicts_name_the_best_floor_or_those_that_were_not_beaten() -> None:
    floors = {"popularity": report(0.1), "markov": report(0.3), "item-knn": report(0.2)}
    assert verdict("x", report(0.31), floors) == "x: ndcg@10 0.3100 beats all 3 floors (best: markov, 0.3000)."
    assert verdict("x", report(0.2), floors) == ("x: ndcg@10 0.2000 does NOT beat markov (0.3000), item-knn (0.2000).")
    assert verdict("x", {"metrics": {"mrr@1": 1.0}}, {"popularity": {"metrics": {"mrr@1": 0.5}}}) == (
        "x: mrr@1 1.0000 beats all 1 floors (best: popularity, 0.5000)."
    )


def test_every_run_gets_a_verdict(prepared: Prepared) -> None:
    evaluation = evaluated(trained(prepared, "markov", "ours"), trained(prepared, "popularity", "theirs"))
    ours, theirs = evaluation.verdicts()
    assert ours.startswith("ours: ndcg@10 ")
    assert "theirs" in theirs
    assert "does NOT beat" in theirs
    assert evaluation.as_dict()["verdicts"] == [ours, theirs]


def test_an_evaluation_is_found_in_a_run_or_is_a_folder_of_its_own(prepared: Prepared) -> None:
    run = trained(prepared, "markov")
    with pytest.raises(DataError, match=r"holds no evaluation of the test cases; run `recsys evaluate .*markov --part"):
        open_evaluation(run.folder, "test")
    evaluated(run)
    floor = prepared.folder / "floors" / "test" / "markov"
    assert open_evaluation(run.folder, "test") == open_run(run.folder).evaluation("test")
    assert open_evaluation(floor, "test") == floor


def test_tables_show_a_run_beside_the_floor_of_its_name(prepared: Prepared) -> None:
    evaluation = evaluated(trained(prepared, "markov"))
    console = Console(width=200, file=io.StringIO())
    console.print(evaluation_table(evaluation), segment_table(evaluation))
    shown = console.file.getvalue().splitlines()
    own, floor = ([line for line in shown if line.lstrip(" │┃").startswith(name)] for name in ("markov ", "markov (f"))
    assert len(own) == 2
    assert len(floor) == 1
    header, new_users = (next(line for line in shown if start in line) for start in ("┃ segment ", "user: new"))
    assert "markov (floor)" in header
    assert new_users.split("│")[2].strip() == "2"
