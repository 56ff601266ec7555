"""Recformer from the item table to the bundle: pretraining, zero-shot use, two stages, and what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from builders import random_rows, write_dataset
from safetensors.torch import load_file
from shops import COLOURS, THINGS, shop, shop_encoder, small
from training import assert_same_weights, cut_at, epochs, run_of

from models.recformer import Recformer
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.loading import run_scorer
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from recsys.batches import Histories
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared, open_prepared
from recsys.runs import Run, open_run
from recsys.sequences import SequenceStore

MATRIX = "item_matrix"
REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return shop(tmp_path_factory.mktemp("source"), 1)


@pytest.fixture(scope="module")
def goal(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return shop(tmp_path_factory.mktemp("goal"), 2, users=30, items=20)


@pytest.fixture
def fit(encoder: Path) -> Any:
    """Trains a run of the tiny encoder."""

    def run(prepared: Prepared, out: Path, *settings: str, **options: Any) -> Run:
        return run_of(prepared, out, "recformer", (*small(encoder), *settings), **options)

    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model.safetensors")


def test_a_pretrained_run_is_used_on_other_items_without_training(
    fit: Any, source: Prepared, goal: Prepared, tmp_path: Path
) -> None:
    pretrained = fit(source, tmp_path / "pretrained", "model.objective=pretrain")
    zero = fit(goal, tmp_path / "zero", "training.epochs=0", init=pretrained.folder)
    before, after = weights(pretrained), weights(zero)
    assert torch.equal(after["words.weight"], before["words.weight"])
    assert torch.equal(after["blocks.blocks.0.ffn.inner.weight"], before["blocks.blocks.0.ffn.inner.weight"])
    assert "head_bias" in before
    assert "head_bias" not in after
    assert after[MATRIX].shape == (goal.catalog.num_rows, 12)
    assert after[MATRIX][1:].norm(dim=1).min() > 0.99
    assert epochs(zero) == []
    assert 0 < zero.manifest["counts"]["best_validation_ndcg@10"] < 1
    report = evaluate(EvaluateConfig(runs=(zero.folder,), part="validation"), Reporter(quiet=True)).runs["zero"]
    known = goal.cases("validation").filter(pl.col("history_length") > 0)
    assert len(known) == len(goal.cases("validation")), "else the two means were of other cases"
    assert report["metrics"]["ndcg@10"] == pytest.approx(zero.manifest["counts"]["best_validation_ndcg@10"], abs=1e-6)


def test_stage_one_renews_the_matrix_and_stage_two_keeps_it(fit: Any, goal: Prepared, tmp_path: Path) -> None:
    first = fit(goal, tmp_path / "first")
    second = fit(goal, tmp_path / "second", "model.item_matrix=frozen", init=first.folder)
    assert torch.equal(weights(second)[MATRIX], weights(first)[MATRIX])
    losses = [epoch["loss"] for epoch in epochs(second)]
    assert losses[1] < losses[0], "its weights were trained"
    fresh = fit(goal, tmp_path / "fresh", "training.epochs=0")
    assert not torch.equal(weights(fresh)[MATRIX], weights(first)[MATRIX])


def test_a_second_run_reads_no_item_and_an_edited_title_one(
    fit: Any, goal: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit(goal, tmp_path / "first")
    read: list[int] = []
    original = Recformer.make_item_matrix

    def counted(model: Recformer) -> int:
        read.append(original(model))
        return read[-1]

    monkeypatch.setattr(Recformer, "make_item_matrix", counted)
    second = fit(goal, tmp_path / "second", "training.epochs=0", init=first.folder)
    assert read == [0]
    assert_same_weights(first, second)
    folder = tmp_path / "edited"
    shutil.copytree(goal.folder, folder)
    titles = goal.items["title"].to_list()
    titles[6] = "old acme lamp"
    goal.items.with_columns(title=pl.Series(titles)).write_parquet(folder / "items.parquet")
    third = fit(open_prepared(folder), tmp_path / "third", "training.epochs=0", init=first.folder)
    assert read == [0, 1]
    changed = (weights(third)[MATRIX] != weights(first)[MATRIX]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [7]
    frozen = fit(open_prepared(folder), tmp_path / "frozen", "model.item_matrix=frozen", init=first.folder)
    assert read == [0, 1, 1]
    assert weights(frozen)[MATRIX][1:].any(dim=1).all()
    fit(goal, tmp_path / "trained", "training.epochs=1", init=first.folder)
    assert read[3] == 0
    assert read[4] > 1, "other weights read all of them"


def test_a_run_killed_while_items_are_read_reads_them_when_it_goes_on(
    fit: Any, goal: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the epoch's last batch, whose checkpoint has other weights than the start."""
    first = fit(goal, tmp_path / "first")
    settings = ("training.epochs=1", "training.checkpoint_seconds=0.000001")
    whole = fit(goal, tmp_path / "whole", *settings, init=first.folder)
    with monkeypatch.context() as patch:
        original = Recformer.make_item_matrix
        calls: list[int] = []

        def dying(model: Recformer) -> int:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(model)

        patch.setattr(Recformer, "make_item_matrix", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(goal, tmp_path / "cut", *settings, init=first.folder)
    assert_same_weights(whole, fit(goal, tmp_path / "cut", *settings, init=first.folder))


def test_pretraining_reads_the_catalogue_once_an_epoch(
    fit: Any, goal: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be validated; its loss asks for no item but those of the batch."""
    steps: list[int] = []
    original = Recformer.make_item_matrix
    monkeypatch.setattr(Recformer, "make_item_matrix", lambda model: steps.append(1) or original(model))
    pretrained = fit(goal, tmp_path / "pretrained", "model.objective=pretrain")
    assert len(steps) == len(epochs(pretrained)) == 2
    fit(goal, tmp_path / "judged", "model.objective=pretrain", "training.epochs=1", init=pretrained.folder)
    assert len(steps) == 2 + 2


def test_what_a_run_begins_with_stays_where_no_epoch_is_better(fit: Any, goal: Prepared, tmp_path: Path) -> None:
    first = fit(goal, tmp_path / "first")
    spoiled = fit(goal, tmp_path / "spoiled", "training.learning_rate=3", "training.warmup_steps=1", init=first.folder)
    counts = spoiled.manifest["counts"]
    assert counts["best_epoch"] == 0
    assert counts["best_validation_ndcg@10"] == first.manifest["counts"]["best_validation_ndcg@10"]
    assert_same_weights(first, spoiled)


def test_the_matrix_of_a_run_is_that_of_its_weights(fit: Any, goal: Prepared, tmp_path: Path) -> None:
    run = fit(goal, tmp_path / "run")
    scorer = run_scorer(run, goal)
    model = scorer.model  # type: ignore[attr-defined]
    kept = model.item_vectors().clone()
    model.make_item_matrix()
    torch.testing.assert_close(model.item_vectors(), kept, rtol=1e-5, atol=1e-5)


def test_rows_of_the_matrix_are_the_texts_of_the_catalogue(fit: Any, goal: Prepared, tmp_path: Path) -> None:
    model = run_scorer(fit(goal, tmp_path / "run"), goal).model  # type: ignore[attr-defined]
    titles = goal.items["title"].to_list()
    vocabulary = {word: 5 + place for place, word in enumerate(("title", "brand", *COLOURS, *THINGS))}
    for row in (1, 4, 17):
        expected = [vocabulary[word] for word in ["title", *titles[row - 1].split()]] if titles[row - 1] else []
        tokens = model.tokens[row][model.token_kinds[row] != 0].tolist()
        assert tokens == expected


def test_a_killed_run_goes_on_bit_for_bit(fit: Any, goal: Prepared, tmp_path: Path) -> None:
    whole = fit(goal, tmp_path / "whole", "training.epochs=3")
    with cut_at(SequenceStore, "windows", 12):
        fit(goal, tmp_path / "cut", "training.epochs=3", "training.checkpoint_seconds=0.000001")
    cut = fit(goal, tmp_path / "cut", "training.epochs=3", "training.checkpoint_seconds=0.000001")
    assert_same_weights(whole, cut)
    assert epochs(whole) == epochs(cut)


def test_two_processes_train_too_where_one_gets_no_rows(
    fit: Any, encoder: Path, goal: Prepared, tmp_path: Path
) -> None:
    """Against the item matrix they are as one; the contrast of pretraining has the negatives of a process alone."""
    windows = fit(goal, tmp_path / "some", "training.epochs=0").manifest["counts"]["windows"]
    shared = ("model.dropout=0", f"training.batch_size={windows - 1}", "training.warmup_steps=0")
    reached = {}
    for objective in ("match", "pretrain"):
        settings = (*small(encoder), *shared, f"model.objective={objective}")
        options = [part for setting in settings for part in ("--set", setting)]
        command = ["train", str(goal.folder), "--model", "recformer", "--out", str(tmp_path / objective), *options]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipelines.cli"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        result = subprocess.run(
            [sys.executable, *launch, *command, "--no-tracking"],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        reached[objective] = [epoch["loss"] for epoch in epochs(open_run(tmp_path / objective))]
    alone = fit(goal, tmp_path / "alone", *shared)
    assert reached["match"] == pytest.approx([epoch["loss"] for epoch in epochs(alone)], rel=1e-4)
    assert len(reached["pretrain"]) == 2


def test_its_bundle_answers_as_the_evaluator(fit: Any, goal: Prepared, tmp_path: Path) -> None:
    run = fit(goal, tmp_path / "run")
    bundle = export(ExportConfig(run=run.folder, out=tmp_path / "bundle"))
    users = np.arange(goal.store.num_users)
    histories = Histories.from_windows(goal.store.windows(users, goal.store.lengths, bundle.card.max_len))
    session = onnxruntime.InferenceSession(str(bundle.encoder), providers=["CPUExecutionProvider"])
    given = {"items": histories.items.numpy(), "lengths": histories.lengths.numpy()}
    given |= {"tokens": bundle.sentences.ids, "kinds": bundle.sentences.kinds}
    (vectors,) = session.run(["vectors"], given)
    _, scores = bundle.index.search(vectors, 20)
    expected = run_scorer(run, goal).scores(histories).numpy()
    np.testing.assert_allclose(scores, -np.sort(-expected[:, 1:], axis=1)[:, :20], atol=1e-4)


def test_a_refit_begins_where_its_run_began(fit: Any, goal: Prepared, tmp_path: Path) -> None:
    start = fit(goal, tmp_path / "start")
    run = fit(goal, tmp_path / "run", init=start.folder)
    refitted = run_of(goal, tmp_path / "refit", "recformer", refit=run.folder)
    assert refitted.config["init_weights"] == run.config["init_weights"]
    assert refitted.fit_on == "train+validation"


def test_what_cannot_be_is_refused(fit: Any, goal: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has other sizes; give --set model\.num_blocks=1\."):
        fit(goal, tmp_path / "run", "model.num_blocks=2")
    with pytest.raises(ConfigError, match=r"training\.averaging=0\.9 averages weights but not the item matrix"):
        fit(goal, tmp_path / "run", "training.averaging=0.9")
    run = fit(goal, tmp_path / "start")
    with pytest.raises(ConfigError, match=r"is a run of 'recformer', and 'sasrec' is trained; weights go from a model"):
        run_of(goal, tmp_path / "other", "sasrec", init=run.folder)
    with pytest.raises(ConfigError, match=r"training\.epochs=0 keeps weights as they come, and these would be random"):
        run_of(goal, tmp_path / "a", "sasrec", ("training.epochs=0",))
    with pytest.raises(
        ConfigError, match=r"model\.pooling is mean there and first here; .* Give --set model\.pooling=me"
    ):
        fit(goal, tmp_path / "pooling", "model.pooling=first", init=run.folder)
    with pytest.raises(
        ConfigError, match=r"model\.attributes='colour' is no text column of the item table; it has tit"
    ):
        fit(goal, tmp_path / "colour", "model.attributes=[colour]")
    with pytest.raises(ConfigError, match=r"model\.max_tokens=999, but the encoder knows 512 positions"):
        fit(goal, tmp_path / "long", "model.max_tokens=999", "model.max_len=5")
    bare = prepare(
        PrepareConfig(dataset=write_dataset(tmp_path / "dataset", random_rows(1, 30, 25, 600)), out=tmp_path / "bare")
    )
    with pytest.raises(DataError, match=r"has no item text for recformer to read; ingest an item table with --items"):
        fit(bare, tmp_path / "run")


def test_weights_that_belong_to_items_do_not_go_to_others(source: Prepared, goal: Prepared, tmp_path: Path) -> None:
    settings = ("model.embedding_dim=8", "model.ffn_dim=8", "training.epochs=1", "training.warmup_steps=1")
    run = run_of(source, tmp_path / "a", "sasrec", settings)
    with pytest.raises(
        DataError,
        match=r"weight items\.weight has a row an item, and the items of .* are not the first ones of .* --extend ",
    ):
        run_of(goal, tmp_path / "b", "sasrec", settings, init=run.folder)
    again = run_of(source, tmp_path / "c", "sasrec", (*settings, "training.epochs=0"), init=run.folder)
    assert_same_weights(run, again)
