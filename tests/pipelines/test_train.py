"""`recsys train`: settings, runs on disk, killed and distributed trainings, and what MLflow is told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from builders import random_rows, write_dataset
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from tiny import tiny_prepared

from models.markov import Markov, MarkovConfig
from pipelines.loading import run_model
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.train import TrainConfig, deep_merged, make_plan, parse_setting, train
from recsys.checkpoints import latest_checkpoint
from recsys.errors import ConfigError, DataError
from recsys.evaluation import mean_metrics, rank_cases
from recsys.losses import LossConfig
from recsys.prepared import Prepared
from recsys.ranking import RetrieverScorer
from recsys.runs import Run, open_run

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SMALL = (
    "model.max_len=6",
    "model.embedding_dim=8",
    "model.num_blocks=1",
    "model.ffn_dim=12",
    "training.epochs=3",
    "training.batch_size=8",
    "training.warmup_steps=2",
)
RESUMED = (
    "model.loss.kind=sampled-softmax",
    "model.loss.sampling=mixed",
    "model.loss.negatives=12",
    "training.checkpoint_seconds=0",
)
"""Dropout and negatives are drawn, and every step is kept."""
KILLED_WHILE_SAVING = """
import os, runpy, signal, sys
from recsys import checkpoints

saved = 0

def dying(*arguments):
    global saved
    saved += 1
    if saved == 4 * {steps} + 2:  # the second of the four tensor files of the checkpoint after that
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(*arguments)

save_file, checkpoints.save_file = checkpoints.save_file, dying
runpy.run_module("pipelines.cli", run_name="__main__")
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """37 users, 31 items, leave-one-out: five batches of eight windows an epoch, the last of five."""
    return tiny_prepared(tmp_path_factory.mktemp("data"))


def trained(
    prepared: Prepared, out: Path, *settings: str, model: str = "sasrec", tracking: bool = False, **options: Any
) -> Run:
    """A run of a small model in this process."""
    config = TrainConfig(
        data=prepared.folder, model=model, out=out, settings=(*SMALL, *settings), tracking=tracking, **options
    )
    run = train(config, Reporter(quiet=True))
    assert run is not None
    return run


def command(prepared: Prepared, out: Path, *settings: str) -> list[str]:
    """The arguments of `recsys train` for the same run."""
    options = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    return ["train", str(prepared.folder), "--model", "sasrec", "--out", str(out), "--no-tracking", *options]


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """A process of one thread, as this one is: two threads add in another order."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )


def epochs(run: Run) -> list[dict[str, float]]:
    """Figures of every epoch but its seconds."""
    lines = (run.folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def assert_same_weights(first: Run, second: Run) -> None:
    """Bit for bit."""
    ours, theirs = load_file(first.folder / "model.safetensors"), load_file(second.folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_run_says_what_it_is(prepared: Prepared, tmp_path: Path) -> None:
    run = trained(prepared, tmp_path / "run", seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "config.yaml",
        "epochs.jsonl",
        "manifest.json",
        "model.safetensors",
    ]
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"] == {
        "num_items": prepared.catalog.num_items,
        "max_len": 6,
        "embedding_dim": 8,
        "num_blocks": 1,
        "num_heads": 2,
        "ffn_dim": 12,
        "dropout": 0.2,
        "norm": "pre",
        "gated": False,
        "activation": "relu",
        "positions": "learned",
        "recency": 0.0,
        "sink": False,
        "time_buckets": 0,
        "loss": {
            "kind": "softmax",
            "negatives": 512,
            "sampling": "uniform",
            "log_q": True,
            "calibration": 0.75,
        },
    }
    assert (config["name"], config["seed"], config["training"]["batch_size"]) == ("sasrec", 7, 8)
    counts = run.manifest["counts"]
    assert counts["epochs"] == len(epochs(run)) == 3
    assert counts["windows"] == sum(-(-(stop - 1) // 6) for stop in prepared.split.train_stop if stop > 1)
    weights = load_file(run.folder / "model.safetensors")
    assert counts["parameters"] == sum(weight.numel() for weight in weights.values())
    assert open_run(run.folder).prepared().fingerprint == prepared.fingerprint


def test_the_run_holds_the_best_epoch(prepared: Prepared, tmp_path: Path) -> None:
    """Its weights give the best epoch's figure again, and its stored epochs end after the patience."""
    run = trained(
        prepared, tmp_path / "run", "training.epochs=40", "training.patience=2", "training.learning_rate=0.05"
    )
    figures = [epoch["ndcg@10"] for epoch in epochs(run)]
    best = int(np.argmax(figures)) + 1
    assert run.manifest["counts"]["best_epoch"] == best
    assert len(figures) == best + 2 < 40
    _, model = run_model(run, prepared)
    num_rows = prepared.catalog.num_rows
    scorer = RetrieverScorer(model, torch.zeros(num_rows))
    cases = prepared.cases("validation")
    ranked = rank_cases(scorer, prepared.store, cases, num_rows, prepared.seen, (10,))
    assert mean_metrics(ranked.cases, (10,))["ndcg@10"] == figures[best - 1] == max(figures)


def test_a_counting_model_is_fitted_to_training_events_alone(prepared: Prepared, tmp_path: Path) -> None:
    config = TrainConfig(data=prepared.folder, model="markov", out=tmp_path / "run")
    run = train(config, Reporter(quiet=True))
    assert run is not None
    expected = Markov.fit(MarkovConfig(), prepared.training_events("train"), prepared.items).arrays()
    stored = load_arrays(run.folder / "model.safetensors")
    assert stored.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(stored[name], values)
    assert run.manifest["counts"]["train_events"] == int(prepared.split.train_stop.sum())


def test_single_settings_win_over_the_file_and_the_file_over_the_preset(prepared: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {dropout: 0.5, max_len: 17}\ntraining: {epochs: 4}\n", encoding="utf-8")
    config = TrainConfig(
        data=prepared.folder,
        model="sasrec",
        out=tmp_path / "run",
        config_file=file,
        settings=("model.max_len=9", "training.learning_rate=0.01"),
    )
    plan = make_plan(config)
    assert (plan.model.values.dropout, plan.model.values.max_len, plan.model.values.embedding_dim) == (0.5, 9, 64)
    assert (plan.training.epochs, plan.training.learning_rate, plan.training.patience) == (4, 0.01, 10)


def test_settings_within_settings_are_merged_key_by_key(prepared: Prepared, tmp_path: Path) -> None:
    """What file and single settings do not name keeps its value at every level."""
    file = tmp_path / "mine.yaml"
    file.write_text("model: {loss: {negatives: 9, calibration: 0.5}, gated: true}\n", encoding="utf-8")
    config = TrainConfig(
        data=prepared.folder,
        model="sasrec",
        out=tmp_path / "run",
        config_file=file,
        settings=("model.loss.kind=gbce", "model.loss.calibration=0.25", "model.norm=post"),
    )
    values = make_plan(config).model.values
    assert values.loss == LossConfig(kind="gbce", negatives=9, calibration=0.25)
    assert (values.gated, values.norm, values.embedding_dim) == (True, "post", 64)


def test_a_setting_of_any_depth_is_a_mapping_of_mappings() -> None:
    assert parse_setting("model.loss.kind=gbce") == {"model": {"loss": {"kind": "gbce"}}}
    assert parse_setting("training.epochs=3") == {"training": {"epochs": 3}}
    assert parse_setting("a.b.c.d=[1, x=2]") == {"a": {"b": {"c": {"d": [1, "x=2"]}}}}


def test_merging_leaves_both_sides_as_they_were() -> None:
    values, update = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}, {"a": {"c": {"f": 4}}, "e": {"g": 5}}
    assert deep_merged(values, update) == {"a": {"b": 1, "c": {"d": 2, "f": 4}}, "e": {"g": 5}}
    assert values == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert update == {"a": {"c": {"f": 4}}, "e": {"g": 5}}


@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
def test_times_are_refused_where_data_knows_the_order_alone(tmp_path: Path, model: str) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_rows(0, users=9, items=7, events=90), time="order")
    prepared = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared", split="last-item", seen="keep"))
    with pytest.raises(DataError, match=rf"train {model}: model.time_buckets needs times, and .*prepared only knows"):
        trained(prepared, tmp_path / "run", "model.time_buckets=9", model=model)
    trained(prepared, tmp_path / "run", "training.epochs=1", model=model)


@pytest.mark.parametrize("sampling", ["popularity", "in-batch", "mixed"])
def test_a_run_with_popular_negatives_knows_the_counts(prepared: Prepared, tmp_path: Path, sampling: str) -> None:
    """Those of the training events alone."""
    settings = ("model.loss.kind=sampled-softmax", f"model.loss.sampling={sampling}", "model.loss.negatives=9")
    run = trained(prepared, tmp_path / "run", *settings, "training.epochs=1")
    assert run.config["model"]["loss"]["sampling"] == sampling
    assert np.isfinite(epochs(run)[0]["loss"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.loss.knid=gbce",), r"model sasrec: loss: no setting 'knid' \(did you mean 'kind'\?\)"),
        (("model.loss.negatives=many",), "model sasrec: loss: negatives='many' is not usable: .*valid integer"),
        (("model.loss=gbce",), "model sasrec: loss='gbce' is not usable"),
        (("model.loss.kind=gbce", "model.loss.negatives=512"), "loss: 512 distinct negatives cannot be drawn from"),
        (("model.dropuot=0.1",), r"no setting 'dropuot' \(did you mean 'dropout'\?\)"),
        (("training.epochs=many",), "training of sasrec: epochs='many' is not usable: .*valid integer"),
        (("training.epochs=0",), "training: epochs=0 must be above 0"),
        (
            ("training.event_dropout=0.2",),
            "train sasrec: .* last learned positions would never be trained; set model.positions to rotary or none",
        ),
        (
            ("training.event_dropout=0.2", "model.positions=none", "model.loss.kind=bce"),
            "train sasrec: .*kind=bce would take them for items that the user does not know; choose another loss",
        ),
        (("optimizer.rate=1",), "--set optimizer.rate=1: no section 'optimizer'; known are model, training"),
        (("model.dropout",), r"--set model.dropout: expected section.key=value"),
        (("dropout=0.1",), r"--set dropout=0.1: expected section.key=value"),
    ],
)
def test_unusable_settings_leave_nothing_behind(
    prepared: Prepared, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(prepared, tmp_path / "run", *settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [1, 2", "not valid YAML"),
        ("- 1\n", "must hold sections such as 'model:' and 'training:', not a list"),
        ("model: 3\n", "section 'model' must hold settings, not 3"),
        ("optimizer: {rate: 1}\n", "no section 'optimizer'"),
        (None, "no such config file"),
    ],
)
def test_unusable_config_files_are_refused(
    prepared: Prepared, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        trained(prepared, tmp_path / "run", config_file=file)


def test_a_run_is_not_replaced_by_accident(prepared: Prepared, tmp_path: Path) -> None:
    first = trained(prepared, tmp_path / "run")
    with pytest.raises(DataError, match="run exists already; choose another folder, or pass --overwrite"):
        trained(prepared, tmp_path / "run", seed=1)
    second = trained(prepared, tmp_path / "run", seed=1, overwrite=True)
    assert open_run(first.folder).config["seed"] == second.config["seed"] == 1


@pytest.fixture(scope="module")
def killed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a training was killed (SIGKILL) in its second epoch, half-way through writing its ninth checkpoint."""
    out = tmp_path_factory.mktemp("killed") / "run"
    arguments = command(prepared, out, *RESUMED)
    result = python("-c", KILLED_WHILE_SAVING.format(steps=8), *arguments)
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
    ],
)
def test_two_processes_train_as_one(prepared: Prepared, tmp_path: Path, loss: tuple[str, ...]) -> None:
    """The same losses and figures each epoch, though one batch holds a single window, fewer than processes."""
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
    alone = trained(prepared, tmp_path / "alone", *settings)
    arguments = command(prepared, tmp_path / "two", *settings)
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


def test_mlflow_is_told_everything(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/tracking.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = trained(prepared, tmp_path / "run", tracking=True)
    client = MlflowClient(tracking_uri=uri)
    assert run.mlflow_run_id is not None
    logged = client.get_run(run.mlflow_run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.params == {
        "seed": "0",
        **{
            f"{section}.{key}": str(value)
            for section in ("model", "training")
            for key, value in run.config[section].items()
        },
    }
    for metric in ("loss", "ndcg@10", "hit_rate@10"):
        history = client.get_metric_history(run.mlflow_run_id, metric.replace("@", "_at_"))
        assert [(entry.step, entry.value) for entry in history] == [
            (epoch["epoch"], epoch[metric]) for epoch in epochs(run)
        ]
    tags = logged.data.tags
    assert (tags["data"], tags["model"]) == (prepared.fingerprint, "sasrec")
    assert tags["commit"] == (run.manifest["commit"] or "")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_refit_takes_the_settings_and_the_best_epoch_of_a_run(prepared: Prepared, tmp_path: Path) -> None:
    run = trained(prepared, tmp_path / "run", "model.dropout=0.1")
    config = TrainConfig(data=prepared.folder, model="sasrec", out=tmp_path / "refit", refit=run.folder, tracking=False)
    refit = train(config, Reporter(quiet=True))
    assert refit is not None
    assert refit.fit_on == "train+validation"
    assert refit.config["model"] == run.config["model"]
    counts = refit.manifest["counts"]
    assert counts["epochs"] == counts["best_epoch"] == run.manifest["counts"]["best_epoch"]
    longer = sum(-(-(stop - 1) // 6) for stop in prepared.split.validation_stop if stop > 1)
    assert counts["windows"] == longer > run.manifest["counts"]["windows"]
    with pytest.raises(ConfigError, match="--refit takes every setting from"):
        trained(prepared, tmp_path / "third", refit=run.folder)
    other = TrainConfig(data=prepared.folder, model="bert4rec", out=tmp_path / "fourth", refit=run.folder)
    with pytest.raises(DataError, match="--refit needs a 'bert4rec' run on train"):
        train(other, Reporter(quiet=True))


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
