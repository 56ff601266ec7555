"""What an epoch is judged by: NDCG@10 of a retriever, by full ranking, and of a ranker that corrects one, by its lists;
AUC of a ranker by itself, on fixed negatives."""

from collections.abc import Callable

import polars as pl
import torch

from pipelines.loading import run_scorer
from pipelines.plan import Plan
from recsys.click_metrics import click_metrics
from recsys.clicks import ClickCases, click_scores
from recsys.contracts import CatalogScorer
from recsys.errors import DataError
from recsys.evaluation import mean_metrics, rank_cases
from recsys.prepared import Prepared
from recsys.ranking import RetrieverScorer
from recsys.reranking import Reranker
from recsys.retrieved import Retrieved
from recsys.training import Trainer

WATCHED = "ndcg@10"
WATCHED_CUTOFFS = (10,)
WATCHED_OF_RANKERS = "auc"
CANDIDATES = 500
"""Of a retriever, that a ranker puts in order."""


def watched_metric(plan: Plan) -> str:
    """Which figure decides the best epoch, and when to stop."""
    return WATCHED_OF_RANKERS if plan.model.ranks and plan.retriever is None else WATCHED


def validation(plan: Plan, trainer: Trainer) -> Callable[[], dict[str, float]]:
    """A function that judges the model as it is, by at most `training.validation_cases`."""
    cases = watched_cases(plan.prepared, plan.training.validation_cases)
    if plan.retriever is not None:
        judge = _list_figures(run_scorer(plan.retriever, plan.prepared), plan.prepared, trainer, cases)
    elif plan.model.ranks:
        judge = _click_figures(plan.prepared, trainer, cases)
    else:
        judge = _ranking_figures(plan.prepared, trainer, cases)

    def validate() -> dict[str, float]:
        trainer.model.eval()
        with torch.no_grad(), trainer.accelerator.autocast():
            return judge()

    return validate


def _ranking_figures(prepared: Prepared, trainer: Trainer, cases: pl.DataFrame) -> Callable[[], dict[str, float]]:
    def figures() -> dict[str, float]:
        scorer = RetrieverScorer(trainer.retriever, torch.zeros(prepared.catalog.num_rows))
        return watched_metrics(scorer, prepared, cases, trainer.device)

    return figures


def _click_figures(prepared: Prepared, trainer: Trainer, cases: pl.DataFrame) -> Callable[[], dict[str, float]]:
    clicks = ClickCases.of(cases, prepared.store, prepared.training_events().item_counts())

    def figures() -> dict[str, float]:
        ranker = trainer.ranker
        scores = click_scores(ranker.score, ranker.max_len, prepared.store, clicks, device=trainer.device)
        return click_metrics(*clicks.flat(scores))

    return figures


def _list_figures(
    retriever: CatalogScorer, prepared: Prepared, trainer: Trainer, cases: pl.DataFrame
) -> Callable[[], dict[str, float]]:
    lists = Retrieved.of(retriever, prepared, cases, CANDIDATES, prepared.seen)
    nothing, no_share = torch.zeros(lists.scores.shape), torch.zeros(prepared.catalog.num_rows)

    def figures() -> dict[str, float]:
        reranker = Reranker(trainer.ranker, CANDIDATES, no_share.to(trainer.device), weight=1.0)
        second = lists.second_scores(reranker, prepared, trainer.device)
        return {WATCHED: lists.ndcg(second, reranker), f"retriever_{WATCHED}": lists.ndcg(nothing, reranker)}

    return figures


def watched_cases(prepared: Prepared, most: int) -> pl.DataFrame:
    """The validation cases with a history; of more than `most` a fixed sample."""
    cases = prepared.cases("validation").filter(pl.col("history_length") > 0)
    if cases.is_empty():
        raise DataError(f"train: {prepared.folder} has no validation case with a history; prepare another split.")
    return cases.sample(most, seed=0) if len(cases) > most else cases


def watched_metrics(
    scorer: CatalogScorer, prepared: Prepared, cases: pl.DataFrame, device: torch.device | None = None
) -> dict[str, float]:
    """Means of every metric at the watched cutoffs."""
    ranked = rank_cases(
        scorer, prepared.store, cases, prepared.catalog.num_rows, prepared.seen, WATCHED_CUTOFFS, device
    )
    return mean_metrics(ranked.cases, WATCHED_CUTOFFS)
