"""Parts of `recsys run`: its lock, its settings, retries and time limits, retention, notification."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import run_recsys
from nightly import Webhook, write_pipeline

from pipelines import retention, run_pipeline
from pipelines.cycle import Stage
from pipelines.notify import notify
from pipelines.pipeline_config import NotifySection, load_pipeline
from pipelines.reporter import Reporter
from pipelines.run_lock import one_at_a_time
from recsys.errors import LimitError
from recsys.registry import Holder

REPOSITORY = Path(__file__).resolve().parents[2]


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


def test_a_failure_is_told_to_the_webhook(tmp_path: Path) -> None:
    with Webhook() as webhook:
        path = write_pipeline(tmp_path, notify={"webhook": webhook.address})
        assert run_recsys("run", path)[0] == 1
    [message] = webhook.messages
    assert message["action"] == "failed"
    assert "no file matches" in message["sentence"]


def test_a_webhook_that_fails_costs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with Webhook(status=500) as server:
        said = notify(NotifySection(webhook=server.address), {"cycle": "x"}, Reporter())
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
