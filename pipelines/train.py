"""`recsys train`: prepared data and a model's name become a run: weights, figures by epoch, an MLflow entry."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from models.registry import ModelConfig, build_config, preset
from pipelines.loading import (
    data_config,
    language,
    sentences,
    start_from,
    stored_config,
    text_encoder,
    text_features,
    text_network,
)
from pipelines.reporter import Reporter
from pipelines.settings import merge, parse_setting, read_yaml
from pipelines.validation import validation, watched_metric
from recsys.batches import TrainingWindows
from recsys.contracts import CountingModel, SentenceReader, TextReader
from recsys.errors import ConfigError, DataError
from recsys.item_categories import item_categories
from recsys.memory import keep_freed_memory
from recsys.prepared import Prepared, open_prepared
from recsys.pretrained import Pretrained
from recsys.runs import CONFIG, EPOCHS, WEIGHTS, Run, open_run
from recsys.splits import FitOn, TrainingEvents
from recsys.steps import Step, git_commit, partial_folder, writing_step
from recsys.text_vectors import SentenceEncoder
from recsys.tracking import MLflowTracker, NoTracker, Tracker
from recsys.training import Trainer, TrainingConfig, make_accelerator

MLFLOW_RUN = "mlflow_run_id"
SCRATCH = ("checkpoints", ".tracking")
SAME_AT_THE_START = (
    "num_heads",
    "norm",
    "activation",
    "gated",
    "positions",
    "recency",
    "attention_window",
    "pooling",
    "text_encoder",
    "text_revision",
    "items",
    "backbone",
)
"""Settings without which weights of the right shapes mean something else."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `recsys train`; `settings` are texts `section.key=value`, which win over file and preset.

    `refit`: a finished run of the same model, trained anew with its settings on training and validation events, for
    as many epochs as were best; what ships should know the latest events. `init`: a finished run whose weights this
    one begins with, perhaps of other data.
    """

    data: Path
    model: str
    out: Path
    refit: Path | None = None
    init: Path | None = None
    preset: str | None = None
    config_file: Path | None = None
    settings: tuple[str, ...] = ()
    seed: int = 0
    tracking: bool = True
    restart: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training with every setting resolved."""

    prepared: Prepared
    model: ModelConfig
    training: TrainingConfig
    seed: int
    stop_after: int | None = None
    fit_on: FitOn = "train"
    selected: dict[str, float] = field(default_factory=dict)
    encoder: SentenceEncoder | None = None
    network: Pretrained | None = None
    start: Run | None = None

    @property
    def events(self) -> TrainingEvents:
        """What may be learned from."""
        return self.prepared.training_events(self.fit_on)

    def as_dict(self) -> dict[str, Any]:
        """The config as resolved: what the run's `config.yaml` holds."""
        sections = {
            "name": self.model.name,
            "data": self.prepared.fingerprint,
            "fit_on": self.fit_on,
            "seed": self.seed,
            "stop_after": self.stop_after,
            "model": self.model.as_dict(),
        }
        if text := self.encoder or self.network:
            sections["text_encoder"] = text.identity
        if self.start is not None:
            sections["init"] = str(self.start.folder.resolve())
            sections["init_weights"] = self.start.manifest["files"][WEIGHTS]
        return sections | ({"training": asdict(self.training)} if self.by_gradient else {})

    @property
    def by_gradient(self) -> bool:
        """False for counting models."""
        return issubclass(self.model.model_class, torch.nn.Module)


def train(config: TrainConfig, reporter: Reporter) -> Run | None:
    """Trains and writes a run; an interrupted one goes on from its last checkpoint.

    Under `torchrun` only the first process writes, and the others return None.
    """
    plan = make_plan(config)
    if int(os.environ.get("RANK", "0")) > 0:
        fit_by_gradient(plan, partial_folder(config.out), NoTracker(), Reporter(quiet=True))
        return None
    with writing_step(
        "train",
        config.out,
        config=plan.as_dict(),
        inputs=[path for path in (config.data, config.refit, config.init) if path is not None],
        seed=plan.seed,
        overwrite=config.overwrite,
        keep_partial=True,
        scratch=SCRATCH,
    ) as step:
        begin_or_continue(step.folder, plan, restart=config.restart)
        if plan.by_gradient:
            train_by_gradient(step, plan, config.tracking, reporter)
        else:
            train_by_counting(step, plan)
    return open_run(config.out)


def make_plan(config: TrainConfig) -> Plan:
    """Preset, then the config file, then single settings, the later wins; or all from the run to refit.

    Every setting is checked here, before anything is written.
    """
    prepared = open_prepared(config.data)
    if config.refit is not None:
        return refit_plan(config, open_run(config.refit), prepared)
    sections = preset(config.model, config.preset)
    known = set(sections)
    if config.config_file is not None:
        merge(sections, read_yaml(config.config_file), str(config.config_file), known)
    for setting in config.settings:
        merge(sections, parse_setting(setting), f"--set {setting}", known)
    model = data_config(config.model, sections["model"], prepared)
    if getattr(model.values, "time_buckets", 0) and prepared.time == "order":
        raise DataError(
            f"train {config.model}: model.time_buckets needs times, and {prepared.folder} only knows the order of "
            "events; set model.time_buckets=0 or ingest a log with timestamps."
        )
    training = build_config(TrainingConfig, sections.get("training", {}), f"training of {config.model}")
    if training.event_dropout:
        check_event_dropout(model)
    if training.epochs == 0 and config.init is None and not model.reads_sentences:
        raise ConfigError(
            f"train {model.name}: training.epochs=0 keeps weights as they come, and these would be random; give "
            "--init, or train at least one epoch."
        )
    if training.averaging and model.reads_sentences:
        raise ConfigError(
            f"train {model.name}: training.averaging={training.averaging} averages weights but not the item matrix "
            "made of them; set training.averaging=0."
        )
    return Plan(
        prepared=prepared,
        model=model,
        training=training,
        seed=config.seed,
        encoder=text_encoder(model, prepared),
        network=text_network(model, prepared),
        start=None if config.init is None else checked_start(open_run(config.init), model),
    )


def check_event_dropout(model: ModelConfig) -> None:
    """Refuses settings that windows with gaps would mislead."""
    if getattr(model.values, "positions", None) == "learned":
        raise ConfigError(
            f"train {model.name}: training.event_dropout shortens windows, so the last learned positions would "
            "never be trained; set model.positions to rotary or none, or training.event_dropout=0."
        )
    if (loss := getattr(model.values, "loss", None)) is not None and loss.kind == "bce":
        raise ConfigError(
            f"train {model.name}: training.event_dropout hides events, and model.loss.kind=bce would take them for "
            "items that the user does not know; choose another loss, or training.event_dropout=0."
        )


def refit_plan(config: TrainConfig, run: Run, prepared: Prepared) -> Plan:
    """The run's own settings, seed and schedule up to its best epoch, on everything before the test part."""
    if config.preset or config.config_file or config.settings or config.init:
        raise ConfigError(
            f"train: --refit takes every setting from {run.folder}; drop --preset, --config, --set and --init."
        )
    if run.model != config.model or run.prepared().fingerprint != prepared.fingerprint or run.fit_on != "train":
        raise DataError(
            f"train: {run.folder} is a {run.model!r} run on {run.fit_on} of {run.prepared().folder}; --refit needs a "
            f"{config.model!r} run on train of {prepared.folder}."
        )
    counts, model = run.manifest["counts"], stored_config(run, prepared)
    return Plan(
        prepared=prepared,
        model=model,
        encoder=text_encoder(model, prepared),
        network=text_network(model, prepared),
        start=started_from(run),
        training=build_config(TrainingConfig, run.config.get("training", {}), "training"),
        seed=run.config["seed"],
        stop_after=counts.get("best_epoch"),
        fit_on="train+validation",
        selected={key: value for key, value in counts.items() if key.startswith("best_")},
    )


def checked_start(start: Run, model: ModelConfig) -> Run:
    """The run to begin with, refused where its weights would mean something else here."""
    if start.model != model.name or not issubclass(model.model_class, torch.nn.Module):
        raise ConfigError(
            f"train --init {start.folder}: is a run of {start.model!r}, and {model.name!r} is trained; weights go from "
            "a model trained by gradient to the same one."
        )
    for name in SAME_AT_THE_START:
        here, there = getattr(model.values, name, None), start.config["model"].get(name)
        if here != there:
            raise ConfigError(
                f"train --init {start.folder}: model.{name} is {there} there and {here} here; the same weights would "
                f"compute something else. Give --set model.{name}={there}."
            )
    return start


def started_from(run: Run) -> Run | None:
    """The run whose weights this one began with, checked to be as it was."""
    if "init" not in run.config:
        return None
    start = open_run(Path(run.config["init"]))
    if start.manifest["files"][WEIGHTS] != run.config["init_weights"]:
        raise DataError(f"train --refit {run.folder}: {start.folder}, which it began with, has other weights since.")
    return start


def begin_or_continue(folder: Path, plan: Plan, *, restart: bool) -> None:
    """Leaves `folder` holding this plan's config: fresh, or of an interrupted run with the same one."""
    config = yaml.safe_dump(plan.as_dict(), sort_keys=False)
    path = folder / CONFIG
    if path.exists() and (restart or path.read_text(encoding="utf-8") != config):
        if not restart:
            raise DataError(
                f"train: {folder} holds an interrupted run with other settings or data; pass --restart to discard it, "
                "or choose another --out."
            )
        shutil.rmtree(folder)
        folder.mkdir()
    path.write_text(config, encoding="utf-8")


def train_by_counting(step: Step, plan: Plan) -> None:
    """One pass over the training events."""
    model: CountingModel = plan.model.model_class.fit(plan.model.values, plan.events, plan.prepared.items)
    save_arrays(model.arrays(), step.folder / WEIGHTS)
    step.counts["train_events"] = int(plan.events.stops.sum())


def train_by_gradient(step: Step, plan: Plan, tracking: bool, reporter: Reporter) -> None:
    """Epochs with early stopping; weights of the best one."""
    tracker = open_tracker(step.folder, plan) if tracking else NoTracker()
    try:
        trainer = fit_by_gradient(plan, step.folder, tracker, reporter)
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")
    save_file({name: value.contiguous() for name, value in trainer.best.items()}, step.folder / WEIGHTS)
    epochs = trainer.progress.epochs
    (step.folder / EPOCHS).write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs), encoding="utf-8")
    step.counts.update({
        "parameters": sum(weight.numel() for weight in trainer.model.parameters()),
        "windows": len(trainer.windows),
        "epochs": trainer.progress.epoch,
        **(
            plan.selected
            or {
                "best_epoch": trainer.progress.best_epoch,
                f"best_validation_{watched_metric(plan.model)}": trainer.progress.best_metric,
            }
        ),
        "training_seconds": round(trainer.progress.seconds, 3),
        MLFLOW_RUN: tracker.run_id,
    })


def fit_by_gradient(plan: Plan, folder: Path, tracker: Tracker, reporter: Reporter) -> Trainer:
    """The trained model in its `Trainer`; every process of a distributed run comes here."""
    keep_freed_memory()
    torch.manual_seed(plan.seed)
    model = plan.model.model_class(plan.model.values)
    model.learn_popularity(plan.events.item_counts())
    if plan.model.ranks:
        model.learn_categories(torch.from_numpy(item_categories(plan.prepared.items, plan.model.values.category)))
    if plan.encoder is not None:
        reader: TextReader = model
        with make_accelerator(plan.training).main_process_first():  # the others find its vectors in the store
            reader.learn_texts(text_features(plan.prepared, plan.encoder, plan.model.values.text_width, reporter))
    if plan.start is not None:
        start_from(model, plan.start, plan.prepared)
    if plan.network is not None:
        begin_with_language(model, plan, plan.network)
    windows = TrainingWindows.cut(plan.events.stops, model.window)
    trainer = Trainer(model, plan.prepared.store, windows, plan.training, plan.seed, folder, tracker)
    if trainer.resume():
        reporter.say(f"train {plan.model.name}: going on after epoch {trainer.progress.epoch}")
    epochs = plan.training.epochs if plan.stop_after is None else plan.stop_after
    watched = watched_metric(plan.model)
    with reporter.task(f"train {plan.model.name}", epochs * trainer.batches_per_epoch) as advance:
        advance(trainer.progress.step)

        def on_epoch(figures: dict[str, float]) -> None:
            quality = f" {watched} {figures[watched]:.4f}" if watched in figures else ""
            advance(0, f"epoch {int(figures['epoch'])} loss {figures['loss']:.4f}{quality}")

        most = plan.training.validation_cases
        validate = validation(plan.model, plan.prepared, trainer, most) if plan.fit_on == "train" else None
        judged = plan.start is not None or plan.training.epochs == 0
        trainer.fit(validate, watched, on_epoch, lambda: advance(1), plan.stop_after, judge_start=judged)
    return trainer


def begin_with_language(model: SentenceReader, plan: Plan, network: Pretrained) -> None:
    """Tokens of the items, and where no run is to start from, the pretrained network."""
    model.learn_sentences(sentences(plan.model, plan.prepared, network), network.special_tokens)
    if plan.start is None:
        model.learn_network(language(network))


def open_tracker(folder: Path, plan: Plan) -> MLflowTracker:
    """The MLflow run of this training; the one it began with when it goes on."""
    remembered = folder / ".tracking" / MLFLOW_RUN
    remembered.parent.mkdir(exist_ok=True)
    run_id = remembered.read_text(encoding="utf-8") if remembered.exists() else None
    sections = plan.as_dict()
    params = {
        f"{section}.{key}": value for section in ("model", "training") for key, value in sections[section].items()
    }
    tags = {"data": plan.prepared.fingerprint, "commit": git_commit() or "", "model": plan.model.name}
    tracker = MLflowTracker(plan.model.name, {**params, "seed": plan.seed}, tags, run_id)
    remembered.write_text(tracker.run_id, encoding="utf-8")
    return tracker
