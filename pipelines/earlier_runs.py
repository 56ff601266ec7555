"""Runs that a training begins with, learns from or corrects: checked to be of use, and to be what they were."""

from pathlib import Path

import torch

from models.registry import ModelConfig, answers_along
from pipelines.loading import stored_config
from pipelines.warm_start import check_catalogue
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared
from recsys.runs import WEIGHTS, Run, open_run
from recsys.training import TrainingConfig

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
    "text_pooling",
    "items",
    "text_components",
    "text_control",
    "backbone",
    "method",
    "category",
)
"""Settings without which weights of the right shapes mean something else."""


def checked_start(start: Run, model: ModelConfig, prepared: Prepared) -> Run:
    """The run to begin with, refused where its weights would mean something else here."""
    if start.model != model.name or not issubclass(model.model_class, torch.nn.Module):
        raise ConfigError(
            f"train --init {start.folder}: is a run of {start.model!r}, and {model.name!r} is trained; weights go from "
            "a model trained by gradient to the same one."
        )
    began = stored_config(start, start.prepared()).values
    for name in SAME_AT_THE_START:
        here, there = getattr(model.values, name, None), getattr(began, name, None)
        if here != there:
            raise ConfigError(
                f"train --init {start.folder}: model.{name} is {there} there and {here} here; the same weights would "
                f"compute something else. Give --set model.{name}={there}."
            )
    check_catalogue(start, model, prepared)
    return start


def checked_teacher(
    folder: Path | None, model: ModelConfig, training: TrainingConfig, prepared: Prepared
) -> Run | None:
    """The run to learn from, refused where it knows other items or events that are to be predicted."""
    if (folder is None) == model.has_teacher:
        raise ConfigError(
            f"train {model.name}: learns from another run; name a finished recformer run by --teacher."
            if model.has_teacher
            else f"train {model.name}: learns from events alone; drop --teacher, or train a model such as hierarchical."
        )
    if folder is None:
        return None
    run = open_run(folder)
    if run.model != "recformer" or run.prepared().fingerprint != prepared.fingerprint or run.fit_on != "train":
        raise DataError(
            f"train --teacher {folder}: is a {run.model!r} run on {run.fit_on} of {run.prepared().folder}; one of "
            f"'recformer' on train of {prepared.folder} is needed."
        )
    if run.config["model"]["objective"] != "match":
        raise ConfigError(
            f"train --teacher {folder}: was pretrained, and knows no matrix of these items; begin a recformer run with "
            "it (--init, with --set training.epochs=0 as it is) and name that one."
        )
    if (width := run.config["model"]["embedding_dim"]) != model.values.text_width:
        raise ConfigError(
            f"train --teacher {folder}: its vectors have {width} numbers, and "
            f"model.text_width={model.values.text_width}; give --set model.text_width={width}."
        )
    if training.event_dropout and model.values.distillation:
        raise ConfigError(
            f"train {model.name}: training.event_dropout makes new histories every time, and the teacher would have to "
            "read each; set training.event_dropout=0 or model.distillation=0."
        )
    return run


def checked_retriever(run: Run, model: ModelConfig, prepared: Prepared) -> Run:
    """The run whose lists a ranker is to correct, refused where it could not answer after each event."""
    if not model.ranks:
        raise ConfigError(
            f"train {model.name}: corrects no other run; drop --retriever, or train a ranker such as dare."
        )
    if run.prepared().fingerprint != prepared.fingerprint or run.fit_on != "train":
        raise DataError(
            f"train --retriever {run.folder}: was trained on {run.fit_on} of {run.prepared().folder}; one on train "
            f"of {prepared.folder} is needed."
        )
    if not answers_along(run.model):
        raise ConfigError(
            f"train --retriever {run.folder}: is a {run.model!r} run, which answers at the end of a history alone; "
            "name one of a causal retriever such as sasrec."
        )
    if run.config["model"]["time_buckets"]:
        raise ConfigError(
            f"train --retriever {run.folder}: reads times (model.time_buckets), which negatives are drawn without; "
            "name a run with model.time_buckets=0."
        )
    return run


def earlier_run(run: Run, role: str) -> Run | None:
    """The run that this one began with (`init`), learned from (`teacher`) or corrects (`retriever`), as it was then."""
    if role not in run.config:
        return None
    earlier = open_run(Path(run.config[role]))
    if earlier.manifest["files"][WEIGHTS] != run.config[f"{role}_weights"]:
        raise DataError(f"{run.folder}: {earlier.folder}, its {role}, has other weights since; train it again.")
    return earlier
