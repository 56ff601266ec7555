"""What a training is to do: every setting resolved and checked before anything is written."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.registry import ModelConfig, build_config, preset
from pipelines.earlier_runs import checked_retriever, checked_start, checked_teacher, earlier_run
from pipelines.loading import data_config, stored_config, text_encoder, text_network
from pipelines.settings import merge, parse_setting, read_yaml
from recsys.batches import WindowShape
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared, open_prepared
from recsys.pretrained import Pretrained
from recsys.runs import WEIGHTS, Run, open_run
from recsys.splits import FitOn, TrainingEvents
from recsys.text_vectors import TextEncoder
from recsys.training import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `recsys train`; `settings` are texts `section.key=value`, which win over file and preset.

    `refit`: a finished run of the same model, trained anew with its settings on training and validation events, for
    as many epochs as were best; what ships should know the latest events. `init`: a finished run whose weights this
    one begins with, perhaps of other data. `teacher`: a finished run of another model on the same data, to learn from.
    `retriever`: one whose lists a ranker is to correct; its answers are the negatives. With `fit_on` train+validation
    nothing is held back: all of `training.epochs` are trained, and the last is kept.
    """

    data: Path
    model: str
    out: Path
    refit: Path | None = None
    init: Path | None = None
    teacher: Path | None = None
    retriever: Path | None = None
    preset: str | None = None
    config_file: Path | None = None
    settings: tuple[str, ...] = ()
    fit_on: FitOn = "train"
    seed: int = 0
    tracking: bool = True
    restart: bool = False
    overwrite: bool = False

    @property
    def inputs(self) -> list[Path]:
        """Folders of the data and of the runs that something is taken from."""
        given = (self.data, self.refit, self.init, self.teacher, self.retriever)
        return [path for path in given if path is not None]


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
    encoder: TextEncoder | None = None
    network: Pretrained | None = None
    start: Run | None = None
    teacher: Run | None = None
    retriever: Run | None = None

    @property
    def events(self) -> TrainingEvents:
        """What may be learned from."""
        return self.prepared.training_events(self.fit_on).of_users(self.training.user_share)

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
        for name, run in (("init", self.start), ("teacher", self.teacher), ("retriever", self.retriever)):
            if run is not None:
                sections[name] = str(run.folder.resolve())
                sections[f"{name}_weights"] = run.manifest["files"][WEIGHTS]
        return sections | ({"training": asdict(self.training)} if self.by_gradient else {})

    @property
    def by_gradient(self) -> bool:
        """False for counting models."""
        return issubclass(self.model.model_class, torch.nn.Module)


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
    if prepared.store.weight is not None and not getattr(model.model_class, "weighs_events", False):
        raise DataError(
            f"train {config.model}: the events of {prepared.folder} have weights (recsys denoise --action weight), and "
            "this model would count them alike; train sasrec, bert4rec, rearec or hierarchical, or let "
            "`recsys denoise` replace or drop events."
        )
    training = build_config(TrainingConfig, sections.get("training", {}), f"training of {config.model}")
    if training.event_dropout:
        check_event_dropout(model)
    check_windows(model, training, prepared)
    if training.epochs == 0 and config.init is None and not model.reads_sentences:
        raise ConfigError(
            f"train {model.name}: training.epochs=0 keeps weights as they come, and these would be random; give "
            "--init, or train at least one epoch."
        )
    if training.averaging and (model.reads_sentences or getattr(model.values, "item_llm", "frozen") != "frozen"):
        raise ConfigError(
            f"train {model.name}: training.averaging={training.averaging} averages weights but not the item matrix "
            "made of them; set training.averaging=0."
        )
    held_back = config.fit_on == "train"
    return Plan(
        prepared=prepared,
        model=model,
        training=training,
        seed=config.seed,
        stop_after=None if held_back else training.epochs,
        fit_on=config.fit_on,
        selected={} if held_back else {"best_epoch": training.epochs},
        encoder=text_encoder(model, prepared),
        network=text_network(model, prepared),
        start=None if config.init is None else checked_start(open_run(config.init), model, prepared),
        teacher=checked_teacher(config.teacher, model, training, prepared),
        retriever=None if config.retriever is None else checked_retriever(open_run(config.retriever), model, prepared),
    )


def check_event_dropout(model: ModelConfig) -> None:
    """Refuses settings that windows with gaps would mislead."""
    if model.ranks:
        raise ConfigError(
            f"train {model.name}: training.event_dropout hides events, and their items could be drawn as negatives; "
            "set training.event_dropout=0."
        )
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


def check_windows(model: ModelConfig, training: TrainingConfig, prepared: Prepared) -> None:
    """Refuses ways of cutting windows that the model or the log does not allow."""
    if training.window_stride and not getattr(model.model_class, "weighs_events", False):
        raise ConfigError(
            f"train {model.name}: training.window_stride={training.window_stride} needs a model that can learn from a "
            "part of a window (sasrec, bert4rec, rearec, hierarchical); set training.window_stride=0."
        )
    if training.window_stride:
        training.window_policy.check(WindowShape(length=model.values.max_len + 1, overlap=1))
    if training.session_gap and prepared.time == "order":
        raise DataError(
            f"train {model.name}: training.session_gap={training.session_gap} needs times, and {prepared.folder} only "
            "knows the order of events; set training.session_gap=0 or ingest a log with timestamps."
        )


def refit_plan(config: TrainConfig, run: Run, prepared: Prepared) -> Plan:
    """The run's own settings, seed and schedule up to its best epoch, on everything before the test part."""
    others = (config.preset, config.config_file, config.settings, config.init, config.teacher, config.retriever)
    if any(others):
        raise ConfigError(
            f"train: --refit takes every setting from {run.folder}; drop --preset, --config, --set, --init, --teacher "
            "and --retriever."
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
        start=earlier_run(run, "init"),
        teacher=earlier_run(run, "teacher"),
        retriever=earlier_run(run, "retriever"),
        training=build_config(TrainingConfig, run.config.get("training", {}), "training"),
        seed=run.config["seed"],
        stop_after=counts.get("best_epoch"),
        fit_on="train+validation",
        selected={key: value for key, value in counts.items() if key.startswith("best_")},
    )
