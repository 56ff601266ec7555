"""`recsys run`: cycles of a nightly job on a small shop, undisturbed and disturbed."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_recsys
from nightly import SMALL, WEAK, Webhook, champion_version, cycle, snapshot, train_section, write_logs, write_pipeline

from pipelines import cycle_steps, run_pipeline
from pipelines import train as train_module
from pipelines.append import begins
from pipelines.champion import Champion, find_champion
from pipelines.cycle import Cycle
from pipelines.ingest import IngestConfig, ingest
from pipelines.pipeline_config import load_pipeline
from pipelines.reporter import Reporter
from pipelines.run_lock import one_at_a_time
from recsys import steps
from recsys.errors import DataError
from recsys.registry import Holder, alias_holders, roll_back
from recsys.runs import WEIGHTS, open_run
from recsys.schema import open_dataset
from recsys.steps import describe_input, sha256
from recsys.tracking import mlflow_client
from recsys.training import Trainer

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One SQLite file for all tests here, since making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose first cycle made a weak champion, refitted."""
    folder = tmp_path_factory.mktemp("shop")
    write_logs(folder / "logs", nights=1)
    outcome = cycle(folder, train=train_section(**WEAK), refit=True, compare={"draws": 200, "report": True})
    assert outcome.record["action"] == "replace", outcome.record["sentence"]
    return folder


@pytest.fixture(scope="module")
def second(first: Path) -> run_pipeline.Outcome:
    """A second night, warm, undisturbed; its bundle is taken back afterwards."""
    write_logs(first / "logs", nights=2)
    outcome = cycle(first, train=train_section(warm=True))
    assert champion_version("shop") == "2"
    roll_back("shop", "champion")
    return outcome


def test_the_first_champion_beats_every_floor(first: Path) -> None:
    [record] = [json.loads(path.read_text()) for path in (first / "work-shop").glob("*/cycle.json")]
    assert "There is no champion yet, and every floor is beaten: it becomes one." in record["sentence"]
    folder = Path(record["folder"])
    assert open_run(folder / "runs" / "candidate").fit_on == "train+validation"
    assert "<svg" in (folder / "decision" / "report.html").read_text()


def test_a_better_candidate_takes_the_place_of_the_champion(second: run_pipeline.Outcome) -> None:
    record = second.record
    assert (record["action"], record["verdict"], second.nothing_new) == ("replace", "better", False)
    assert "candidate is better than champion on ndcg@10" in record["sentence"]
    folder, before = Path(record["folder"]), record["lineage"]["compared_with"]
    old, new = (open_run(path) for path in (Path(before["run"]), folder / "runs" / "candidate"))
    ids = old.prepared().catalog.item_ids
    assert new.prepared().catalog.item_ids.head(len(ids)).equals(ids)
    assert new.config["init"] == str(old.folder.parent / "selected"), "a refit has seen the validation events"
    kept = open_run(folder / "runs" / "champion")
    assert sha256(kept.folder / WEIGHTS) == sha256(old.folder / WEIGHTS)


def test_a_later_cycle_appends_to_the_dataset_of_the_one_before(
    first: Path, second: run_pipeline.Outcome, tmp_path: Path
) -> None:
    dataset = open_dataset(Path(second.record["folder"]) / "dataset")
    assert [part["sources"] for part in dataset.manifest["history"]] == [1, 1]
    logs = tuple(first / "logs" / f"night-{night}.csv" for night in range(2))
    whole = ingest(IngestConfig(sources=logs, out=tmp_path / "whole"))
    assert dataset.events().equals(whole.events())
    assert dataset.manifest["inputs"] == whole.manifest["inputs"]
    asked = IngestConfig(sources=logs[::-1], out=tmp_path / "other")
    assert begins(dataset.manifest, asked, [describe_input(log) for log in logs[::-1]]) == 0
    assert begins(dataset.manifest, replace(asked, time_unit="ms"), dataset.manifest["inputs"]) == 0


def test_a_champion_that_has_learned_from_the_cases_is_told(first: Path, second: run_pipeline.Outcome) -> None:
    assert second.record["warnings"] == []
    changes = {"train": train_section(**WEAK), "refit": True, "compare": {"draws": 200, "report": True}}
    earlier = Cycle.of(load_pipeline(write_pipeline(first, sources=["logs/night-0.csv"], **changes)))
    later = open_run(Path(second.record["folder"]) / "runs" / "candidate")
    [warning] = run_pipeline.overlaps(earlier, Champion(version="2", bundle="", run=later))
    until = later.prepared().manifest["counts"]["validation_from"]
    assert f"the champion has learned from events up to {until}, and the test part begins 2023-11-" in warning


def test_a_version_leads_back_to_its_logs(first: Path, second: run_pipeline.Outcome) -> None:
    lineage = second.record["lineage"]
    assert [(Path(log["path"]).name, log["sha256"]) for log in lineage["logs"]] == [
        (f"night-{night}.csv", sha256(first / "logs" / f"night-{night}.csv")) for night in range(2)
    ]
    for name in ("bundle", "run", "prepared", "dataset"):
        assert lineage[name] == describe_input(Path(lineage[name]["path"]))
    tags = mlflow_client().get_model_version("shop", "2").tags
    assert tags["bundle"] == lineage["bundle_version"]
    assert (tags["cycle"], tags["dataset"]) == (second.record["cycle"], lineage["dataset"]["sha256"])


def test_the_same_logs_again_do_nothing(first: Path, second: run_pipeline.Outcome) -> None:
    before = snapshot(first / "work-shop")
    again = cycle(first, train=train_section(warm=True))
    assert again.nothing_new
    assert again.sentences() == [
        f"nothing new: cycle {second.record['cycle']} of {second.record['finished']} had these logs and settings."
    ]
    assert snapshot(first / "work-shop") == before
    assert champion_version("shop") == "1", "what was rolled back stays rolled back"


class Crash(BaseException):
    """The process ends here."""


class Crasher:
    """Ends the process once at every point that a run comes to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.passed: set[str] = set()
        replace_folder, save, sweep = steps._replace_folder, Trainer._save, run_pipeline.sweep

        def replaced(new: Path, out: Path) -> None:
            place = f"{out.parent.parent.name}/{out.name}" if out.parent.name == "evaluation" else out.name
            if out.name in {"prepared", "decision", "registered"}:
                self.come_to(f"before {place}")
            replace_folder(new, out)
            if "floors" not in out.parts:
                self.come_to(f"after {place}")

        def saved(trainer: Trainer) -> None:
            save(trainer)
            if trainer.progress.step == 30:
                self.come_to("within training")

        def swept(*arguments: Any) -> list[str]:
            self.come_to("before the record")
            return sweep(*arguments)

        patch.setattr(steps, "_replace_folder", replaced)
        patch.setattr(Trainer, "_save", saved)
        patch.setattr(run_pipeline, "sweep", swept)

    def come_to(self, place: str) -> None:
        if place not in self.passed:
            self.passed.add(place)
            raise Crash(place)


def test_killed_at_every_step_it_ends_as_if_it_had_not_been(
    first: Path, second: run_pipeline.Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    crasher, outcome = Crasher(monkeypatch), None
    while outcome is None:
        try:
            outcome = cycle(first, train=train_section(warm=True), work="work-killed")
        except Crash:
            assert len(crasher.passed) < 30
    assert crasher.passed == {
        *("after dataset", "before prepared", "after prepared", "within training", "after candidate"),
        *("after champion", "after champion/test", "after candidate/test", "after evaluation"),
        *("before decision", "after decision", "after bundle", "before registered", "after registered"),
        "before the record",
    }
    assert_same_outcome(outcome, second)
    versions = mlflow_client().search_model_versions("name = 'shop'")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3], "registered once, however often killed"
    assert [holder.version for holder in alias_holders("shop", "champion")] == ["3", "1"]
    roll_back("shop", "champion")


def assert_same_outcome(one: run_pipeline.Outcome, other: run_pipeline.Outcome) -> None:
    """The same decision over the same figures, and the same weights of the same data."""
    for key in ("cycle", "action", "verdict", "sentence"):
        assert one.record[key] == other.record[key]
    assert one.record["lineage"]["compared_with"] == other.record["lineage"]["compared_with"]
    runs = [Path(outcome.record["folder"]) / "runs" for outcome in (one, other)]
    for name in ("candidate", "champion"):
        weights, figures, data = zip(
            *(
                (
                    sha256(folder / name / WEIGHTS),
                    (folder / name / "evaluation" / "test" / "report.json").read_text(),
                    open_run(folder / name).prepared().fingerprint,
                )
                for folder in runs
            ),
            strict=True,
        )
        assert (len(set(weights)), len(set(figures)), len(set(data))) == (1, 1, 1)
    assert entries(Path(one.record["folder"])) == entries(Path(other.record["folder"]))


def entries(folder: Path) -> set[str]:
    """Names of all that lies there; nothing of a step that was killed may be left."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


SHOT = """
import os, signal, sys
import torch
torch.set_num_threads(1)  # as the test itself: sums of several threads round otherwise
from pipelines.cli import main
from recsys import training
save, saved = training.save_checkpoint, []
def shot(*checkpoint):
    save(*checkpoint)
    saved.append(checkpoint)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
training.save_checkpoint = shot
sys.argv = ["recsys", "run", sys.argv[1]]
main()
"""
"""`recsys run` that is killed after its second checkpoint."""


def test_a_process_killed_in_the_midst_of_training_goes_on(first: Path, second: run_pipeline.Outcome) -> None:
    path = write_pipeline(first, train=train_section(warm=True), work="work-shot")
    process = subprocess.run([sys.executable, "-c", SHOT, str(path)], cwd=REPOSITORY, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    config = load_pipeline(path)
    states = run_pipeline.forecast(config).steps
    assert [states[name] for name in ("ingest", "prepare", "train", "champion")] == ["done", "done", "goes on", "to do"]
    shot = Cycle.of(config)
    stages = cycle_steps.stages_to_decision(shot, find_champion("shop", "champion"), Reporter(quiet=True))
    run_pipeline.run_stages(stages[:3], config, Reporter(quiet=True))
    undisturbed = Path(second.record["folder"]) / "runs" / "candidate"
    assert sha256(shot.candidate / WEIGHTS) == sha256(undisturbed / WEIGHTS)
    assert len((shot.candidate / "epochs.jsonl").read_text().splitlines()) == SMALL["training.epochs"]


@pytest.mark.parametrize("fault", ["wrong learning rate", "shuffled labels"])
def test_a_worse_candidate_never_becomes_champion(
    first: Path, monkeypatch: pytest.MonkeyPatch, webhook: Webhook, fault: str
) -> None:
    settings = SMALL | {"training.epochs": 2}
    if fault == "wrong learning rate":
        settings |= {"training.learning_rate": 1e-7}
    else:
        shuffle_training(monkeypatch)
    path = write_pipeline(
        first, train=train_section(**settings), work=f"work-{fault}", notify={"webhook": webhook.address}
    )
    code, output, error = run_recsys("run", path)
    assert code == 3
    assert "champion is better than candidate on ndcg@10" in output
    assert "The champion stays, and the candidate is refused." in output
    assert "the candidate of cycle" in error
    assert champion_version("shop") == "1"
    [message] = webhook.messages
    assert (message["action"], message["verdict"], message["pipeline"]) == ("refuse", "worse", "shop")
    assert not list((first / f"work-{fault}").glob("*/bundle"))


def shuffle_training(patch: pytest.MonkeyPatch) -> None:
    """Trains on histories whose items change places."""

    def trainer(model: Any, store: Any, *others: Any) -> Trainer:
        mixed = np.random.default_rng(0).permutation(np.asarray(store.item_idx))
        return Trainer(model, replace(store, item_idx=mixed), *others)

    patch.setattr(train_module, "Trainer", trainer)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """One that says yes."""
    with Webhook() as server:
        yield server


def test_a_first_candidate_below_a_floor_is_refused(first: Path) -> None:
    outcome = cycle(first, "fresh", train=train_section(**SMALL | {"training.epochs": 1}))
    assert outcome.refused
    assert "There is no champion yet, and the candidate does not beat" in outcome.record["sentence"]
    assert champion_version("fresh") is None


def test_two_at_once_are_told_apart(first: Path) -> None:
    config = load_pipeline(write_pipeline(first, work="work-locked"))
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with one_at_a_time(config.work / "run.lock"):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    code, _, error = run_recsys("run", first / "shop.yaml")
    leave.set()
    thread.join()
    assert code == 1
    assert f"run: {config.work} is being worked on by process {os.getpid()} on" in error
    assert " since 20" in error
    with one_at_a_time(config.work / "run.lock"):  # free again, though its text is still there
        pass


def test_a_dry_run_says_what_would_happen_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_logs(tmp_path / "logs", nights=1)
    path = write_pipeline(tmp_path, refit=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    before = snapshot(tmp_path)
    code, output, _ = run_recsys("run", path, "--dry-run")
    assert code == 0
    assert snapshot(tmp_path) == before
    assert "1 log files, champion none yet" in output
    for step in ("ingest", "prepare", "train", "refit", "evaluate", "decide"):
        assert f"  {step}: to do" in output
    assert "  champion:" not in output
    assert "  register: only if the gate says yes" in output
    assert "models:/shop@champion would point at the candidate if it beats every floor." in output


def test_a_dry_run_knows_champion_and_finished_steps(first: Path, second: run_pipeline.Outcome) -> None:
    before = snapshot(first)
    _, output, _ = run_recsys("run", write_pipeline(first, train=train_section(warm=True)), "--dry-run")
    assert f"nothing new: cycle {second.record['cycle']}" in output
    config = load_pipeline(write_pipeline(first, train=train_section(**SMALL, warm=False), work="work-none"))
    found = run_pipeline.forecast(config)
    assert (found.champion, found.steps["champion"]) == ("version 1 (sasrec)", "to do")
    assert (
        "would move from version 1 to the candidate if that is better on the test cases and 4 guardrails" in found.then
    )
    path = str(first / "shop.yaml")
    assert {name: time for name, time in snapshot(first).items() if name != path} == {
        name: time for name, time in before.items() if name != path
    }


def test_an_alias_that_moved_meanwhile_is_not_overrun(
    first: Path, second: run_pipeline.Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [Holder("7", "another", {})]
    monkeypatch.setattr(cycle_steps, "alias_holders", lambda *_: held)
    done = Cycle.of(load_pipeline(write_pipeline(first, train=train_section(warm=True))))
    with pytest.raises(DataError, match=r"models:/shop@champion was moved to version 7 while the cycle ran; run again"):
        cycle_steps.register(done, Path(second.record["lineage"]["bundle"]["path"]), first / "elsewhere")
    assert not (first / "elsewhere").exists()


def test_a_champion_whose_run_is_gone_is_named(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"path": str(first / "nowhere"), "sha256": ""}
    held = [Holder("4", "", {"inputs": [entry], "config": {}})]
    monkeypatch.setattr("pipelines.champion.alias_holders", lambda *_: held)
    with pytest.raises(
        DataError, match=r"models:/shop@champion \(version 4\) was exported from .*nowhere, which is gone"
    ):
        find_champion("shop", "champion")
