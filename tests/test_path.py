"""The whole path on MovieLens-100K by the commands a user types, down to the service's answers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from command_line import run_recsys
from fastapi.testclient import TestClient

from pipelines.loading import run_scorer
from pipelines.movielens import wheel_file
from recsys.batches import Histories
from recsys.evaluation import seen_mask
from recsys.ranking import FullRanking
from recsys.registry import fetch_bundle
from recsys.runs import open_run
from recsys.sequences import SequenceStore
from serving.app import create_app
from serving.settings import Settings

HISTORIES = 1000
K = 20
QUICK = ("--set", "training.epochs=1", "--set", "model.max_len=30", "--set", "training.validation_cases=200")


@dataclass(frozen=True)
class Path100K:
    """Where the commands put things, and what they printed with --json."""

    folder: Path
    printed: dict[str, Any]


def succeed(*arguments: object) -> Any:
    """Runs a command with --json; what it printed."""
    code, output, error = run_recsys(*arguments, "--json")
    assert code == 0, error
    return json.loads(output)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, real_data: Callable[[str], Path]) -> Iterator[Path100K]:
    """Every command once, two models."""
    folder = tmp_path_factory.mktemp("path")
    log = wheel_file() or real_data("ml-100k-atomic") / "ml-100k.inter"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        printed = {
            "ingest": succeed("ingest", log, "--out", folder / "dataset"),
            "prepare": succeed("prepare", folder / "dataset", "--out", folder / "prepared"),
        }
        for name in ("sasrec", "bert4rec"):
            printed[name] = succeed("train", folder / "prepared", "--model", name, "--out", folder / name, *QUICK)
        printed["evaluate"] = succeed("evaluate", folder / "sasrec", folder / "bert4rec")
        printed["compare"] = succeed("compare", folder / "sasrec", folder / "bert4rec", "--draws", 200)
        for name in ("sasrec", "bert4rec"):
            printed[f"export {name}"] = succeed("export", folder / name, "--out", folder / f"{name}-bundle")
            printed[f"register {name}"] = succeed("register", folder / f"{name}-bundle", "--name", "films")
        yield Path100K(folder, printed)


def test_counts_are_those_of_the_published_set(path: Path100K) -> None:
    counts = path.printed["ingest"]["counts"]
    assert (counts["accepted"], counts["users"], counts["items"]) == (100_000, 943, 1682)
    prepared = path.printed["prepare"]["counts"]
    assert prepared["train_events"] + prepared["validation_cases"] + prepared["test_cases"] == 100_000
    assert prepared["seen"] == "exclude"


def test_every_case_is_kept_and_floors_stand_beside(path: Path100K) -> None:
    evaluation = path.printed["evaluate"]
    assert list(evaluation["floors"]) == ["popularity", "popularity-recent", "markov", "item-knn", "tfidf"]
    assert list(evaluation["runs"]) == ["sasrec", "bert4rec"]
    assert len(evaluation["verdicts"]) == 2
    cases = pl.read_parquet(path.folder / "sasrec" / "evaluation" / "test" / "cases.parquet")
    assert len(cases) == path.printed["prepare"]["counts"]["test_cases"]
    assert cases["rank"].is_between(1, 1682).all()


def test_comparison_speaks_of_every_metric_and_segment(path: Path100K) -> None:
    rows = path.printed["compare"]["comparisons"][0]["differences"]
    assert {row["metric"] for row in rows} == {f"{name}@{k}" for name in ("ndcg", "hit_rate", "mrr") for k in (10, 20)}
    assert {"all", "user: new", "item: cold", "popularity decile: 10"} <= {row["segment"] for row in rows}


def test_the_alias_points_at_the_last_bundle_and_goes_back(path: Path100K) -> None:
    assert path.printed["register bert4rec"]["previous"] == path.printed["register sasrec"]["version"]
    assert succeed("register", "--rollback", "--name", "films")["version"] == path.printed["register sasrec"]["version"]
    served = fetch_bundle("models:/films@champion")
    original = path.folder / "sasrec-bundle" / "manifest.json"
    assert (served / "manifest.json").read_bytes() == original.read_bytes()


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_the_service_answers_what_the_evaluator_ranks(path: Path100K, name: str, exclude_seen: bool) -> None:
    run = open_run(path.folder / name)
    prepared = run.prepared()
    store = random_histories(prepared.catalog.num_items)
    users, stops = np.arange(HISTORIES), store.lengths
    scorer = run_scorer(run, prepared)
    batch = Histories.from_windows(store.windows(users, stops, scorer.max_len))
    mask = seen_mask(store, users, stops, prepared.catalog.num_rows) if exclude_seen else None
    expected = FullRanking(scorer).recommend(batch, K + 1, mask)
    ids = ["", *prepared.catalog.item_ids]

    settings = Settings(state=path.folder / f"{name}-{exclude_seen}.sqlite")
    with TestClient(create_app(path.folder / f"{name}-bundle", settings)) as client:
        for user in users:
            rows = store.item_idx[store.offsets[user] : store.offsets[user + 1]]
            question = {"history": [ids[row] for row in rows], "k": K, "exclude_seen": exclude_seen}
            answer = client.post("/v1/recommend", json=question).json()
            same_ranking(answer["items"], [ids[row] for row in expected.items[user]], expected.scores[user])


def random_histories(num_items: int) -> SequenceStore:
    """Lengths from 1 to beyond the window, any items."""
    rng = np.random.default_rng(20)
    lengths = rng.integers(1, 70, size=HISTORIES)
    return SequenceStore(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        item_idx=rng.integers(1, num_items + 1, size=lengths.sum()).astype(np.int32),
        timestamp=np.arange(lengths.sum()),
        user_ids=pl.Series([str(user) for user in range(HISTORIES)]),
    )


def same_ranking(answered: list[dict[str, Any]], ids: list[str], scores: torch.Tensor) -> None:
    """The same items with the same scores; only items of equal score may have changed places."""
    np.testing.assert_allclose([item["score"] for item in answered], scores[:K].numpy(), atol=1e-4)
    score_of = dict(zip(ids, scores.tolist(), strict=True))
    for item, expected_id, expected_score in zip(answered, ids, scores.tolist(), strict=False):
        if item["item_id"] != expected_id:
            assert score_of[item["item_id"]] == pytest.approx(expected_score, abs=1e-5)
