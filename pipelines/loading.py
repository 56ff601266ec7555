"""From a run on disk to something that scores: shared by `evaluate` and `export`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from models.popularity import Popularity, PopularityConfig
from models.registry import COUNTED, MODELS, ModelConfig, build_config, model_config, preset
from pipelines.reporter import Reporter
from recsys.batches import Histories
from recsys.contracts import CatalogScorer, Trainable, TrainableRanker
from recsys.errors import ConfigError, DataError
from recsys.item_categories import item_categories
from recsys.item_sentences import ItemSentences, attribute_names, item_attributes, item_sentences
from recsys.item_text import has_text, item_texts
from recsys.prepared import Prepared
from recsys.pretrained import Pretrained
from recsys.ranking import RetrieverScorer
from recsys.runs import WEIGHTS, Run
from recsys.splits import FitOn, Part
from recsys.text_encoder import encoder_shape, first_position, network_weights
from recsys.text_items import controlled
from recsys.text_vectors import SentenceEncoder, TextEncoder, default_store, named_encoder, text_vectors

CHECKED_HISTORIES = 64


@dataclass(frozen=True)
class NoHistory:
    """Scores [V] for users of whom nothing is known, and what they are."""

    description: str
    scores: torch.Tensor


def data_config(name: str, values: dict[str, Any], prepared: Prepared) -> ModelConfig:
    """Model settings with what the data counts."""
    default = getattr(MODELS[name][1], "category", None)
    categories = () if default is None else item_categories(prepared.items, values.get("category", default))
    num_categories = int(max(categories, default=0))
    return model_config(name, values, prepared.catalog.num_items, num_categories)


def stored_config(run: Run, prepared: Prepared) -> ModelConfig:
    """The model settings that a run was made with."""
    values = {key: value for key, value in run.config["model"].items() if key not in COUNTED}
    return data_config(run.model, values, prepared)


def run_model(run: Run, prepared: Prepared) -> tuple[ModelConfig, Any]:
    """The run's config and its model: a `Trainable` or a `CountingModel`."""
    config = stored_config(run, prepared)
    if not issubclass(config.model_class, torch.nn.Module):
        return config, config.model_class.from_arrays(config.values, load_arrays(run.folder / WEIGHTS))
    build: Any = config.model_class
    model: Trainable = build(config.values)
    model.load_state_dict(load_file(run.folder / WEIGHTS))
    return config, model.eval()


def run_ranker(run: Run, prepared: Prepared) -> TrainableRanker:
    """The run's model, checked to be a ranker."""
    config, model = run_model(run, prepared)
    if not config.ranks:
        raise ConfigError(f"{run.folder}: holds {run.model!r}, which is no ranker; name a run of dare.")
    return model


def run_scorer(run: Run, prepared: Prepared) -> CatalogScorer:
    """Scores the catalogue as the service does, histories without events included."""
    config, model = run_model(run, prepared)
    if config.ranks:
        raise ConfigError(
            f"{run.folder}: holds {run.model!r}, which ranks what another model has found; name a retriever's run here."
        )
    if isinstance(model, torch.nn.Module):
        return RetrieverScorer(model, no_history(prepared, run.fit_on).scores)  # type: ignore[arg-type]
    return model


def no_history(prepared: Prepared, fit_on: FitOn) -> NoHistory:
    """Popularity among the training events: of the latest tenth, or of all where the log has no times."""
    events = prepared.training_events(fit_on)
    recent = prepared.time == "timestamp"
    config = build_config(PopularityConfig, preset("popularity-recent" if recent else "popularity")["model"], "preset")
    scores = torch.from_numpy(Popularity.fit(config, events, prepared.items).counts)
    description = f"popularity, latest {config.share:.0%} of events" if recent else "popularity, all time"
    return NoHistory(description, scores)


def text_encoder(config: ModelConfig, prepared: Prepared) -> TextEncoder | None:
    """The encoder of a model whose items are frozen vectors of their texts, None for others."""
    values = config.values
    made_of = getattr(values, "items", "")
    if not hasattr(values, "text_encoder") or made_of == "table" or config.has_teacher or config.reads_sentences:
        return None
    if not has_text(prepared.items):
        other = f" for model.items={made_of} to be made of; set model.items=table, or" if made_of else ";"
        raise DataError(f"train: {prepared.folder} has no item text{other} ingest an item table with --items.")
    encoder = named_encoder(values.text_encoder, values.text_revision, values.text_pooling)
    if getattr(values, "item_llm", "frozen") != "frozen" and not isinstance(encoder, SentenceEncoder):
        raise ConfigError(
            f"train: model.item_llm={values.item_llm} trains the item LLM, and {values.text_encoder!r} is read over "
            "HTTP; set model.item_llm=frozen, or model.text_encoder to a folder."
        )
    return encoder


def text_network(config: ModelConfig, prepared: Prepared) -> Pretrained | None:
    """The pretrained network of a model that reads items as tokens, checked to have its sizes; None for others."""
    if not config.reads_sentences:
        return None
    pretrained = Pretrained(config.values.text_encoder, config.values.text_revision)
    shape = encoder_shape(pretrained.config)
    windowed = shape.pop("attention_window")
    if bool(windowed) != bool(config.values.attention_window):
        raise ConfigError(
            f"{config.name}: model.attention_window={config.values.attention_window}, and text encoder "
            f"{pretrained.place} was trained with {windowed or 'dense attention'}; another size will do."
        )
    if differing := {name: value for name, value in shape.items() if getattr(config.values, name) != value}:
        settings = " ".join(f"--set model.{name}={value}" for name, value in differing.items())
        raise ConfigError(f"{config.name}: text encoder {pretrained.place} has other sizes; give {settings}.")
    if not has_text(prepared.items):
        raise DataError(
            f"{prepared.folder} has no item text for {config.name} to read; ingest an item table with --items."
        )
    return pretrained


def sentences(config: ModelConfig, prepared: Prepared, pretrained: Pretrained) -> ItemSentences:
    """Tokens of all items, padding's row first."""
    names = attribute_names(prepared.items, config.values.attributes)
    attributes = item_attributes(prepared.items, names, config.values.max_attributes)
    return item_sentences(attributes, pretrained.plain_tokenizer, config.values.attribute_tokens)


def language(pretrained: Pretrained) -> dict[str, torch.Tensor]:
    """Weights of the pretrained network under our names."""
    return network_weights(pretrained.weights(), first_position(pretrained.config))


def text_features(prepared: Prepared, encoder: TextEncoder, values: Any, reporter: Reporter) -> torch.Tensor:
    """Vectors [V, F] of all items' texts, padding's first, as the model's config `values` want them; encoded once."""
    texts = texts_by_row(prepared)
    with reporter.task("encode item texts", len(texts)) as advance:
        vectors = text_vectors(texts, encoder, default_store(), advance)
    if (width := vectors.shape[1]) != values.text_width:
        raise ConfigError(
            f"train: model.text_width={values.text_width}, and the encoder's vectors have {width} numbers; set "
            f"model.text_width={width}."
        )
    return torch.from_numpy(controlled(vectors, values.text_control))


def texts_by_row(prepared: Prepared) -> list[str]:
    """Of each item row, padding's first."""
    return ["", *item_texts(prepared.items)]


def real_histories(prepared: Prepared, max_len: int) -> Histories:
    """Histories of as many lengths as there are, the shortest and the longest among them."""
    order = np.argsort(prepared.store.lengths, kind="stable")
    users = order[np.linspace(0, len(order) - 1, min(CHECKED_HISTORIES, len(order))).astype(np.int64)]
    return Histories.from_windows(prepared.store.windows(users, prepared.store.lengths[users], max_len))


def fit_floor(name: str, prepared: Prepared, part: Part) -> CatalogScorer:
    """A counting model on everything before the part: for `test`, validation events included."""
    config = model_config(name, preset(name)["model"], prepared.catalog.num_items)
    events = prepared.training_events("train" if part == "validation" else "train+validation")
    return config.model_class.fit(config.values, events, prepared.items)


def floors_for(prepared: Prepared, names: tuple[str, ...]) -> list[str]:
    """The floors that the data allows: no recent popularity without times, no TF-IDF without text."""
    impossible = {"popularity-recent"} if prepared.time == "order" else set()
    if not has_text(prepared.items):
        impossible.add("tfidf")
    return [name for name in names if name not in impossible]
