"""`recsys train` in processes: killed ones that go on, and several that train as one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_prepared
from training import (
    FILES_OF_A_CHECKPOINT,
    SMALL,
    assert_same_weights,
    epochs,
    killed_while_saving,
    trained,
)

from recsys.checkpoints import latest_checkpoint
from recsys.errors import DataError
from recsys.prepared import Prepared
from recsys.runs import open_run

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RESUMED = (
    "model.loss.kind=sampled-softmax",
    "model.loss.sampling=mixed",
    "model.loss.negatives=12",
    "training.checkpoint_seconds=0",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """37 users, 31 items, leave-one-out: five batches of eight windows an epoch, the last of five."""
    return tiny_prepared(tmp_path_factory.mktemp("data"))


def command(prepared: Prepared, out: Path, *settings: str, model: str = "sasrec") -> list[str]:
    """The arguments of `recsys train` for the same run."""
    options = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    return ["train", str(prepared.folder), "--model", model, "--out", str(out), "--no-tracking", *options]


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """A process of one thread, as this one is: two threads add in another order."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def killed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a training was killed (SIGKILL) in its second epoch, half-way through writing its ninth checkpoint."""
    out = tmp_path_factory.mktemp("killed") / "run"
    arguments = command(prepared, out, *RESUMED)
    second_file_after_eight_steps = FILES_OF_A_CHECKPOINT * 8 + 2
    result = python("-c", killed_while_saving(second_file_after_eight_steps), *arguments)
    assert result.returncode == -9, result.stderr
    return out


def copy_of_killed(killed: Path, folder: Path) -> Path:
    """The same interrupted run elsewhere."""
    shutil.copytree(killed.with_name(".run.partial"), folder / ".run.partial")
    return folder / "run"


def test_a_killed_training_ends_with_the_same_weights(prepared: Prepared, killed: Path, tmp_path: Path) -> None:
    """Another process goes on from inside an epoch and gets, bit for bit, what one that was not killed gets."""
    out = copy_of_killed(killed, tmp_path)
    checkpoints = tmp_path / ".run.partial" / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    assert len(names) == 2
    assert names[0].startswith("."), "the one that was being written"
    checkpoint = latest_checkpoint(checkpoints)
    assert checkpoint is not None
    assert checkpoint.progress.epoch == 1
    assert 0 < checkpoint.progress.batch < 5, "killed inside an epoch"
    result = python("-m", "pipelines.cli", *command(prepared, out, *RESUMED))
    assert result.returncode == 0, result.stderr
    assert "going on after epoch 1" in result.stderr
    undisturbed = trained(prepared, tmp_path / "undisturbed", *RESUMED)
    resumed = open_run(out)
    assert_same_weights(resumed, undisturbed)
    assert epochs(resumed) == epochs(undisturbed)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change", ["setting", "seed", "data"])
def test_a_killed_training_does_not_go_on_with_other_settings(
    prepared: Prepared, killed: Path, tmp_path: Path, change: str
) -> None:
    out = copy_of_killed(killed, tmp_path)
    settings = list(RESUMED)
    options: dict[str, Any] = {}
    data = prepared
    if change == "setting":
        settings.append("model.dropout=0.3")
    elif change == "seed":
        options["seed"] = 1
    else:
        data = tiny_prepared(tmp_path / "other", num_users=20)
    with pytest.raises(DataError, match=r"an interrupted run with other settings or data; pass --restart to discard"):
        trained(data, out, *settings, **options)
    assert (tmp_path / ".run.partial" / "checkpoints").is_dir(), "a refusal discards nothing"
    restarted = trained(data, out, *settings, restart=True, **options)
    assert_same_weights(restarted, trained(data, tmp_path / "fresh", *settings, **options))


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param((), id="softmax"),
        pytest.param(
            ("model.loss.kind=sampled-softmax", "model.loss.sampling=mixed", "model.loss.negatives=12"), id="sampled"
        ),
        pytest.param(("model.loss.kind=bce", "training.averaging=0.5"), id="binary"),
        pytest.param(("model.positions=none", "model.recency=0.25", "training.event_dropout=0.3"), id="thinned"),
        pytest.param(("model.reasoning.objective=erl", "model.reasoning.diversity=0"), id="reasoning"),
    ],
)
def test_two_processes_train_as_one(prepared: Prepared, tmp_path: Path, loss: tuple[str, ...]) -> None:
    """The same losses and figures each epoch, though one batch holds a single window, fewer than processes."""
    model = "rearec" if any(setting.startswith("model.reasoning") for setting in loss) else "sasrec"
    windows = trained(prepared, tmp_path / "count").manifest["counts"]["windows"]
    settings = (
        *loss,
        "model.dropout=0",
        "training.epochs=4",
        f"training.batch_size={windows - 1}",
        "training.accumulation=2",
        "training.learning_rate=0.03",
        "training.warmup_steps=0",
        "training.clip_norm=0.3",  # between the norms of both batches: a wrong scale shows through Adam
    )
    alone = trained(prepared, tmp_path / "alone", *settings, model=model)
    arguments = command(prepared, tmp_path / "two", *settings, model=model)
    result = python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipelines.cli", *arguments
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("train done") == 1, "one process speaks"
    together = epochs(open_run(tmp_path / "two"))
    assert len(together) == 4
    for figure in ("loss", "ndcg@10"):
        reached = [[epoch[figure] for epoch in one] for one in (together, epochs(alone))]
        assert reached[0] == pytest.approx(reached[1], rel=1e-5)


def test_a_run_killed_while_it_becomes_a_run_keeps_its_checkpoints(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last epoch, before the folder has its name: nothing is trained twice."""
    undisturbed = trained(prepared, tmp_path / "undisturbed")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recsys.steps._replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(prepared, tmp_path / "run")
    steps: list[int] = []
    monkeypatch.setattr("recsys.training.Trainer.step", lambda *_: steps.append(1))
    assert_same_weights(trained(prepared, tmp_path / "run"), undisturbed)
    assert not steps
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.yaml", "epochs.jsonl", "manifest.json", "model.safetensors")
    }
