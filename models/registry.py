"""Names of models: which class, which config. A new model adds its file, its preset and one line here."""

from dataclasses import asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.dare import DARE, DAREConfig
from models.hierarchical import Hierarchical, HierarchicalConfig
from models.item_knn import ItemKNN, ItemKNNConfig
from models.lite_llm4rec import LiteLLM4Rec, LiteLLM4RecConfig
from models.markov import Markov, MarkovConfig
from models.popularity import Popularity, PopularityConfig
from models.rearec import ReaRec, ReaRecConfig
from models.recformer import Recformer, RecformerConfig
from models.sasrec import SASRec, SASRecConfig
from models.text_similarity import TextSimilarity, TextSimilarityConfig
from models.tfidf import Tfidf, TfidfConfig
from recsys.errors import ConfigError

MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "popularity": (Popularity, PopularityConfig),
    "popularity-recent": (Popularity, PopularityConfig),
    "markov": (Markov, MarkovConfig),
    "item-knn": (ItemKNN, ItemKNNConfig),
    "tfidf": (Tfidf, TfidfConfig),
    "text-similarity": (TextSimilarity, TextSimilarityConfig),
    "sasrec": (SASRec, SASRecConfig),
    "bert4rec": (BERT4Rec, BERT4RecConfig),
    "rearec": (ReaRec, ReaRecConfig),
    "recformer": (Recformer, RecformerConfig),
    "hierarchical": (Hierarchical, HierarchicalConfig),
    "lite-llm4rec": (LiteLLM4Rec, LiteLLM4RecConfig),
    "dare": (DARE, DAREConfig),
}
COUNTED = ("num_items", "num_categories")
"""Settings that the data decides."""

ENOUGH_ITEMS = 1 << 20
"""For settings that are checked before any log is read: a catalogue that no sampled loss is too large for."""

FLOORS = ("popularity", "popularity-recent", "markov", "item-knn", "tfidf")


@dataclass(frozen=True)
class ModelConfig:
    """A model's name and its validated config (one of the config classes of `MODELS`)."""

    name: str
    values: Any

    @property
    def model_class(self) -> type[Any]:
        """The class that `values` configures."""
        return MODELS[self.name][0]

    @property
    def reads_sentences(self) -> bool:
        """Whether its class is a `SentenceReader`."""
        return hasattr(self.model_class, "learn_sentences")

    @property
    def has_teacher(self) -> bool:
        """Whether its class is a `Student`."""
        return is_student(self.name)

    @property
    def ranks(self) -> bool:
        """Whether its class is a `TrainableRanker`."""
        return is_ranker(self.name)

    def as_dict(self) -> dict[str, Any]:
        """For manifests, bundles and MLflow."""
        return asdict(self.values)


def is_student(name: str) -> bool:
    """Whether the model learns from another run."""
    return name in MODELS and hasattr(MODELS[name][0], "learn_from")


def is_ranker(name: str) -> bool:
    """Whether the model scores given candidates only."""
    return hasattr(MODELS[name][0], "score")


def answers_along(name: str) -> bool:
    """Whether the model is a `PrefixEncoder`."""
    return hasattr(MODELS[name][0], "prefix_vectors")


def preset(name: str, variant: str | None = None) -> dict[str, Any]:
    """A YAML preset, `NAME.yaml` or `NAME.VARIANT.yaml`: sections `model` and, for trained ones, `training`."""
    if name not in MODELS:
        raise ConfigError(f"no model {name!r}{_hint(name, MODELS)}; known are {', '.join(sorted(MODELS))}.")
    presets = files("models.presets")
    file = presets.joinpath(f"{name}.{variant}.yaml" if variant else f"{name}.yaml")
    if not file.is_file():
        known = [entry.name.split(".")[1] for entry in presets.iterdir() if entry.name.startswith(f"{name}.")]
        variants = sorted(set(known) - {"yaml"})
        raise ConfigError(f"model {name}: no preset {variant!r}; known are {', '.join(variants) or 'none'}.")
    sections: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return sections


def model_config(name: str, values: dict[str, Any], num_items: int, num_categories: int = 0) -> ModelConfig:
    """Validates the `model` section of a config; what the data counts is added where the model has it, never set."""
    config_class = MODELS[name][1]
    counts = dict(zip(COUNTED, (num_items, num_categories), strict=True))
    own = {key: count for key, count in counts.items() if key in {field.name for field in fields(config_class)}}
    for key in own.keys() & values.keys():
        raise ConfigError(f"model {name}: {key}={values[key]} cannot be set; it comes from the catalogue.")
    return ModelConfig(name, build_config(config_class, {**values, **own}, f"model {name}"))


def build_config(config_class: type[Any], values: dict[str, Any], where: str) -> Any:
    """An instance of a config dataclass; unknown keys and wrong types are errors that name the key."""
    types = get_type_hints(config_class)
    for key, value in values.items():
        if key not in types:
            raise ConfigError(f"{where}: no setting {key!r}{_hint(key, types)}; known are {', '.join(sorted(types))}.")
        if is_dataclass(types[key]):
            section = value if isinstance(value, dict) else {}
            build_config(types[key], section, f"{where}: {key}")
        # pydantic reads True as 1, and YAML reads yes and on as True.
        if isinstance(value, bool) and types[key] in {int, float, int | None, float | None}:
            raise ConfigError(f"{where}: {key}={value} is not usable: a number is needed, not true or false.")
    try:
        return TypeAdapter(config_class).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {key}={first['input']!r} is not usable: {first['msg'].lower()}.") from None


def _hint(given: str, known: Any) -> str:
    close = get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
