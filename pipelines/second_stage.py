"""The ranker of a bundle of two stages, checked against torch on what the retriever would give it."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from models.dare_graph import DAREGraph
from pipelines.loading import run_ranker, run_scorer
from pipelines.reranking import check_pair, log_share, measured_weight
from pipelines.validation import CANDIDATES
from recsys.batches import Histories
from recsys.contracts import Ranker
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared
from recsys.ranker_export import check_ranker, write_ranker_files
from recsys.ranking import allowed_scores, top_k
from recsys.reranking import SHORTEST
from recsys.runs import Run
from recsys.stored_ranker import RankerCard, StoredRanker

CHECKED_HISTORIES = 64


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """How a bundle ranks: see `recsys.stored_ranker.RankerCard`.

    `weight` None: what `recsys evaluate RANKER --rerank RETRIEVER` found best; inf: the ranker alone.
    """

    candidates: int = CANDIDATES
    shortest: int = SHORTEST
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """A ranker ready to be written."""

    graph: DAREGraph
    card: RankerCard
    log_share: Float[Tensor, " V"]


def second_stage(run: Run, retriever: Run, ranking: RankingConfig) -> SecondStage:
    """Of a ranker's run; everything that cannot be served is refused here, before anything is written."""
    prepared, first = run.prepared(), retriever.prepared()
    if prepared.fingerprint != first.fingerprint:
        raise DataError(
            f"export: {run.folder} was trained on {prepared.folder}, {retriever.folder} on {first.folder}; both stages "
            "of a bundle need the same prepared data."
        )
    check_pair(run, retriever)
    model: Any = run_ranker(run, prepared)
    try:
        graph = DAREGraph(model)
    except ConfigError as error:
        raise ConfigError(f"export: {run.folder}: {error}") from None
    card = RankerCard(
        name=model.config.method,
        config=run.config["model"],
        max_len=model.max_len,
        blocks=graph.blocks,
        least_places=graph.least_places,
        recent=graph.recent,
        candidates=ranking.candidates,
        shortest=ranking.shortest,
        weight=measured_weight(run, retriever) if ranking.weight is None else finite(ranking.weight),
    )
    return SecondStage(graph=graph, card=card, log_share=log_share(run, prepared))


def finite(weight: float) -> float | None:
    """None for the ranker alone."""
    return None if weight == inf else weight


def write_second_stage(folder: Path, stage: SecondStage, retriever: Run, prepared: Prepared) -> dict[str, Any]:
    """Writes and checks the ranker's files; what the manifest says of them."""
    write_ranker_files(folder, stage.graph, stage.card, stage.log_share.numpy())
    ranker: Ranker = stage.graph.model
    scorer = run_scorer(retriever, prepared)
    histories = real_histories(prepared, max(scorer.max_len, ranker.max_len))
    found = allowed_scores(scorer.scores(histories.latest(scorer.max_len)), None)
    candidates = top_k(found, min(stage.card.candidates, prepared.catalog.num_items)).items
    return {
        "ranker_difference": check_ranker(stage.graph, ranker, StoredRanker.load(folder), histories, candidates),
    }


def real_histories(prepared: Prepared, max_len: int) -> Histories:
    """Histories of as many lengths as there are, the shortest and the longest among them."""
    order = np.argsort(prepared.store.lengths, kind="stable")
    users = order[np.linspace(0, len(order) - 1, min(CHECKED_HISTORIES, len(order))).astype(np.int64)]
    return Histories.from_windows(prepared.store.windows(users, prepared.store.lengths[users], max_len))
