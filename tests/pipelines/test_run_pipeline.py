"""`recsys run`: cycles of a nightly job on a small shop, undisturbed and disturbed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from command_line import run_recsys
from tiny import START_OF_TIME, cyclic_histories

from pipelines import cycle_steps, retention, run_pipeline
from pipelines import train as train_module
from pipelines.champion import Champion, find_champion
from pipelines.cycle import Cycle, Stage
from pipelines.notify import notify
from pipelines.pipeline_config import NotifySection, load_pipeline
from pipelines.reporter import Reporter
from pipelines.run_lock import one_at_a_time
from recsys import steps
from recsys.errors import DataError, LimitError
from recsys.registry import Holder, alias_holders, roll_back
from recsys.runs import WEIGHTS, open_run
from recsys.steps import describe_input, sha256
from recsys.tracking import mlflow_client
from recsys.training import Trainer

REPOSITORY = Path(__file__).resolve().parents[2]
USERS, LENGTH = 100, 16
SMALL = {
    "model.max_len": 6,
    "model.embedding_dim": 16,
    "model.num_blocks": 1,
    "model.ffn_dim": 16,
    "model.dropout": 0.0,
    "training.batch_size": 16,
    "training.learning_rate": 0.01,
    "training.epochs": 20,
    "training.patience": 20,
    "training.checkpoint_seconds": 0,
}
WEAK = SMALL | {"training.epochs": 10, "training.learning_rate": 0.003}
WALKS = cyclic_histories(2 * USERS, LENGTH)
HISTORIES = [
    [item for pair in zip(WALKS[user], WALKS[USERS + user], strict=True) for item in pair] for user in range(USERS)
]
"""The item before the last decides the next, which floors by the last item cannot see."""


def write_logs(folder: Path, nights: int) -> None:
    """One file a night, of four further events of each user, the first of twelve; new users' walks never begin."""
    folder.mkdir(exist_ok=True)
    for night in range(nights):
        places = range(12) if night == 0 else range(8 + 4 * night, 12 + 4 * night)
        rows = [
            (f"u{user:02}", f"i{HISTORIES[user][place]:02}", START_OF_TIME // 1_000_000 + 60 * (place * USERS + user))
            for place in places
            for user in range(USERS)
        ]
        table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        table.write_csv(folder / f"night-{night}.csv")


def write_pipeline(folder: Path, name: str = "shop", **changes: Any) -> Path:
    """PIPELINE.yaml of a small shop."""
    content: dict[str, Any] = {
        "name": name,
        "work": f"work-{name}",
        "sources": ["logs/*.csv"],
        "prepare": {"seen": "keep"},
        "train": {"model": "sasrec", "set": SMALL, "tracking": False},
        "compare": {"draws": 200, "report": False, "guard": {"coverage@10": -0.9}},
        "register": {"name": name},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def cycle(folder: Path, name: str = "shop", **changes: Any) -> run_pipeline.Outcome:
    """One call of `recsys run`."""
    config = load_pipeline(write_pipeline(folder, name, **changes))
    return run_pipeline.run_pipeline(config, Reporter(quiet=True))


def train_section(warm: bool = False, **settings: Any) -> dict[str, Any]:
    return {"model": "sasrec", "set": settings or SMALL, "tracking": False, "warm": warm}


def champion_version(name: str) -> str | None:
    holders = alias_holders(name, "champion")
    return holders[0].version if holders else None


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


def snapshot(folder: Path) -> dict[str, int]:
    """All files but the lock, with the instants of their last change."""
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"
    }


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
    first: Path, monkeypatch: pytest.MonkeyPatch, webhook: "Webhook", fault: str
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


class Webhook:
    """A server that keeps what is posted to it."""

    def __init__(self, status: int = 200) -> None:
        self.messages: list[dict[str, Any]] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """One that says yes."""
    server = Webhook()
    yield server
    server.close()


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


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pipelines.run_lock import one_at_a_time\n"
        "with one_at_a_time(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.lock")], cwd=REPOSITORY, check=False)
    assert process.returncode == -signal.SIGKILL
    assert "pid" in (tmp_path / "run.lock").read_text()
    with one_at_a_time(tmp_path / "run.lock"):
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sauces": 1}, r"no setting 'sauces' \(did you mean 'sources'\?\)"),
        ({"train": {"modle": "sasrec"}}, r"shop.yaml: train: lacks model; see docs/pipeline.md"),
        ({"train": {"model": "sasrec", "warmth": True}}, r"train: no setting 'warmth'"),
        ({"train": {"model": "markov"}}, r"'markov' cannot be trained, exported and served by itself"),
        ({"train": {"model": "dare"}}, r"'dare' cannot be trained, exported and served by itself"),
        ({"train": {"model": "sasrec", "set": {"model.dropuot": 0.1}}}, r"no setting 'dropuot'"),
        ({"train": {"model": "sasrec", "set": {"training.epochs": "many"}}}, r"epochs='many' is not usable"),
        ({"sources": []}, r"shop.yaml: sources=\[\] names no log"),
        ({"sources": ["none/*.csv"]}, r"sources: no file matches '.*none/\*.csv'"),
        ({"prepare": {"test_share": 2}}, r"test_share=2.0 must be above 0"),
        ({"compare": {"part": "train"}}, r"part='train' is not usable"),
        ({"refit": True, "compare": {"part": "validation"}}, r"refit: true learns from the validation events"),
        ({"keep": -1}, r"keep=-1 must not be below 0"),
        ({"limit_minutes": {"trian": 5}}, r"limit_minutes: no step 'trian'"),
        ({"notify": {"webhook": "file:///etc"}}, r"webhook='file:///etc' must begin with http"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    code, _, error = run_recsys("run", write_pipeline(tmp_path, **changes), "--dry-run")
    assert code in {1, 2}
    assert re.search(message, error), error


def test_a_sampled_loss_is_a_setting_like_others(tmp_path: Path) -> None:
    loss = {"kind": "sampled-softmax", "negatives": 256}
    config = load_pipeline(write_pipeline(tmp_path, train={"model": "sasrec", "set": {"model.loss": loss}}))
    assert config.train.set["model.loss"] == loss


def test_a_failure_is_told_to_the_webhook(tmp_path: Path, webhook: Webhook) -> None:
    path = write_pipeline(tmp_path, notify={"webhook": webhook.address})
    assert run_recsys("run", path)[0] == 1
    [message] = webhook.messages
    assert message["action"] == "failed"
    assert "no file matches" in message["sentence"]


def test_a_webhook_that_fails_costs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    server = Webhook(status=500)
    said = notify(NotifySection(webhook=server.address), {"cycle": "x"}, Reporter())
    server.close()
    assert said == "failed: HTTP Error 500: Internal Server Error"
    gone = notify(NotifySection(webhook=server.address, timeout_seconds=1), {"cycle": "x"}, Reporter())
    assert gone.startswith("failed: <urlopen error")
    assert "the webhook did not take the message" in capsys.readouterr().err


def stage_of(work: Callable[[], object], folder: Path) -> Stage:
    return Stage(name="train", out=folder / "none", step="train", inputs=(), work=work)


def test_a_failed_step_is_tried_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the store does not answer")

    config = load_pipeline(write_pipeline(tmp_path, retries=2, retry_seconds=0))
    run_pipeline.attempt(stage_of(work, tmp_path), config, Reporter(quiet=True))
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(OSError, match="does not answer"):
        run_pipeline.attempt(stage_of(work, tmp_path), replace(config, retries=1), Reporter(quiet=True))


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    config = load_pipeline(write_pipeline(tmp_path, retries=2, limit_minutes={"train": 0.001}))
    with pytest.raises(LimitError, match=r"train took longer than limit_minutes.train=0.001"):
        run_pipeline.attempt(stage_of(lambda: time.sleep(60), tmp_path), config, Reporter(quiet=True))
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_retention_keeps_the_latest_and_what_the_champion_and_the_way_back_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:012x}" for number in range(7)]
    for number, name in enumerate(names):
        for part in ("dataset", "prepared", "runs/candidate", "bundle", "decision"):
            (tmp_path / name / part).mkdir(parents=True)
        if number != 3:
            (tmp_path / name / "cycle.json").write_text(json.dumps({"finished": f"2026-01-0{number + 1}"}))
    (tmp_path / "notes").mkdir()
    others = tmp_path / "abcdefabcdef"
    others.mkdir()
    for name, pipeline in ((names[6], "shop"), (others.name, "films")):
        (tmp_path / name / "start.json").write_text(json.dumps({"pipeline": pipeline}))
    held = [
        Holder(str(number), "", {"inputs": [{"path": str(tmp_path / names[number] / "runs" / "candidate")}]})
        for number in (1, 0)
    ]
    monkeypatch.setattr(retention, "alias_holders", lambda *_: held)
    gone = retention.sweep(tmp_path, tmp_path / names[6], 2, "shop", "champion")
    assert sorted(gone) == sorted([names[3], *(f"{names[2]}/{part}" for part in retention.LARGE)])
    left = {name for name in names if (tmp_path / name / "runs").exists()}
    assert left == {names[number] for number in (0, 1, 4, 5, 6)}
    assert (tmp_path / names[2] / "decision").exists()
    assert (tmp_path / names[2] / "cycle.json").exists()
    assert (tmp_path / "notes").exists()
    assert others.exists(), "of another pipeline"
    assert retention.sweep(tmp_path, tmp_path / names[6], 2, "shop", "champion") == []


def test_nothing_of_a_killed_step_stays(tmp_path: Path) -> None:
    for name in (
        "runs/a/manifest.json",
        "runs/a/checkpoints/1/state.json",
        "runs/.b.partial/x",
        "runs/a/.cases.json.tmp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dataset.lock").touch()
    retention.tidy(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]
    assert not (tmp_path / "runs" / "a" / "checkpoints").exists()


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
