"""`recsys sweep`: spaces, trials that survive a kill, what is kept of them, and that the test part stays unread."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import run_recsys
from safetensors.torch import load_file
from tiny import tiny_prepared

from models.registry import preset
from pipelines.reporter import Reporter
from pipelines.search import SweepConfig
from pipelines.space import Choices, Range, Space, read_space, resolved
from pipelines.sweep import locked, sweep
from pipelines.sweep_results import Sweep, best_table
from pipelines.train import TrainConfig, train
from pipelines.trials import Figures, Trial, open_trials
from recsys import checkpoints
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared, open_prepared
from recsys.runs import open_run

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NETWORK: dict[str, Any] = {
    "fixed": {
        "model.max_len": 6,
        "model.embedding_dim": 8,
        "model.ffn_dim": 12,
        "model.loss.negatives": 4,
        "training.epochs": 2,
        "training.batch_size": 16,
        "training.warmup_steps": 2,
    },
    "model.dropout": {"low": 0.0, "high": 0.5},
    "model.num_blocks": {"low": 0, "high": 1},
    "model.loss.kind": ["softmax", "sampled-softmax"],
    "training.learning_rate": {"low": 0.002, "high": 0.05, "log": True},
}
COUNTING: dict[str, Any] = {"model.decay": {"low": 0.1, "high": 1.0}, "model.neighbours": [5, 10, 20]}
EPOCHS_OF_TWO_TRIALS = 4
FILES_OF_A_CHECKPOINT = 4
KILLED_IN_THE_SECOND_EPOCH_OF_THE_SECOND_TRIAL = f"""
import os, runpy, signal
from recsys import checkpoints

saved = 0

def dying(*arguments):
    global saved
    saved += 1
    if saved == {FILES_OF_A_CHECKPOINT * (EPOCHS_OF_TWO_TRIALS - 1) + 1}:
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(*arguments)

save_file, checkpoints.save_file = checkpoints.save_file, dying
runpy.run_module("pipelines.cli", run_name="__main__")
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """37 users, 31 items, leave-one-out."""
    return tiny_prepared(tmp_path_factory.mktemp("data"))


def space_file(folder: Path, content: Mapping[str, Any] | str) -> Path:
    """The space as a file."""
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def config_of(prepared: Prepared, folder: Path, content: Mapping[str, Any] | str, **options: Any) -> SweepConfig:
    """Of a sweep into `folder`/sweep: SASRec for the network's space, item-KNN otherwise."""
    model = "sasrec" if isinstance(content, dict) and "fixed" in content else "item-knn"
    given = {"model": model, "out": folder / "sweep", "space": space_file(folder, content), "trials": 3} | options
    return SweepConfig(data=prepared.folder, **given)


def swept(config: SweepConfig) -> Sweep:
    """Without progress."""
    return sweep(config, Reporter(quiet=True))


def outcomes(trials: Sweep) -> list[Trial]:
    """Every trial but the time it took."""
    return [replace(trial, seconds=0.0) for trial in trials.trials]


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The table of trials on disk."""
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


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


def make(folder: Path) -> Path:
    """A folder that may be there already."""
    folder.mkdir(exist_ok=True)
    return folder


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model.dropuot": [0.1]}, r"space.yaml: no setting 'model.dropuot' \(did you mean 'model.dropout'\?\)"),
        ({"optimizer.rate": [0.1]}, "space.yaml: no setting 'optimizer.rate'"),
        ({"model.loss.knd": ["softmax"]}, r"no setting 'model.loss.knd' \(did you mean 'model.loss.kind'\?\)"),
        ({"model.loss": ["softmax"]}, "no setting 'model.loss'"),
        ({"model.num_items": [5]}, "no setting 'model.num_items'"),
        ({"model.loss.kind": ["softmax", "hinge"]}, "model.loss.kind=hinge cannot be used: .*'hinge' is not usable"),
        ({"dropout": [0.1]}, "'dropout' is no setting; expected section.key"),
        ({"model.dropout": 0.1}, "model.dropout: 0.1 is neither a list of choices nor a range"),
        ({"model.dropout": {"low": 0.1}}, r"model.dropout: \{'low': 0.1\} is neither"),
        ({"model.dropout": {"low": 0.5, "high": 0.1}}, "model.dropout: low=0.5 must be below high=0.1"),
        ({"model.dropout": {"low": 0.5, "high": 1.5}}, r"model.dropout=1.5 cannot be used: .*must lie in \[0, 1\)"),
        ({"model.dropout": {"low": 0.0, "high": 0.5, "log": True}}, "logarithmic range cannot begin at low=0.0"),
        ({"model.dropout": {"low": 0.0, "high": 0.5, "step": 0.2}}, "step=0.2 must lead from low=0.0 to high=0.5"),
        ({"model.dropout": {"low": 0.1, "high": 0.5, "step": 0.1, "log": True}}, "step=0.1 has no meaning"),
        ({"model.dropout": {"low": 0.1, "high": 0.5, "base": 2}}, "model.dropout: range: no setting 'base'"),
        ({"model.dropout": {"low": "little", "high": 0.5}}, "low='little' must be a number"),
        ({"model.dropout": {"low": False, "high": 0.5}}, "low=False must be a number"),
        ({"model.num_blocks": {"low": 1.0, "high": 3.0}}, r"num_blocks=2.2\d* cannot be used: .*valid integer"),
        ({"model.dropout": []}, "choices must be single values, at least one"),
        ({"model.dropout": [0.1, 0.1]}, r"a choice stands twice in \[0.1, 0.1\]"),
        ({"model.loss": [{"kind": "gbce"}]}, "choices must be single values, .* not {'kind': 'gbce'}"),
        ({"fixed": {"training.epochs": 2}}, "names no setting to search"),
        ({"fixed": [1], "model.dropout": [0.1]}, r"'fixed' must map settings to values, not \[1\]"),
        ({"fixed": {"model.loss.knd": 2}, "model.norm": ["pre"]}, "no setting 'model.loss.knd'"),
        ({"fixed": {"model.dropout": 2}, "model.norm": ["pre"]}, "dropout=2.0 must lie in"),
        ({"fixed": {"model.dropout": 0.1}, "model.dropout": [0.1]}, "model.dropout is both searched and fixed"),
        ("- model.dropout", "must hold sections .* not a list"),
        ("model.dropout: [0.1", "not valid YAML"),
    ],
)
def test_unusable_spaces_are_refused_before_anything_is_written(
    prepared: Prepared, tmp_path: Path, content: Any, message: str
) -> None:
    config = config_of(prepared, tmp_path, content, model="sasrec")
    with pytest.raises(ConfigError, match=message):
        swept(config)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ("model.decay=0.5",)}, "--set model.decay=?.* fixes what .*space.yaml searches"),
        ({"settings": ("model.dacay=0.5",)}, "no setting 'dacay'"),
        ({"model": "markov", "space": None}, "no search space comes with 'markov'; write one"),
        ({"model": "markof"}, "no model 'markof'"),
        ({"trials": 0}, "--trials 0 .* must be above 0"),
        ({"seconds": 0.0}, "--seconds 0.0 must be above 0"),
        ({"space": Path("nowhere.yaml")}, "nowhere.yaml: no such config file"),
    ],
)
def test_unusable_options_are_refused(
    prepared: Prepared, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        swept(config_of(prepared, tmp_path, COUNTING, **options))
    assert not (tmp_path / "sweep").exists()


def test_values_that_suit_only_some_of_the_others_are_allowed(prepared: Prepared) -> None:
    """Three heads cannot share the preset's 64 numbers, but the 48 that are searched with them."""
    base = resolved("sasrec", preset("sasrec"), prepared.catalog.num_items)
    width, heads = Choices((48, 64)), Choices((3, 4))
    both = Space(source="both", searched={"model.embedding_dim": width, "model.num_heads": heads})
    both.check("sasrec", base, prepared.catalog.num_items)
    with pytest.raises(ConfigError, match=r"alone: model.num_heads=3 cannot be used: .*embedding_dim=64"):
        Space(source="alone", searched={"model.num_heads": heads}).check("sasrec", base, prepared.catalog.num_items)


def test_single_settings_win_over_fixed_ones_and_those_over_the_file(prepared: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {max_len: 3, neighbours: 3}", encoding="utf-8")
    space = {"fixed": {"model.max_len": 5, "model.neighbours": 5}, "model.decay": [0.5]}
    options = {"model": "item-knn", "config_file": file, "settings": ("model.neighbours=7",), "trials": 1}
    result = swept(config_of(prepared, tmp_path, space, **options))
    assert yaml.safe_load((result.config.out / "best.yaml").read_text()) == {
        "model": {"max_len": 5, "neighbours": 7, "decay": 0.5}
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, r"\(seed was 0, is 1\)"),
        ({"keep_runs": True}, r"\(keep_runs was False, is True\)"),
        ({"settings": ("model.max_len=7",)}, r"\(settings.model.max_len was 20, is 7\)"),
        (
            {"space": {**COUNTING, "model.neighbours": [5, 10]}},
            r"space.model.neighbours was \[5, 10, 20\], is \[5, 10\]",
        ),
        ({"space": {**COUNTING, "model.max_len": [5, 10]}}, r"space.model.max_len was absent, is \[5, 10\]"),
        ({"space": {**COUNTING, "model.decay": {"low": 0.2, "high": 1.0}}}, "space.model.decay.low was 0.1, is 0.2"),
        ({"model": "popularity", "space": {"model.share": [0.1]}}, "model was item-knn, is popularity"),
        ({"data": 20}, r"\(data was \w+, is \w+\)"),
    ],
)
def test_another_search_does_not_go_on_in_the_same_folder(
    counted: Sweep, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = counted.config.out
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    if "space" in options:
        options |= {"space": space_file(tmp_path, options["space"])}
    if "data" in options:
        options |= {"data": tiny_prepared(tmp_path, num_users=options["data"]).folder}
    with pytest.raises(DataError, match=f"sweep holds a sweep of another search .*{message}.* or choose another --out"):
        swept(replace(counted.config, trials=5, **options))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_the_order_of_a_space_has_no_effect(prepared: Prepared, counted: Sweep, tmp_path: Path) -> None:
    turned = yaml.safe_dump(dict(reversed(COUNTING.items())), sort_keys=False)
    assert list(COUNTING) == sorted(COUNTING)
    assert outcomes(swept(config_of(prepared, tmp_path, turned, trials=2))) == outcomes(counted)[:2]


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


def suggested(folder: Path, searched: Mapping[str, Range | Choices], pieces: Sequence[int]) -> list[Trial]:
    """Trials whose value is how near `model.near` comes to 0.7; the storage is opened anew for each piece."""
    for number in pieces:
        with open_trials(folder, Space(source="test", searched=searched)) as trials:
            for _ in range(number):
                trial = trials.suggest(seed=3)
                value = 1 - abs(trial.params["model.near"] - 0.7)
                trials.complete(trial, Figures(value=value, best_epoch=1, seconds=1.0, by_epoch=[value]))
            done = trials.all()
    return done


def test_suggestions_learn_from_the_trials_before(tmp_path: Path) -> None:
    """They come closer to the best value than the first ten, and stay in their ranges and types."""
    searched = {
        "model.kind": Choices(("a", None, True, 1.5)),
        "model.near": Range(low=0.0, high=1.0),
        "model.rate": Range(low=1e-4, high=1e-2, log=True),
        "model.stepped": Range(low=0.1, high=0.5, step=0.2),
        "model.whole": Range(low=2, high=8, step=3),
    }
    whole = suggested(make(tmp_path / "whole"), searched, (16,))
    assert suggested(make(tmp_path / "pieces"), searched, (7, 9)) == whole
    misses = [abs(trial.params["model.near"] - 0.7) for trial in whole]
    assert np.mean(misses[10:]) < 0.6 * np.mean(misses[:10])
    assert [trial.number for trial in whole] == list(range(16))
    assert {trial.epochs for trial in whole} == {1}
    for trial in whole:
        assert list(trial.params) == sorted(searched)
        assert trial.params["model.kind"] in searched["model.kind"].examples()
        assert 1e-4 <= trial.params["model.rate"] <= 1e-2
        assert min(abs(trial.params["model.stepped"] - value) for value in (0.1, 0.3, 0.5)) < 1e-9
        assert trial.params["model.whole"] in {2, 5, 8}
        assert isinstance(trial.params["model.whole"], int)


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


@pytest.mark.parametrize(
    "model",
    [entry.name.removesuffix(".yaml") for entry in files("models.sweeps").iterdir() if entry.name[-5:] == ".yaml"],
)
def test_the_spaces_that_come_along_fit_their_models(model: str) -> None:
    space = read_space(None, model)
    base = resolved(model, preset(model), num_items=12_101)
    space.check(model, base, num_items=12_101)
    assert {"model.dropout", "model.loss.kind", "training.learning_rate"} <= space.searched.keys()
