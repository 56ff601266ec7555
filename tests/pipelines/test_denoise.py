"""`recsys denoise`: views that any model trains on, and a dataset that stays as it is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command_line import run_recsys
from noisy_logs import NUM_ITEMS, NoisyLog, cluster_of, clustered_log, write_log
from tiny import tiny_bert
from tiny_llm import tiny_llama
from training import cut_at, run_of, trained

from models.noise_critic import NoiseCritic, NoiseCriticConfig
from models.noise_llm import NoiseLlm, NoiseLlmConfig
from pipelines import noise_detectors
from pipelines.denoise import CORRECTIONS, DenoiseConfig, denoise
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from recsys.corrections import Limits
from recsys.errors import ConfigError, DataError
from recsys.noise import OutlierDetector
from recsys.schema import Dataset
from recsys.training import Trainer, TrainingConfig

QUIET = Reporter(quiet=True)
LIMITS = Limits(max_corrections=4, max_share=0.5, protect_last=0)
CRITIC = NoiseCriticConfig(num_items=NUM_ITEMS, max_len=9, embedding_dim=8, ffn_dim=8)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of the test's own, and a short training."""
    monkeypatch.setenv("RECSYS_NOISE", str(tmp_path / "noise"))
    monkeypatch.setenv("RECSYS_TEXT_VECTORS", str(tmp_path / "vectors.sqlite"))
    monkeypatch.setattr(noise_detectors, "CRITIC_TRAINING", TrainingConfig(epochs=2, batch_size=32, device="cpu"))


@pytest.fixture
def log() -> NoisyLog:
    """Ten events a user: leave-one-out leaves eight to train on."""
    return clustered_log(120, length=10)


def view_of(folder: Path, log: NoisyLog, out: str = "view", **settings: Any) -> Dataset:
    """The log's view by the cheapest detector without texts, where nothing else is said."""
    dataset = folder / "dataset"
    if not dataset.exists():
        write_log(dataset, log.seen)
    options: dict[str, Any] = {
        "detector": "outlier",
        "action": "replace",
        "texts": False,
        "split": "last-item",
        "limits": LIMITS,
        "window": 9,
    }
    return denoise(DenoiseConfig(dataset=dataset, out=folder / out, **(options | settings)), QUIET)


def rows(dataset: Dataset) -> np.ndarray:
    """Item rows [U, L] of users with the same number of events."""
    items = dataset.events()["item_id"].str.slice(1).cast(pl.Int64).to_numpy()
    return items.reshape(dataset.events()["user_id"].n_unique(), -1)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_noise_is_replaced_and_truth_is_left(tmp_path: Path, log: NoisyLog) -> None:
    write_log(tmp_path / "dataset", log.seen)
    before = content(tmp_path / "dataset")
    view = view_of(tmp_path, log)
    after, seen, noisy = rows(view), np.array(log.seen), np.array(log.noisy)
    assert content(tmp_path / "dataset") == before
    assert (
        view
        .events()
        .drop("item_id")
        .equals(Dataset(folder=tmp_path / "dataset", time="timestamp", manifest={}).events().drop("item_id"))
    )
    assert (after[:, 8:] == seen[:, 8:]).all()
    changed = (after != seen)[:, :8]
    assert changed.sum() == view.manifest["counts"]["corrected"] > 20
    assert noisy[:, :8][changed].mean() > 0.7  # the precision that is promised
    assert changed[noisy[:, :8]].mean() > 0.8
    own = np.array([cluster_of(history[0]) for history in log.clean])[:, None]
    fitting = np.vectorize(cluster_of)(after[:, :8]) == own
    assert fitting[changed].mean() > 0.9
    table = pl.read_parquet(view.folder / CORRECTIONS)
    assert table.columns == ["user_id", "timestamp", "item_id", "replacement", "probability"]
    assert len(table) == changed.sum()
    assert (table["probability"] >= view.manifest["counts"]["threshold"]).all()


def test_what_is_dropped_is_what_would_be_replaced(tmp_path: Path, log: NoisyLog) -> None:
    replaced = pl.read_parquet(view_of(tmp_path, log).folder / CORRECTIONS)
    dropped = view_of(tmp_path, log, "dropped", action="drop")
    table = pl.read_parquet(dropped.folder / CORRECTIONS)
    assert table.drop("replacement").equals(replaced.drop("replacement"))
    assert table["replacement"].null_count() == len(table)
    assert len(dropped.events()) == 1200 - len(table)
    assert dropped.events().join(table, on=["user_id", "timestamp"], how="inner").is_empty()


def test_weights_are_what_is_left_and_models_learn_by_them(tmp_path: Path, log: NoisyLog) -> None:
    view = view_of(tmp_path, log, action="weight")
    weights = view.events()["weight"].to_numpy().reshape(-1, 10)
    assert (rows(view) == np.array(log.seen)).all()
    assert (weights[:, 8:] == 1).all()
    noisy = np.array(log.noisy)[:, :8]
    assert weights[:, :8][noisy].mean() < 0.3
    assert weights[:, :8][~noisy].mean() > 0.9
    prepared = prepare(PrepareConfig(dataset=view.folder, out=tmp_path / "prepared", split="last-item"))
    assert prepared.store.weight is not None
    np.testing.assert_array_equal(prepared.store.weight, weights.ravel())
    for model in ("sasrec", "bert4rec"):
        trained(prepared, tmp_path / model, model=model)
    with pytest.raises(DataError, match=r"train recformer: the events of .* have weights .* would count them alike"):
        run_of(prepared, tmp_path / "recformer", "recformer")


@pytest.mark.parametrize(
    "settings", [{"limits": replace(LIMITS, max_corrections=0)}, {"precision": 1.0, "noise_rate": 0.001}]
)
def test_without_permission_or_certainty_nothing_changes(
    tmp_path: Path, log: NoisyLog, settings: dict[str, Any]
) -> None:
    view = view_of(tmp_path, log, **settings)
    assert view.manifest["counts"]["corrected"] == 0
    assert rows(view).tolist() == log.seen
    before = content(tmp_path / "dataset")["events/part-00000.parquet"]
    assert content(view.folder)["events/part-00000.parquet"] == before


def test_a_second_run_judges_nothing_and_gives_the_same_files(
    tmp_path: Path, log: NoisyLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = view_of(tmp_path, log, detector="critic", critic=CRITIC, precision=0.3)

    def refuse(*_: object) -> None:
        raise AssertionError("judged or trained again")

    for owner, method in ((NoiseCritic, "naming"), (NoiseCritic, "__init__"), (OutlierDetector, "naming")):
        monkeypatch.setattr(owner, method, refuse)
    monkeypatch.setattr(Trainer, "fit", refuse)
    monkeypatch.setattr(noise_detectors, "fit_relations", refuse)
    second = view_of(tmp_path, log, "again", detector="critic", critic=CRITIC, precision=0.3)
    assert content(first.folder) == content(second.folder)
    assert first.manifest["files"] == second.manifest["files"]


@pytest.mark.parametrize(("owner", "method", "call"), [(Trainer, "step", 17), (NoiseCritic, "naming", 3)])
def test_a_killed_run_goes_on_to_the_same_files(
    tmp_path: Path, log: NoisyLog, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int
) -> None:
    monkeypatch.setenv("RECSYS_NOISE", str(tmp_path / "other"))
    whole = view_of(tmp_path, log, "whole", detector="critic", critic=CRITIC, precision=0.3)
    monkeypatch.setenv("RECSYS_NOISE", str(tmp_path / "noise"))
    with cut_at(owner, method, call):
        view_of(tmp_path, log, detector="critic", critic=CRITIC, precision=0.3)
    assert not (tmp_path / "view").exists()
    view = view_of(tmp_path, log, detector="critic", critic=CRITIC, precision=0.3)
    assert content(view.folder) == content(whole.folder)


def test_another_log_or_seed_is_judged_anew(tmp_path: Path, log: NoisyLog) -> None:
    first = view_of(tmp_path, log).manifest["counts"]["material"]
    assert view_of(tmp_path, log, "seeded", seed=1).manifest["counts"]["material"] != first
    (tmp_path / "other").mkdir()
    assert view_of(tmp_path / "other", clustered_log(120, 10, seed=3)).manifest["counts"]["material"] != first


def test_only_the_doubtful_reach_the_dearer_detector(tmp_path: Path, log: NoisyLog) -> None:
    judged = view_of(tmp_path, log, detector="critic", critic=CRITIC, doubtful=0.25).manifest["counts"][
        "judged_windows"
    ]
    assert judged["outlier"] == 120
    assert 0 < judged["critic"] < 60


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_language_model_judges_the_doubtful(tmp_path: Path, log: NoisyLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that is killed goes on; what was judged is judged no more."""
    llama = tiny_llama(tmp_path / "llama", ["river", "engine", "guitar", "carrot", "galaxy", "puppy", "number"])
    bert = str(tiny_bert(tmp_path / "bert", ["river", "engine"]))
    llm = NoiseLlmConfig(source=str(llama), length=9, epochs=1, windows=32, batch_size=8, micro_batches=2, rank=2)
    settings = {"detector": "llm", "llm": llm, "critic": CRITIC, "texts": True, "text_encoder": bert, "doubtful": 0.1}
    with cut_at(NoiseLlm, "loss", 5):
        view_of(tmp_path, log, **settings)
    view = view_of(tmp_path, log, **settings)
    counts = view.manifest["counts"]
    assert counts["judged_windows"]["critic"] == 120
    assert 0 < counts["judged_windows"]["llm"] < 40
    assert counts["language_model"] == llm.identity
    assert "prompt" in counts["language_model"]

    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(NoiseLlm, "__init__", refuse)
    assert content(view_of(tmp_path, log, "again", **settings).folder) == content(view.folder)


def test_the_command_says_what_it_did(tmp_path: Path, log: NoisyLog) -> None:
    write_log(tmp_path / "dataset", log.seen)
    arguments = ("--split", "last-item", "--detector", "outlier", "--no-texts", "--window", 9, "--json")
    code, output, _ = run_recsys("denoise", tmp_path / "dataset", "--out", tmp_path / "view", *arguments)
    manifest = json.loads(output)
    assert code == 0
    assert manifest["counts"]["action"] == "drop"
    assert {"threshold", "precision", "recall", "false_corrections", "material"} <= manifest["counts"].keys()
    assert manifest["config"]["precision"] == 0.7
    assert manifest["inputs"][0]["path"] == str(tmp_path / "dataset")
    code, _, error = run_recsys("denoise", tmp_path / "dataset", "--out", tmp_path / "view", *arguments)
    assert code == 1
    assert "view exists already" in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 2}, "denoise: window=2 must be at least 3"),
        ({"detector": "llm"}, "--detector llm and --llm MODEL belong together"),
        ({"doubtful": 0.5}, r"denoise: doubtful=0\.5 has no meaning for the cheapest detector; drop it"),
        ({"precision": 0.0}, r"denoise: precision=0\.0 must lie in \(0, 1\]"),
        ({"noise_rate": 1.5}, r"denoise: noise_rate=1\.5 must lie in \(0, 1\]"),
        ({"out": "dataset"}, "is or holds the dataset, which is never overwritten"),
        ({"out": "."}, "is or holds the dataset, which is never overwritten"),
    ],
)
def test_bad_settings_are_explained(tmp_path: Path, log: NoisyLog, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        view_of(tmp_path, log, **settings)
    assert not (tmp_path / "view").exists()


def test_data_that_cannot_be_judged_are_explained(tmp_path: Path, log: NoisyLog) -> None:
    write_log(tmp_path / "dataset", log.seen, titled=False)
    with pytest.raises(DataError, match="has no item text; ingest an item table with --items, or judge by co-occ"):
        view_of(tmp_path, log, texts=True)
    write_log(tmp_path / "short" / "dataset", [[1, 2, 3, 4]] * 5)
    with pytest.raises(DataError, match="has three training events; there is nothing to compare"):
        view_of(tmp_path / "short", log)
