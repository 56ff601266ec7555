"""`recsys train`: settings, runs on disk, and what MLflow is told."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import random_rows, write_dataset
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from tiny import tiny_prepared
from training import SMALL, epochs, trained

from models.markov import Markov, MarkovConfig
from pipelines.loading import run_model
from pipelines.plan import TrainConfig, make_plan
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.settings import deep_merged, parse_setting
from pipelines.train import train, training_windows
from recsys.errors import ConfigError, DataError
from recsys.evaluation import mean_metrics, rank_cases
from recsys.losses import LossConfig
from recsys.prepared import Prepared
from recsys.ranking import RetrieverScorer
from recsys.runs import open_run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """37 users, 31 items, leave-one-out: five batches of eight windows an epoch, the last of five."""
    return tiny_prepared(tmp_path_factory.mktemp("data"))


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
        "temperature": 1.0,
        "input_norm": False,
        "items": "table",
        "text_encoder": None,
        "text_revision": None,
        "text_pooling": "mean",
        "text_width": 384,
        "text_components": 0,
        "text_control": "none",
        "id_dropout": 0.1,
        "half_trusted": 10.0,
        "cosine": False,
        "likeness": 0.0,
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
        (("training.epochs=0",), "training.epochs=0 keeps weights as they come, and these would be random"),
        (
            ("training.event_dropout=0.2",),
            "train sasrec: .* last learned positions would never be trained; set model.positions to rotary or none",
        ),
        (
            ("training.event_dropout=0.2", "model.positions=none", "model.loss.kind=bce"),
            "train sasrec: .*kind=bce would take them for items that the user does not know; choose another loss",
        ),
        (("training.windows=newest",), "training of sasrec: windows='newest' is not usable"),
        (("training.windows=last", "training.window_stride=2"), "kind=last has one window, so stride=2 has no meaning"),
        (("training.window_stride=7",), "stride=7 would leave out events between windows of 7; choose at most 6"),
        (("training.session_gap=-1",), r"session_gap=-1.0 must be at least 0"),
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


def test_a_run_of_an_earlier_version_may_be_begun_with(tmp_path: Path) -> None:
    """Its config names no setting that came later: what it lacks is what the default does."""
    data = tiny_prepared(tmp_path)
    run = trained(data, tmp_path / "first")
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    for later in ("text_pooling", "text_components", "id_dropout", "half_trusted"):
        del config["model"][later]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    begun = trained(data, tmp_path / "second", "training.epochs=0", init=run.folder)
    first, second = (load_file(folder / "model.safetensors") for folder in (run.folder, begun.folder))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_windows_are_cut_as_training_says(tmp_path: Path) -> None:
    """The newest window alone and short sessions teach less; a stride teaches the same events with more context."""
    dataset = write_dataset(tmp_path / "dataset", random_rows(0, 12, 9, 300))
    timed = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared"))
    counts = {}
    for setting in ("windows=sliding", "windows=last", "window_stride=2", "session_gap=0.2"):
        settings = (*SMALL, f"training.{setting}")
        plan = make_plan(TrainConfig(data=timed.folder, model="sasrec", out=tmp_path / "run", settings=settings))
        windows = training_windows(plan, plan.model.model_class(plan.model.values))
        first = windows.starts if windows.taught_from is None else windows.taught_from
        counts[setting] = (len(windows), int((windows.stops - np.maximum(first, windows.starts + 1)).sum()))
    default = counts["windows=sliding"]
    assert counts["windows=last"][0] == 12
    assert counts["windows=last"][1] < default[1]
    assert counts["window_stride=2"][0] > default[0]
    assert counts["window_stride=2"][1] == default[1] == 240 - 12
    assert counts["session_gap=0.2"][1] < default[1]
    run = trained(timed, tmp_path / "run", "training.window_stride=2", "training.epochs=1")
    assert run.manifest["counts"]["windows"] == counts["window_stride=2"][0]


def test_sessions_need_times(tmp_path: Path) -> None:
    rows = [(user, item, place) for user in "uvw" for place, item in enumerate("abcd")]
    dataset = write_dataset(tmp_path / "dataset", rows, time="order")
    ordered = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared", split="last-item"))
    with pytest.raises(DataError, match=r"training.session_gap=5.0 needs times, and .* only knows the order of events"):
        trained(ordered, tmp_path / "run", "training.session_gap=5")
