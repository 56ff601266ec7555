"""The ranker of a bundle of two stages, checked against torch on what the retriever would give it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from models.dare_graph import DAREGraph
from pipelines.loading import real_histories, run_ranker, run_scorer
from pipelines.reranking import added, check_pair, log_share, measured_weight
from pipelines.validation import CANDIDATES
from recsys.contracts import Ranker
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared
from recsys.ranker_export import check_ranker, write_ranker_files
from recsys.ranking import allowed_scores, top_k
from recsys.reranking import SHORTEST
from recsys.runs import Run
from recsys.stored_ranker import RankerCard, StoredRanker


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """How a bundle ranks: so many of the retriever's `candidates`, and what the ranker adds to their scores.

    `weight` None: what `recsys evaluate RANKER --rerank RETRIEVER` found best; inf: the ranker alone.
    """

    candidates: int = CANDIDATES
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError(f"export: --candidates {self.candidates} leaves nothing to rank; give at least 1.")
        if self.weight is not None and not self.weight >= 0:
            raise ConfigError(
                f"export: --rank-weight {self.weight} is what the ranker's scores are multiplied by before they are "
                "added; give a number from 0, or inf for the ranker alone."
            )


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
        shortest=SHORTEST,
        weight=measured_weight(run, retriever, ranking.candidates) if ranking.weight is None else added(ranking.weight),
    )
    return SecondStage(graph=graph, card=card, log_share=log_share(run, prepared))


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
