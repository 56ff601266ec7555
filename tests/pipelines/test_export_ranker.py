"""Bundles of two stages: what is written, and what is refused before anything is."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from builders import random_rows, write_dataset
from command_line import run_recsys
from training import trained

from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.export import ExportConfig, export
from pipelines.export_ranker import RankingConfig
from pipelines.loading import run_ranker, run_scorer
from pipelines.plan import TrainConfig
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from pipelines.reranking import log_share
from pipelines.train import train
from recsys.batches import Histories
from recsys.bundle import Bundle, open_bundle
from recsys.errors import BundleError, ConfigError, DataError
from recsys.prepared import Prepared
from recsys.ranking import without_items
from recsys.reranking import SHORTEST, Reranker
from recsys.runs import Run, open_run
from recsys.stored_ranker import RankerCard

SMALL = ("model.max_len=9", "model.kept=3", "model.embedding_dim=4", "training.epochs=2", "training.batch_size=8")


def prepared_in(folder: Path, seed: int) -> Prepared:
    """20 users who walk from item to item, 17 of them, odd and even."""
    items = pl.DataFrame({
        "item_id": [f"i{row:03}" for row in range(17)],
        "categories": [["odd" if row % 2 else "even"] for row in range(17)],
    })
    dataset = write_dataset(folder / "dataset", random_rows(seed, users=20, items=17, events=260), items)
    return prepare(PrepareConfig(dataset=dataset, out=folder / "prepared", split="last-item", seen="keep"))


def ranker_of(prepared: Prepared, out: Path, *settings: str) -> Run:
    """A small one."""
    config = TrainConfig(data=prepared.folder, model="dare", out=out, settings=(*SMALL, *settings), tracking=False)
    run = train(config, Reporter(quiet=True))
    assert run is not None
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A retriever and a ranker on the same data."""
    folder = tmp_path_factory.mktemp("runs")
    prepared = prepared_in(folder, seed=0)
    return trained(prepared, folder / "sasrec"), ranker_of(prepared, folder / "dare")


@pytest.fixture(scope="module")
def bundle(runs: tuple[Run, Run]) -> Bundle:
    """Written by the command."""
    retriever, ranker = runs
    out = retriever.folder.parent / "bundle"
    options = ("--candidates", "6", "--rank-weight", "0.25")
    code, output, error = run_recsys(
        "export", retriever.folder, "--ranker", ranker.folder, "--out", out, *options, "--json"
    )
    assert code == 0, error
    assert json.loads(output)["counts"]["ranker_difference"] < 1e-5
    return open_bundle(out)


def test_a_bundle_of_two_stages_says_what_it_was_made_of(runs: tuple[Run, Run], bundle: Bundle) -> None:
    retriever, ranker = runs
    assert bundle.ranker is not None
    card = bundle.ranker.card
    assert (card.candidates, card.weight, card.shortest) == (6, 0.25, SHORTEST)
    assert (card.name, card.max_len, card.config) == ("dare", 9, ranker.config["model"])
    assert [entry["path"] for entry in bundle.manifest["inputs"]] == [
        str(run.folder.resolve()) for run in (retriever, ranker)
    ]
    assert bundle.manifest["config"]["ranker"] == str(ranker.folder)
    assert bundle.manifest["config"]["weight"] == 0.25
    assert {"ranker.json", "ranker.onnx", "ranker.npz"} <= bundle.manifest["files"].keys()


def test_its_ranker_scores_as_evaluation_does(runs: tuple[Run, Run], bundle: Bundle) -> None:
    """After whole histories, for all items that the retriever finds; the score is that of `Reranker`."""
    retriever, run = runs
    prepared = run.prepared()
    stored = bundle.ranker
    assert stored is not None
    users = np.arange(prepared.store.num_users)
    histories = Histories.from_windows(prepared.store.windows(users, prepared.store.lengths, 9))
    scorer = run_scorer(retriever, prepared)
    first = without_items(scorer.scores(histories.latest(scorer.max_len)), torch.zeros(len(users), 1).long())
    reranker = Reranker(run_ranker(run, prepared), 6, log_share(run, prepared), 0.25)
    for row, expected in enumerate(reranker.reordered(histories, first)):
        found = expected.isfinite().nonzero().flatten().numpy()
        user = stored.gathered(histories.items[row, : int(histories.lengths[row])].numpy())
        assert len(found) == 6
        both = first[row, found].numpy() + 0.25 * stored.scores(user, found)
        np.testing.assert_allclose(both, expected[found].numpy(), rtol=1e-5, atol=1e-5)


def test_a_bundle_without_a_part_of_its_ranker_does_not_open(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in bundle.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]["ranker.npz"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "ranker.npz").unlink()
    with pytest.raises(BundleError, match=r"lacks ranker\.npz of its ranker; export the runs again"):
        open_bundle(copy)


def test_the_weight_is_what_evaluation_found(runs: tuple[Run, Run], tmp_path: Path) -> None:
    """On the validation part, of these very weights and as many candidates; one given by hand is no finding."""
    retriever, ranker = (open_run(shutil.copytree(run.folder, tmp_path / run.name)) for run in runs)
    ranking = RankingConfig(candidates=12)
    config = ExportConfig(run=retriever.folder, ranker=ranker.folder, out=tmp_path / "bundle", ranking=ranking)
    judged = EvaluateConfig(runs=(ranker.folder,), rerank=retriever.folder, candidates=12, cutoffs=(10,))
    unknown = r"nothing says how much it should add to the best 12 .* run `recsys evaluate .* --candidates 12`"
    with pytest.raises(ConfigError, match=unknown):
        export(config)
    evaluate(replace(judged, rank_weight=0.7), Reporter(quiet=True))
    with pytest.raises(ConfigError, match=unknown):
        export(config)
    evaluate(judged, Reporter(quiet=True))
    report = ranker.reranking("test", retriever.name) / "report.json"
    found = json.loads(report.read_text(encoding="utf-8"))
    report.write_text(json.dumps(found | {"weight": 0.0}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"adds nothing to .*sasrec \(the best weight on the validation part is 0\)"):
        export(config)
    report.write_text(json.dumps(found | {"weight": 0.3}), encoding="utf-8")
    assert card_of(export(config)).weight == 0.3
    with pytest.raises(ConfigError, match="nothing says how much it should add to the best 11 scores"):
        export(replace(config, ranking=RankingConfig(candidates=11), overwrite=True))
    alone = export(replace(config, ranking=RankingConfig(weight=math.inf), overwrite=True))
    assert card_of(alone).weight is None


def card_of(bundle: Bundle) -> RankerCard:
    """Of its ranker."""
    assert bundle.ranker is not None
    return bundle.ranker.card


def test_what_cannot_be_a_second_stage_is_refused(runs: tuple[Run, Run], tmp_path: Path) -> None:
    retriever, ranker = runs
    prepared, out = ranker.prepared(), tmp_path / "bundle"
    config = ExportConfig(run=retriever.folder, ranker=ranker.folder, out=out, ranking=RankingConfig(weight=1.0))
    elsewhere = ranker_of(prepared_in(tmp_path / "other", seed=1), tmp_path / "other" / "dare")
    with pytest.raises(DataError, match="both stages of a bundle need the same prepared data"):
        export(replace(config, ranker=elsewhere.folder))
    with pytest.raises(ConfigError, match=r"sasrec: holds 'sasrec', which is no ranker; name a run of dare"):
        export(replace(config, ranker=retriever.folder))
    din = ranker_of(prepared, tmp_path / "din", "model.method=din", "training.epochs=1")
    with pytest.raises(ConfigError, match=r"din: model\.method=din searches otherwise .*ranks by dare, twin"):
        export(replace(config, ranker=din.folder))
    with pytest.raises(ConfigError, match=r"export: --rank-weight -1\.0 is what .* give a number from 0, or inf"):
        RankingConfig(weight=-1.0)
    with pytest.raises(ConfigError, match="export: --candidates 0 leaves nothing to rank; give at least 1"):
        RankingConfig(candidates=0)
    with pytest.raises(ConfigError, match="--candidates and --rank-weight say how to rank; name a --ranker"):
        ExportConfig(run=retriever.folder, out=out, ranking=RankingConfig(weight=1.0))
    assert not out.exists()
