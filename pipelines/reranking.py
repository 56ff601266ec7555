"""Rankers judged by what they make of a retriever's lists, and how much they should add to its order."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.earlier_runs import earlier_run
from pipelines.loading import run_ranker, run_scorer
from pipelines.validation import watched_cases
from recsys.contracts import CatalogScorer
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared, SeenRule
from recsys.reranking import Reranker
from recsys.retrieved import Retrieved, best_weight
from recsys.runs import REPORT, Run

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


def two_stages(
    run: Run, retriever: Run, prepared: Prepared, candidates: int, seen: SeenRule, weight: float | None = None
) -> TwoStages:
    """A ranker's run over a retriever's; without a `weight` (inf: the ranker alone) the validation part decides."""
    check_pair(run, retriever)
    scorer = run_scorer(retriever, prepared)
    reranker = Reranker(run_ranker(run, prepared), candidates, log_share(run, prepared))
    if weight is not None:
        return TwoStages(scorer, replace(reranker, weight=None if weight == inf else weight), {})
    for known in (run, retriever):
        if known.fit_on != "train":
            raise DataError(
                f"{known.folder} was trained on the validation events, which can choose no weight then; give "
                "--rank-weight as it was best for the runs that these are refits of."
            )
    lists = Retrieved.of(scorer, prepared, watched_cases(prepared, WEIGHED_CASES), candidates, seen)
    by_weight = lists.by_weight(lists.second_scores(reranker, prepared), reranker)
    return TwoStages(scorer, replace(reranker, weight=best_weight(by_weight)), by_weight)


def measured_weight(run: Run, retriever: Run) -> float | None:
    """The weight that `recsys evaluate RANKER --rerank RETRIEVER` kept; None for the ranker alone."""
    path = run.reranking("test", retriever.name) / REPORT
    if not path.exists():
        raise ConfigError(
            f"{run.folder}: nothing says how much it should add to the scores of {retriever.folder}; run `recsys "
            f"evaluate {run.folder} --rerank {retriever.folder}` first, or give --rank-weight."
        )
    weight: float | None = json.loads(path.read_text(encoding="utf-8"))["weight"]
    if weight == 0:
        raise ConfigError(
            f"{run.folder}: adds nothing to {retriever.folder} (the best weight on the validation part is 0); serve "
            "the retriever alone, or give --rank-weight."
        )
    return weight


def check_pair(run: Run, retriever: Run) -> None:
    """A ranker that learned to correct one retriever says nothing of another's lists."""
    corrected = earlier_run(run, "retriever")
    if corrected is not None and corrected.folder.resolve() != retriever.folder.resolve():
        raise ConfigError(
            f"{run.folder} learned to correct {corrected.folder} and says nothing of the lists of "
            f"{retriever.folder}; name the first in its place."
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
