"""Rankers judged by what they make of a retriever's lists, and how much they should add to its order."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from models.registry import is_ranker
from pipelines.earlier_runs import earlier_run
from pipelines.loading import run_ranker, run_scorer
from pipelines.validation import watched_cases
from recsys.contracts import CatalogScorer
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared, SeenRule
from recsys.reranking import Reranker
from recsys.retrieved import Retrieved, best_weight
from recsys.runs import REPORT, WEIGHTS, Run
from recsys.splits import Part
from recsys.steps import read_manifest

WEIGHED_CASES = 10_000


@dataclass(frozen=True)
class TwoStages:
    """A retriever, what reorders its lists, and where validation chose the weight, its NDCG@10 by weight."""

    scorer: CatalogScorer
    reranker: Reranker
    by_weight: Mapping[float | None, float]

    def report(self) -> dict[str, object]:
        """For `report.json`."""
        named = {"alone" if weight is None else f"{weight:g}": value for weight, value in self.by_weight.items()}
        return {"weight": self.reranker.weight, "validation_ndcg@10": named}


def check_stages(run: Run, retriever: Run, part: Part, weight: float | None) -> None:
    """Refuses a ranker that cannot be judged over this retriever, before anything is ranked."""
    if not is_ranker(run.model):
        raise ConfigError(f"{run.folder}: holds {run.model!r}, which is no ranker; name a run of dare.")
    check_pair(run, retriever)
    if weight is not None:
        return
    if part == "validation":
        raise ConfigError(
            "evaluate: the validation part chooses how much a ranker adds, so it cannot judge that too; give "
            "--rank-weight, or --part test."
        )
    for known in (run, retriever):
        if known.fit_on != "train":
            raise DataError(
                f"{known.folder} was trained on the validation events, which can choose no weight then; give "
                "--rank-weight as it was best for the runs that these are refits of."
            )


def two_stages(
    run: Run, retriever: Run, prepared: Prepared, candidates: int, seen: SeenRule, weight: float | None = None
) -> TwoStages:
    """A ranker's run over a retriever's; without a `weight` (inf: the ranker alone) the validation part decides."""
    scorer = run_scorer(retriever, prepared)
    reranker = Reranker(run_ranker(run, prepared), candidates, log_share(run, prepared))
    if weight is not None:
        return TwoStages(scorer, replace(reranker, weight=added(weight)), {})
    lists = Retrieved.of(scorer, prepared, watched_cases(prepared, WEIGHED_CASES), candidates, seen)
    by_weight = lists.by_weight(lists.second_scores(reranker, prepared), reranker)
    return TwoStages(scorer, replace(reranker, weight=best_weight(by_weight)), by_weight)


def added(weight: float) -> float | None:
    """What scores are multiplied by before they are added; None for infinity, the ranker alone."""
    return None if weight == inf else weight


def stage_settings(run: Run, retriever: Run, candidates: int, weight: float | None) -> dict[str, Any]:
    """What two re-rankings must share besides to be the same."""
    return {
        "candidates": candidates,
        "retriever": str(retriever.folder),
        "retriever_weights": retriever.manifest["files"][WEIGHTS],
        "ranker": str(run.folder),
        "ranker_weights": run.manifest["files"][WEIGHTS],
        "rank_weight": "of validation" if weight is None else str(weight),
    }


def measured_weight(run: Run, retriever: Run, candidates: int) -> float | None:
    """What `recsys evaluate RANKER --rerank RETRIEVER` found best of these very weights; None for the ranker alone."""
    folder = run.reranking("test", retriever.name)
    wanted = stage_settings(run, retriever, candidates, None) | {"seen": run.prepared().seen}
    config = read_manifest(folder, "evaluate")["config"] if folder.exists() else {}
    told = ("candidates", "retriever_weights", "ranker_weights", "rank_weight", "seen")
    if any(config.get(name) != wanted[name] for name in told):
        raise ConfigError(
            f"{run.folder}: nothing says how much it should add to the best {candidates} scores of {retriever.folder}; "
            f"run `recsys evaluate {run.folder} --rerank {retriever.folder} --candidates {candidates}`, or give "
            "--rank-weight."
        )
    weight: float | None = json.loads((folder / REPORT).read_text(encoding="utf-8"))["weight"]
    if weight == 0:
        raise ConfigError(
            f"{run.folder}: adds nothing to {retriever.folder} (the best weight on the validation part is 0); serve "
            "the retriever alone, or give --rank-weight."
        )
    return weight


def check_pair(run: Run, retriever: Run) -> None:
    """A ranker that learned to correct one retriever, or a refit of that one, says nothing of another's lists."""
    corrected = earlier_run(run, "retriever")
    if corrected is None or retriever.manifest["files"][WEIGHTS] == run.config["retriever_weights"]:
        return
    same = ("name", "seed", "data", "model", "training")
    if retriever.fit_on == corrected.fit_on or any(retriever.config[key] != corrected.config[key] for key in same):
        raise ConfigError(
            f"{run.folder} learned to correct {corrected.folder} and says nothing of the lists of {retriever.folder}; "
            "name the first in its place, or its refit."
        )


def log_share(run: Run, prepared: Prepared) -> Float[Tensor, " V"]:
    """Logarithm of how often a run drew each item as a negative by popularity; one that it never drew counts as once.

    Zero where it drew a retriever's answers.
    """
    if "retriever" in run.config:
        return torch.zeros(prepared.catalog.num_rows)
    events = prepared.training_events(run.fit_on).of_users(run.config["training"]["user_share"])
    counts = torch.from_numpy(events.item_counts())
    return (counts.clamp(min=1) / counts.sum()).log()
