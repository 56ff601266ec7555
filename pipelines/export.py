"""`recsys export`: a run becomes a bundle, checked against torch before it appears."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.registry import ModelConfig
from pipelines.earlier_runs import earlier_run
from pipelines.evaluate import HEADLINE
from pipelines.export_ranker import RankingConfig, second_stage, write_second_stage
from pipelines.loading import no_history, real_histories, run_model, text_network
from recsys.approximate import IndexChoice, choose_index
from recsys.batches import Histories
from recsys.bundle import APPROXIMATE_INDEX, INDEX, TOKENIZER, Bundle, ModelCard, SentenceCard, open_bundle
from recsys.contracts import TrainableRetriever
from recsys.errors import ConfigError
from recsys.export import check_encoder, write_bundle_files
from recsys.index import FloatArray, ItemIndex
from recsys.item_sentences import attribute_names
from recsys.prepared import Prepared, SeenRule
from recsys.runs import REPORT, Run, open_run
from recsys.steps import writing_step

INDEX_QUERIES, BATCH = 1_000, 64


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of `recsys export`; `ranker` is the run of the second stage, if there is to be one, and how it ranks."""

    run: Path
    out: Path
    overwrite: bool = False
    index: IndexChoice = field(default_factory=IndexChoice)
    ranker: Path | None = None
    ranking: RankingConfig = field(default_factory=RankingConfig)

    def __post_init__(self) -> None:
        if self.ranker is None and self.ranking != RankingConfig():
            raise ConfigError("export: --candidates and --rank-weight say how to rank; name a --ranker.")


def export(config: ExportConfig) -> Bundle:
    """Writes and verifies a bundle."""
    run = open_run(config.run)
    prepared = run.prepared()
    resolved, model = run_model(run, prepared)
    if resolved.ranks or not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"export: {config.run} holds {run.model!r}, which has no vectors to search by; export a run of a retriever "
            "such as sasrec or bert4rec."
        )
    retriever: TrainableRetriever = model  # type: ignore[assignment]
    if retriever.reads_times:
        raise ConfigError(
            f"export: {config.run} has model.time_buckets={run.config['model']['time_buckets']}, and the service keeps "
            "no times of events yet; train with model.time_buckets=0 to serve."
        )
    fallback = no_history(prepared, run.fit_on)
    teacher_run = earlier_run(run, "teacher")
    reader_config, teacher = (resolved, None) if teacher_run is None else run_model(teacher_run, prepared)
    network = text_network(reader_config, prepared)
    if network is not None and network.identity != (known := (teacher_run or run).config["text_encoder"]):
        raise ConfigError(
            f"export: {config.run} was trained with the text encoder {known}, and {network.place} "
            f"is {network.identity}; bring the one of training, whose tokeniser the bundle takes along."
        )
    card = ModelCard(
        name=run.model,
        config=resolved.as_dict(),
        max_len=retriever.max_len,
        seen=prepared.seen,
        no_history=fallback.description,
        sentences=None if network is None else sentence_card(reader_config, prepared),
    )
    second = None if config.ranker is None else second_stage(open_run(config.ranker), run, config.ranking)
    inputs = [config.run] if config.ranker is None else [config.run, config.ranker]
    with writing_step("export", config.out, config=settings(config), inputs=inputs, overwrite=config.overwrite) as step:
        metrics = evaluation_metrics(run, prepared.seen)
        write_bundle_files(
            step.folder, retriever, card, prepared.catalog, prepared.items, fallback.scores.numpy(), metrics, teacher
        )
        if network is not None:
            network.plain_tokenizer.save(str(step.folder / TOKENIZER))
        difference = check_encoder(retriever, step.folder, real_histories(prepared, retriever.max_len), teacher)
        step.counts.update({
            "items": prepared.catalog.num_items,
            "width": int(retriever.item_vectors().shape[1]),
            "encoder_difference": difference,
            "mlflow_run_id": run.mlflow_run_id,
            "index": write_index(step.folder, config.index, retriever, prepared),
        })
        if second is not None:
            step.counts.update(write_second_stage(step.folder, second, run, prepared))
    return open_bundle(config.out)


def write_index(folder: Path, choice: IndexChoice, retriever: TrainableRetriever, prepared: Prepared) -> dict[str, Any]:
    """An index beside the exact one, where one is to be; what the manifest says of it."""
    exact = ItemIndex.load(folder / INDEX)
    if not choice.kinds(exact.num_items):
        return {"kind": "flat", "recall": 1.0}
    queries = encoded_histories(retriever, prepared)
    chosen = choose_index(choice, exact, queries)
    ItemIndex(chosen.index).save(folder / APPROXIMATE_INDEX)
    return chosen.as_dict() | {"queries": len(queries)}


@torch.no_grad()
def encoded_histories(retriever: TrainableRetriever, prepared: Prepared) -> FloatArray:
    """[B, D], what the service would be asked: histories of random users, the latest events of each."""
    users = np.flatnonzero(prepared.store.lengths > 0)
    users = np.random.default_rng(0).permutation(users)[:INDEX_QUERIES]
    batches = np.array_split(users, max(1, len(users) // BATCH))
    windows = [prepared.store.windows(part, prepared.store.lengths[part], retriever.max_len) for part in batches]
    return np.concatenate([retriever.encode(Histories.from_windows(part)).numpy() for part in windows])


def settings(config: ExportConfig) -> dict[str, Any]:
    """For the manifest."""
    second = {} if config.ranker is None else {"ranker": str(config.ranker), **asdict(config.ranking)}
    return {"run": str(config.run), "index": asdict(config.index), **second}


def sentence_card(model: ModelConfig, prepared: Prepared) -> SentenceCard:
    """How the model reads items that come later."""
    return SentenceCard(
        takes_new_items=model.values.item_matrix == "refreshed",
        attributes=attribute_names(prepared.items, model.values.attributes),
        max_attributes=model.values.max_attributes,
        attribute_tokens=model.values.attribute_tokens,
        temperature=model.values.temperature,
    )


def evaluation_metrics(run: Run, seen: SeenRule) -> dict[str, Any]:
    """The run's test report where it was evaluated by the rule it is served by; its validation figure in any case."""
    counts = run.manifest["counts"]
    metrics: dict[str, Any] = {"validation": {HEADLINE: counts[f"best_validation_{HEADLINE}"]}}
    path = run.evaluation("test") / REPORT
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return metrics | ({"test": report} if report.get("seen") == seen else {})
