"""`recsys sweep`: trials that survive a kill, what is kept of them, and that the test part stays unread."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import run_recsys
from safetensors.torch import load_file
from sweeping import COUNTING, NETWORK, config_of, make, outcomes, rows_of, space_file, swept
from tiny import tiny_prepared
from training import FILES_OF_A_CHECKPOINT, killed_while_saving

from models.registry import preset
from pipelines.plan import TrainConfig
from pipelines.reporter import Reporter
from pipelines.sweep import locked
from pipelines.sweep_results import Sweep, best_table
from pipelines.train import train
from recsys import checkpoints
from recsys.errors import DataError
from recsys.prepared import Prepared, open_prepared
from recsys.runs import open_run

REPOSITORY = Path(__file__).resolve().parent.parent.parent
EPOCHS_OF_TWO_TRIALS = 4
KILLED_IN_THE_SECOND_EPOCH_OF_THE_SECOND_TRIAL = killed_while_saving(
    FILES_OF_A_CHECKPOINT * (EPOCHS_OF_TWO_TRIALS - 1) + 1
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """37 users, 31 items, leave-one-out."""
    return tiny_prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Three trials of a small SASRec that nothing interrupted."""
    return swept(config_of(prepared, tmp_path_factory.mktemp("undisturbed"), NETWORK))


@pytest.fixture(scope="module")
def counted(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Four trials of item-KNN, which are quick."""
    return swept(config_of(prepared, tmp_path_factory.mktemp("counted"), COUNTING, trials=4))


def test_the_best_settings_reach_the_best_figure_again(prepared: Prepared, undisturbed: Sweep, tmp_path: Path) -> None:
    """Trained from `best.yaml` alone: the same weights as the run that was kept."""
    folder = undisturbed.config.out
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["complete"] * 3
    best = max(rows, key=lambda row: float(row["ndcg@10"]))
    assert len({row["ndcg@10"] for row in rows}) == 3, "trials that cannot be told apart"
    assert [path.name for path in (folder / "trials").iterdir()] == [best["number"]], "the best run alone is kept"
    run = train(
        TrainConfig(
            data=prepared.folder,
            model="sasrec",
            out=tmp_path / "run",
            config_file=folder / "best.yaml",
            tracking=False,
        ),
        Reporter(quiet=True),
    )
    assert run is not None
    kept = open_run(folder / "trials" / best["number"])
    assert run.config == kept.config
    ours, theirs = (load_file(each.folder / "model.safetensors") for each in (run, kept))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert run.manifest["counts"]["best_validation_ndcg@10"] == float(best["ndcg@10"])
    text = (folder / "best.yaml").read_text(encoding="utf-8")
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"trial {best['number']}, epoch {best['best_epoch']}, validation ndcg@10 {best['ndcg@10']}." in comments
    for part in (str(prepared.folder), prepared.fingerprint[:12], "sasrec", "3 trials", "seed 0"):
        assert part in comments


def test_the_manifest_says_what_was_searched(prepared: Prepared, undisturbed: Sweep) -> None:
    folder = undisturbed.config.out
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["step"] == "sweep"
    assert [Path(entry["path"]) for entry in manifest["inputs"]] == [prepared.folder, undisturbed.config.space]
    assert set(manifest["files"]) == {"best.yaml", "trials.csv"}
    assert manifest["config"]["space"]["model.num_blocks"] == {"low": 0, "high": 1, "log": False, "step": None}
    assert manifest["config"]["settings"]["training"]["epochs"] == 2
    counts, best = manifest["counts"], undisturbed.ranking()[0]
    assert (counts["trials"], counts["complete"], counts["failed"]) == (3, 3, 0)
    assert (counts["best_trial"], counts["best_validation_ndcg@10"]) == (best.number, best.value)
    assert [trial.value for trial in undisturbed.ranking()] == sorted(
        (float(row["ndcg@10"]) for row in rows_of(folder)), reverse=True
    )


def test_trials_use_their_parameters(prepared: Prepared, tmp_path: Path) -> None:
    """Every run's own config holds the parameters of its row, typed as the model wants them; all runs are kept."""
    result = swept(config_of(prepared, tmp_path, COUNTING, keep_runs=True))
    for trial, row in zip(result.trials, rows_of(result.config.out), strict=True):
        stored = open_run(result.config.out / "trials" / str(trial.number)).config["model"]
        assert stored == preset("item-knn")["model"] | {
            "decay": float(row["model.decay"]),
            "neighbours": int(row["model.neighbours"]),
        }
    assert len({trial.params["model.decay"] for trial in result.trials}) == 3


def test_a_sweep_in_pieces_tries_what_one_in_one_piece_tries(
    prepared: Prepared, counted: Sweep, tmp_path: Path
) -> None:
    """The number of trials is that of all calls together; another seed draws others."""
    for trials in (1, 4, 2):
        pieces = swept(config_of(prepared, tmp_path, COUNTING, trials=trials))
    assert outcomes(pieces) == outcomes(counted)
    other = swept(config_of(prepared, make(tmp_path / "other"), COUNTING, seed=1, trials=1))
    assert other.trials[0].params != counted.trials[0].params


def test_a_killed_sweep_goes_on_inside_the_trial(
    prepared: Prepared, undisturbed: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed (SIGKILL) in the second epoch of the second trial: that epoch is the first to be trained again."""
    config = config_of(prepared, tmp_path, NETWORK)
    arguments = ["sweep", prepared.folder, "--model", "sasrec", "--space", config.space, "--trials", 3]
    process = subprocess.run(
        [sys.executable, "-c", KILLED_IN_THE_SECOND_EPOCH_OF_THE_SECOND_TRIAL]
        + [str(argument) for argument in [*arguments, "--out", config.out]],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == -9, process.stderr
    assert [row["number"] for row in rows_of(config.out)] == ["0"]
    assert (config.out / "trials" / ".1.partial" / "checkpoints").is_dir()
    saved: list[object] = []
    save_file = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", lambda *given: (saved.append(given), save_file(*given)))
    resumed = swept(config)
    assert len(saved) == FILES_OF_A_CHECKPOINT * 3, "one epoch of the interrupted trial, two of the last"
    assert outcomes(resumed) == outcomes(undisturbed)
    best = str(undisturbed.ranking()[0].number)
    assert [path.name for path in (config.out / "trials").iterdir()] == [best]
    ours, theirs = (
        load_file(each.config.out / "trials" / best / "model.safetensors") for each in (resumed, undisturbed)
    )
    assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("pipelines.sweep.train", SystemExit),
        ("recsys.steps._replace_folder", KeyboardInterrupt),
        ("pipelines.sweep.figures_of", SystemExit),
        ("pipelines.sweep_results.header", KeyboardInterrupt),
    ],
)
def test_a_sweep_interrupted_anywhere_loses_and_repeats_nothing(
    prepared: Prepared,
    counted: Sweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: type[BaseException],
) -> None:
    config = config_of(prepared, tmp_path, COUNTING, trials=4)
    module, name = place.rsplit(".", 1)
    original = getattr(sys.modules[module], name)
    with monkeypatch.context() as patch:
        patch.setattr(place, fails_at_call(2, original, error))
        with pytest.raises(error):
            swept(config)
    resumed = swept(config)
    assert outcomes(resumed) == outcomes(counted)
    best = str(resumed.ranking()[0].number)
    assert [path.name for path in (config.out / "trials").iterdir()] == [best]
    assert len(rows_of(config.out)) == 4
    settings = [yaml.safe_load((each.config.out / "best.yaml").read_text()) for each in (resumed, counted)]
    assert settings[0] == settings[1]


def fails_at_call(number: int, original: Callable[..., Any], error: type[BaseException]) -> Callable[..., Any]:
    """`original`, but its call of this number is interrupted instead."""
    calls: list[object] = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            raise error
        return original(*arguments, **options)

    return call


def test_the_test_part_is_never_read(prepared: Prepared, undisturbed: Sweep, counted: Sweep, tmp_path: Path) -> None:
    """Without its cases, and with other items in its events, every figure stays what it was."""
    folder = tmp_path / "poisoned"
    shutil.copytree(prepared.folder, folder)
    (folder / "test.parquet").unlink()
    items, offsets = np.load(folder / "sequences" / "item_idx.npy"), prepared.store.offsets
    stops = prepared.split.validation_stop
    assert (offsets[:-1] + stops < offsets[1:]).all(), "every user has a test event"
    for user, stop in enumerate(stops):
        items[offsets[user] + stop : offsets[user + 1]] = 1
    np.save(folder / "sequences" / "item_idx.npy", items)
    poisoned = open_prepared(folder)
    assert outcomes(swept(config_of(poisoned, make(tmp_path / "a"), NETWORK))) == outcomes(undisturbed)
    assert outcomes(swept(config_of(poisoned, make(tmp_path / "b"), COUNTING, trials=4))) == outcomes(counted)


def test_a_trial_that_fails_is_recorded_and_the_sweep_goes_on(prepared: Prepared, tmp_path: Path) -> None:
    space = {**NETWORK, "training.learning_rate": [0.01, 1e30], "model.loss.kind": ["softmax"]}
    result = swept(config_of(prepared, tmp_path, space, trials=4))
    rows = rows_of(result.config.out)
    assert {row["state"] for row in rows} == {"complete", "failed"}
    for row in rows:
        diverged = row["training.learning_rate"] == "1e+30"
        assert (row["state"], row["ndcg@10"] == "") == (("failed", True) if diverged else ("complete", False))
        assert re.match("training: the loss became (nan|inf)" if diverged else "$", row["reason"])
    best = str(result.ranking()[0].number)
    assert [path.name for path in (result.config.out / "trials").iterdir()] == [best]
    assert result.manifest["counts"]["failed"] == sum(row["state"] == "failed" for row in rows) > 0


def test_three_failures_and_nothing_else_end_a_sweep(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(prepared, tmp_path, {**NETWORK, "training.learning_rate": [1e30]}, trials=50)
    failure = r"no trial succeeded, all 3 failed; the last: training: the loss became nan .* Change .*space.yaml"
    with pytest.raises(DataError, match=failure):
        swept(config)
    assert [row["state"] for row in rows_of(config.out)] == ["failed"] * 3
    assert not (config.out / "best.yaml").exists()
    monkeypatch.setattr("pipelines.sweep.run_trial", None)
    with pytest.raises(DataError, match=failure):
        swept(config)


def test_seconds_end_a_sweep(prepared: Prepared, tmp_path: Path) -> None:
    """Seconds of earlier calls count, so the same command adds nothing and a larger number does."""
    config = config_of(prepared, tmp_path, COUNTING, seconds=1e-3)
    assert len(swept(config).trials) == 1
    assert len(swept(config).trials) == 1
    assert len(swept(replace(config, seconds=1e6, trials=2)).trials) == 2


def test_a_folder_of_something_else_is_left_alone(prepared: Prepared, tmp_path: Path) -> None:
    config = config_of(prepared, tmp_path, COUNTING)
    config.out.mkdir()
    (config.out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="sweep exists already and holds no sweep; choose another --out"):
        swept(config)
    with pytest.raises(DataError, match="was made by `recsys prepare`, but the output of `recsys sweep` is needed"):
        swept(replace(config, out=prepared.folder))


def test_two_sweeps_do_not_share_a_folder(prepared: Prepared, tmp_path: Path) -> None:
    config = config_of(prepared, tmp_path, COUNTING)
    config.out.mkdir()
    with locked(config.out), pytest.raises(DataError, match=r"another sweep is writing .*sweep; wait for it to end"):
        swept(config)
    assert len(swept(replace(config, trials=1)).trials) == 1


def test_the_command_prints_the_best_and_how_to_train_with_it(prepared: Prepared, tmp_path: Path) -> None:
    out = tmp_path / "a sweep? #1"
    arguments = ("sweep", prepared.folder, "--model", "item-knn", "--space", space_file(tmp_path, COUNTING))
    arguments = (*arguments, "--trials", 12, "--seed", 4, "--out", out)
    code, output, error = run_recsys(*arguments)
    assert code == 0, error
    rows = sorted(rows_of(out), key=lambda row: -float(row["ndcg@10"]))
    assert "best of 12 trials, 0 failed" in output
    for row in rows[:3]:
        assert f"{float(row['ndcg@10']):.4f}" in output
    assert error.count("validation ndcg@10") == 12
    command = shlex.split(output.splitlines()[-1])
    assert command[:2] == ["recsys", "train"]
    command[command.index("--out") + 1] = str(tmp_path / "run")
    assert run_recsys(*command[1:], "--no-tracking")[0] == 0
    assert open_run(tmp_path / "run").config["model"]["decay"] == float(rows[0]["model.decay"])
    code, output, _ = run_recsys(*arguments, "--json")
    found = json.loads(output)
    assert [trial["number"] for trial in found["best_trials"]] == [int(row["number"]) for row in rows[:10]]
    assert (found["out"], found["counts"]["trials"]) == (str(out), 12)


def test_the_table_shows_ten_trials(undisturbed: Sweep) -> None:
    many = [replace(undisturbed.trials[0], number=number, value=number / 100) for number in range(13)]
    table = best_table(replace(undisturbed, trials=many))
    assert [str(cell) for cell in table.columns[0].cells] == [str(number) for number in range(12, 2, -1)]


def test_a_missing_optuna_says_what_to_install(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pipelines.sweep", "pipelines.trials"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, error = run_recsys("sweep", prepared.folder, "--model", "item-knn", "--out", tmp_path / "sweep")
    assert (code, error) == (1, "error: this command needs optuna; install it with pip install 'recsys[hpo]'.\n")
