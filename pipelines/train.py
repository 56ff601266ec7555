"""`recsys train`: prepared data and a model's name become a run: weights, figures by epoch, an MLflow entry."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from models.hierarchical import Teacher
from pipelines.loading import language, run_model, sentences, text_features, texts_by_row
from pipelines.plan import Plan, TrainConfig, make_plan
from pipelines.reporter import Reporter
from pipelines.validation import validation, watched_metric
from pipelines.warm_start import counts_learned_by, item_weights, start_from
from recsys.batches import TrainingWindows
from recsys.contracts import CountingModel, SentenceReader, Student, TextReader, TextTrainer, Trainable
from recsys.errors import DataError
from recsys.item_categories import item_categories
from recsys.memory import keep_freed_memory
from recsys.pretrained import Pretrained
from recsys.runs import CONFIG, EPOCHS, WEIGHTS, Run, open_run
from recsys.sequences import IntArray
from recsys.steps import Step, git_commit, partial_folder, writing_step
from recsys.text_vectors import SentenceEncoder
from recsys.tracking import MLflowTracker, NoTracker, Tracker
from recsys.training import Trainer, make_accelerator
from recsys.windows import cut_windows

MLFLOW_RUN = "mlflow_run_id"
SCRATCH = ("checkpoints", ".tracking")


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
        inputs=config.inputs,
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


def begin_or_continue(folder: Path, plan: Plan, *, restart: bool) -> None:
    """Leaves `folder` holding this plan's config: fresh, or of an interrupted run with the same one."""
    if (folder / CONFIG).exists() and (restart or is_another(folder, plan)):
        if not restart:
            raise DataError(
                f"train: {folder} holds an interrupted run with other settings or data; pass --restart to discard it, "
                "or choose another --out."
            )
        shutil.rmtree(folder)
        folder.mkdir()
    (folder / CONFIG).write_text(as_yaml(plan), encoding="utf-8")


def is_another(folder: Path, plan: Plan) -> bool:
    """Whether `folder` is an interrupted run with other settings or data."""
    path = folder / CONFIG
    return path.exists() and path.read_text(encoding="utf-8") != as_yaml(plan)


def as_yaml(plan: Plan) -> str:
    """What a run's `config.yaml` holds."""
    return yaml.safe_dump(plan.as_dict(), sort_keys=False)


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
                f"best_validation_{watched_metric(plan)}": trainer.progress.best_metric,
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
    if plan.start is not None:
        added = start_from(model, plan.model, plan.start, plan.prepared)
        if added.items:
            reporter.say(
                f"train {plan.model.name}: {added.items} new items, {added.from_texts} with rows by their texts"
            )
    learn_from_data(model, plan, reporter)
    teacher = teacher_of(plan)
    if teacher is not None:
        student: Student = model
        student.learn_from(teacher)
    if plan.network is not None:
        begin_with_language(model, plan, plan.network)
    windows = training_windows(plan, model)
    trainer = Trainer(model, plan.prepared.store, windows, plan.training, plan.seed, folder, tracker)
    if teacher is not None and plan.model.values.distillation:
        with trainer.accelerator.autocast():
            teacher.read(plan.prepared.store, windows)
    if trainer.resume():
        reporter.say(f"train {plan.model.name}: going on after epoch {trainer.progress.epoch}")
    epochs = plan.training.epochs if plan.stop_after is None else plan.stop_after
    watched = watched_metric(plan)
    with reporter.task(f"train {plan.model.name}", epochs * trainer.batches_per_epoch) as advance:
        advance(trainer.progress.step)

        def on_epoch(figures: dict[str, float]) -> None:
            quality = f" {watched} {figures[watched]:.4f}" if watched in figures else ""
            advance(0, f"epoch {int(figures['epoch'])} loss {figures['loss']:.4f}{quality}")

        validate = validation(plan, trainer) if plan.fit_on == "train" else None
        judged = plan.start is not None or plan.training.epochs == 0
        trainer.fit(validate, watched, on_epoch, lambda: advance(1), plan.stop_after, judge_start=judged)
    return trainer


def learn_from_data(model: Any, plan: Plan, reporter: Reporter) -> None:
    """What a model is told before training; it wins over what the run that it begins with was told."""
    counts = learned_counts(plan)
    model.learn_popularity(counts)
    if plan.model.ranks:
        model.learn_categories(torch.from_numpy(item_categories(plan.prepared.items, plan.model.values.category)))
    if plan.retriever is not None:
        model.learn_retriever(run_model(plan.retriever, plan.prepared)[1], repeats=plan.prepared.seen == "keep")
    if plan.encoder is not None:
        reader: TextReader = model
        with make_accelerator(plan.training).main_process_first():  # the others find its vectors in the store
            vectors = text_features(plan.prepared, plan.encoder, plan.model.values, reporter)
            reader.learn_texts(vectors, counts)
        if isinstance(model, TextTrainer) and model.trains_texts and isinstance(plan.encoder, SentenceEncoder):
            model.learn_tokens(*plan.encoder.tokens(texts_by_row(plan.prepared)))


def learned_counts(plan: Plan) -> IntArray:
    """Events of each item row that the weights will have learned from, [V].

    Where a run is taken as it is these are its own: gates between id and text open with them, and must not for events
    that the rows of ids never saw.
    """
    if plan.start is None or plan.training.epochs or not item_weights(plan.model):
        return plan.events.item_counts()
    learned = counts_learned_by(plan.start)
    return np.pad(learned, (0, plan.prepared.catalog.num_rows - len(learned)))


def teacher_of(plan: Plan) -> Teacher | None:
    """What a student learns from, where the student will be."""
    if plan.teacher is None:
        return None
    return Teacher(run_model(plan.teacher, plan.prepared)[1].to(make_accelerator(plan.training).device))


def training_windows(plan: Plan, model: Trainable) -> TrainingWindows:
    """Of the users that are learned from; where rows of a batch are told from each other, of one catalogue a batch."""
    windows = cut_windows(plan.events, model.window, plan.training.window_policy)
    if not (isinstance(model, SentenceReader) and model.contrasts_rows):
        return windows
    store = plan.prepared.store
    first_items = store.item_idx[store.offsets[windows.users] + windows.starts]
    return replace(windows, groups=plan.prepared.item_sources[first_items])


def begin_with_language(model: SentenceReader, plan: Plan, network: Pretrained) -> None:
    """Tokens of the items, and where no run is to start from, the pretrained network."""
    model.learn_sentences(sentences(plan.model, plan.prepared, network), network.special_tokens)
    if plan.start is None:
        model.learn_network(language(network))
    elif made_its_matrix(plan.start):
        stored = load_file(plan.start.folder / WEIGHTS)
        model.keep_items(stored["tokens"], stored["token_kinds"], stored["item_matrix"])


def made_its_matrix(run: Run) -> bool:
    """Whether a run's item matrix is what its weights make of the texts."""
    return run.config["model"]["objective"] == "match" and run.config["model"]["item_matrix"] == "refreshed"


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
