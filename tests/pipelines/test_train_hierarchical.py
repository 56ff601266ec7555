"""Hierarchical Recformer from its teacher to the bundle, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from shops import shop, shop_encoder, small
from training import SMALL, assert_same_weights, cut_at, epochs, run_of

from models.hierarchical import Hierarchical
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.loading import run_scorer
from pipelines.reporter import Reporter
from recsys.batches import Histories
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared
from recsys.runs import Run

TINY = (*SMALL, "model.num_heads=2", "model.text_width=12", "training.precision=fp32", "training.averaging=0")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return shop(tmp_path_factory.mktemp("data"), 1)


@pytest.fixture(scope="module")
def teacher(data: Prepared, encoder: Path) -> Run:
    return run_of(data, data.folder.parent / "teacher", "recformer", small(encoder))


@pytest.fixture(scope="module")
def student(data: Prepared, teacher: Run) -> Run:
    return run_of(data, data.folder.parent / "student", "hierarchical", TINY, teacher=teacher.folder)


@pytest.fixture
def fit(data: Prepared, tmp_path: Path) -> Callable[..., Run]:
    """Trains a student with further settings."""

    def run(*settings: str, **options: Any) -> Run:
        return run_of(data, tmp_path / "run", "hierarchical", (*TINY, *settings), **options)

    return run


def test_its_items_are_the_teachers_vectors(student: Run, teacher: Run) -> None:
    kept = load_file(student.folder / "model.safetensors")["items.features"]
    assert torch.equal(kept, load_file(teacher.folder / "model.safetensors")["item_matrix"])
    assert student.config["teacher"] == str(teacher.folder.resolve())
    assert str(teacher.folder.resolve()) in [entry["path"] for entry in student.manifest["inputs"]]


def test_what_the_teacher_expects_changes_what_is_learned(fit: Callable[..., Run], student: Run, teacher: Run) -> None:
    alone = fit("model.distillation=0", teacher=teacher.folder)
    first, last = epochs(student), epochs(alone)
    assert all(ours["loss"] > theirs["loss"] for ours, theirs in zip(first, last, strict=True))
    assert first[-1]["loss"] < first[0]["loss"]


def test_one_seed_gives_one_run(fit: Callable[..., Run], student: Run, teacher: Run) -> None:
    assert_same_weights(student, fit(teacher=teacher.folder))


def test_a_start_does_not_bring_its_own_teacher(
    fit: Callable[..., Run], data: Prepared, encoder: Path, student: Run, tmp_path: Path
) -> None:
    other = run_of(data, tmp_path / "other", "recformer", small(encoder), seed=1)
    later = fit(init=student.folder, teacher=other.folder)
    features = load_file(later.folder / "model.safetensors")["items.features"]
    assert torch.equal(features, load_file(other.folder / "model.safetensors")["item_matrix"])


def test_a_killed_student_goes_on_bit_for_bit(data: Prepared, teacher: Run, tmp_path: Path) -> None:
    settings = (*TINY, "training.checkpoint_seconds=0.000001")
    whole = run_of(data, tmp_path / "whole", "hierarchical", settings, teacher=teacher.folder)
    with cut_at(Hierarchical, "loss", 8):
        run_of(data, tmp_path / "cut", "hierarchical", settings, teacher=teacher.folder)
    cut = run_of(data, tmp_path / "cut", "hierarchical", settings, teacher=teacher.folder)
    assert_same_weights(whole, cut)
    assert epochs(whole) == epochs(cut)


def test_its_bundle_answers_as_the_evaluator_and_reads_new_items(
    student: Run, teacher: Run, data: Prepared, tmp_path: Path
) -> None:
    evaluate(EvaluateConfig(runs=(student.folder,)), Reporter(quiet=True))
    bundle = export(ExportConfig(run=student.folder, out=tmp_path / "bundle"))
    assert bundle.card.sentences is not None
    assert bundle.card.sentences.takes_new_items
    assert bundle.step is not None
    users = np.arange(data.store.num_users)
    histories = Histories.from_windows(data.store.windows(users, data.store.lengths, bundle.card.max_len))
    session = onnxruntime.InferenceSession(str(bundle.encoder), providers=["CPUExecutionProvider"])
    given = {"items": histories.items.numpy(), "lengths": histories.lengths.numpy(), "features": bundle.features}
    (vectors,) = session.run(["vectors"], given)
    _, scores = bundle.index.search(vectors, 20)
    expected = run_scorer(student, data).scores(histories).numpy()
    np.testing.assert_allclose(scores, -np.sort(-expected[:, 1:], axis=1)[:, :20], atol=1e-4)
    reader = onnxruntime.InferenceSession(str(bundle.item_reader), providers=["CPUExecutionProvider"])
    sentences = run_scorer(teacher, data).model.sentences()  # type: ignore[attr-defined]
    rows = slice(1, 6)
    features, vectors = reader.run(None, {"tokens": sentences.ids[rows], "kinds": sentences.kinds[rows]})
    np.testing.assert_allclose(features, bundle.features[rows], atol=1e-5)
    np.testing.assert_allclose(vectors, bundle.index.vectors(np.arange(1, 6)), atol=1e-5)


def test_a_refit_learns_from_the_same_teacher(student: Run, data: Prepared, tmp_path: Path) -> None:
    refitted = run_of(data, tmp_path / "refit", "hierarchical", refit=student.folder)
    assert refitted.config["teacher_weights"] == student.config["teacher_weights"]
    assert refitted.fit_on == "train+validation"


def test_a_teacher_that_was_trained_again_is_noticed(
    fit: Callable[..., Run], data: Prepared, encoder: Path, teacher: Run, tmp_path: Path
) -> None:
    other = shutil.copytree(teacher.folder, tmp_path / "teacher")
    run = fit("training.epochs=1", teacher=other)
    run_of(data, other, "recformer", small(encoder), seed=1, overwrite=True)
    with pytest.raises(DataError, match=r"teacher, its teacher, has other weights since; train it again\."):
        export(ExportConfig(run=run.folder, out=tmp_path / "bundle"))


def test_what_cannot_be_is_refused(
    fit: Callable[..., Run], data: Prepared, teacher: Run, student: Run, encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="learns from another run; name a finished recformer run by --teacher"):
        fit()
    with pytest.raises(ConfigError, match="train sasrec: learns from events alone; drop --teacher"):
        run_of(data, tmp_path / "sasrec", "sasrec", SMALL, teacher=teacher.folder)
    with pytest.raises(DataError, match=r"is a 'hierarchical' run on train of .*; one of 'recformer' on train of"):
        fit(teacher=student.folder)
    with pytest.raises(ConfigError, match=r"its vectors have 12 numbers, and model\.text_width=7; give --set"):
        fit("model.text_width=7", teacher=teacher.folder)
    with pytest.raises(ConfigError, match=r"event_dropout makes new histories every time, and the teacher would have"):
        fit("training.event_dropout=0.2", teacher=teacher.folder)
    pretrained = run_of(data, tmp_path / "pre", "recformer", (*small(encoder), "model.objective=pretrain"))
    with pytest.raises(ConfigError, match="was pretrained, and knows no matrix of these items"):
        fit(teacher=pretrained.folder)
    refitted = run_of(data, tmp_path / "refit", "recformer", refit=teacher.folder)
    with pytest.raises(DataError, match=r"is a 'recformer' run on train\+validation of"):
        fit(teacher=refitted.folder)
