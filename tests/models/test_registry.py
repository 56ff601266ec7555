"""Names, presets and settings of models; every model has all it needs."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import events_of, histories_of, item_table
from torch import nn

from models.registry import FLOORS, MODELS, build_config, is_ranker, model_config, preset
from pipelines.settings import deep_merged
from recsys.contracts import CountingModel, TrainableRanker, TrainableRetriever
from recsys.errors import ConfigError
from recsys.layers import Dropout
from recsys.losses import LossConfig
from recsys.training import TrainingConfig

HERE = Path(__file__).parent
PRESETS = [
    tuple(path.name.removesuffix(".yaml").partition(".")[::2])
    for path in sorted((HERE.parent.parent / "models" / "presets").glob("*.yaml"))
]


def contracts_of(model_class: type[Any]) -> list[str]:
    """Contracts that the classes of the model's own test file subclass, and that set `make`."""
    file = HERE / f"test_{model_class.__module__.removeprefix('models.')}.py"
    return [
        base.id
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(getattr(part, "name", "") == "make" for part in node.body)
        for base in node.bases
        if isinstance(base, ast.Name)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_preset_and_keeps_a_contract(name: str) -> None:
    model_class = MODELS[name][0]
    sections = preset(name)
    if issubclass(model_class, nn.Module):
        assert sections.keys() == {"model", "training"}
        retriever = any(contract.endswith("RetrieverContract") for contract in contracts_of(model_class))
        assert retriever or is_ranker(name)
    else:
        assert sections.keys() == {"model"}
        assert "CountingModelContract" in contracts_of(model_class)


@pytest.mark.parametrize(("name", "variant"), PRESETS)
def test_every_preset_can_be_built(name: str, variant: str) -> None:
    sections = preset(name, variant or None)
    config = model_config(name, sections["model"], num_items=43)
    if "training" in sections:
        assert isinstance(build_config(TrainingConfig, sections["training"], "training"), TrainingConfig)
        model = config.model_class(config.values)
        if config.ranks:
            assert isinstance(model, TrainableRanker)
            assert model.score(histories_of([[3]]), torch.tensor([[5, 43]])).shape == (1, 2)
        else:
            assert isinstance(model, TrainableRetriever)
            assert model.item_vectors().shape[0] == 44
    else:
        model = config.model_class.fit(config.values, events_of([[3, 1], [2]], num_rows=44), item_table(43))
        assert isinstance(model, CountingModel)
        assert model.scores(histories_of([[3]])).shape == (1, 44)
    assert deep_merged(config.as_dict(), sections["model"]) == config.as_dict()


def test_floors_are_counting_models() -> None:
    assert not any(issubclass(MODELS[name][0], nn.Module) for name in FLOORS)


def test_the_catalogue_decides_the_number_of_items() -> None:
    """A config that says otherwise would misalign the table with the catalogue."""
    assert model_config("sasrec", {}, 43).values.num_items == 43
    for given in (7, 43):
        with pytest.raises(ConfigError, match=f"model sasrec: num_items={given} cannot be set; it comes from the cat"):
            model_config("sasrec", {"num_items": given}, 43)
    with pytest.raises(ConfigError, match="model markov: no setting 'num_items'"):
        model_config("markov", {"num_items": 7}, 43)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sasrek", r"no model 'sasrek' \(did you mean 'sasrec'\?\); known are bert4rec, dare, hierarchical, "),
        ("nothing-like-it", "no model 'nothing-like-it'; known are"),
    ],
)
def test_an_unknown_model_is_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preset(name)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="model sasrec: no preset 'huge'; known are beauty, demo, ml-1m, sports, yelp"
    ):
        preset("sasrec", "huge")
    with pytest.raises(ConfigError, match="model markov: no preset 'demo'; known are none"):
        preset("markov", "demo")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dropuot": 0.1}, r"model sasrec: no setting 'dropuot' \(did you mean 'dropout'\?\); known are .*max_len"),
        ({"max_len": "long"}, "model sasrec: max_len='long' is not usable: .*valid integer"),
        ({"max_len": 1.5}, "model sasrec: max_len=1.5 is not usable: .*integer"),
        ({"dropout": None}, "model sasrec: dropout=None is not usable: .*valid number"),
        ({"embedding_dim": [64]}, r"model sasrec: embedding_dim=\[64\] is not usable"),
        ({"num_blocks": True}, "model sasrec: num_blocks=True is not usable: a number is needed"),
        ({"num_heads": 5}, "embedding_dim=64 cannot be split over num_heads=5"),
        ({"norm": "after"}, "model sasrec: norm='after' is not usable: .*'pre', 'post' or 'both'"),
        ({"positions": "sine"}, "model sasrec: positions='sine' is not usable: .*'learned', 'rotary' or 'none'"),
        ({"time_buckets": "log"}, "model sasrec: time_buckets='log' is not usable: .*valid integer"),
        ({"loss": "gbce"}, "model sasrec: loss='gbce' is not usable"),
        ({"loss": {"kind": "hinge"}}, "model sasrec: loss: kind='hinge' is not usable: .*'softmax'"),
        ({"loss": {"negatives": "many"}}, "model sasrec: loss: negatives='many' is not usable: .*valid integer"),
        ({"loss": {"negatives": 1}}, "LossConfig: negatives=1 must be at least 2"),
        (
            {"loss": {"negatives": True}},
            "model sasrec: loss: negatives=True is not usable: a number is needed, not true or false",
        ),
        ({"loss": {"calibration": 2}}, r"LossConfig: calibration=2\S* must lie in \[0, 1\]"),
        ({"loss": {"knid": "gbce"}}, r"model sasrec: loss: no setting 'knid' \(did you mean 'kind'\?\)"),
    ],
)
def test_unusable_settings_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config("sasrec", values, 43)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
@pytest.mark.parametrize(
    ("setting", "value", "bounds"),
    [
        ("embedding_dim", -2, "at least 1"),
        ("embedding_dim", 0, "at least 1"),
        ("num_heads", 0, "at least 1"),
        ("num_heads", -2, "at least 1"),
        ("ffn_dim", 0, "at least 1"),
        ("num_blocks", -1, "at least 0"),
        ("recency", -0.5, "at least 0"),
        ("recency", float("nan"), "at least 0"),
        ("dropout", -0.1, r"in \[0, 1\)"),
        ("dropout", 1, r"in \[0, 1\)"),
        ("dropout", float("nan"), r"in \[0, 1\)"),
    ],
)
def test_a_transformer_is_refused_what_it_cannot_be_built_from(
    name: str, setting: str, value: float, bounds: str
) -> None:
    with pytest.raises(ConfigError, match=rf"Config: {setting}={value}\S* must (be|lie) {bounds}"):
        model_config(name, {setting: value}, 43)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_transformer_may_have_no_block_and_no_dropout(name: str) -> None:
    config = model_config(name, {"num_blocks": 0, "dropout": 0}, 43)
    assert config.model_class(config.values).item_vectors().shape[0] == 44


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_loss_is_a_section_of_its_model(name: str) -> None:
    config = model_config(name, {"loss": {"kind": "gbce", "negatives": 7}}, 43)
    assert config.values.loss == LossConfig(kind="gbce", negatives=7)
    assert config.as_dict()["loss"] == {
        "kind": "gbce",
        "negatives": 7,
        "sampling": "uniform",
        "log_q": True,
        "calibration": 0.75,
    }
    again = model_config(name, {key: value for key, value in config.as_dict().items() if key != "num_items"}, 43)
    assert again == config


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_more_negatives_than_items_are_refused_with_the_settings(name: str) -> None:
    with pytest.raises(ConfigError, match="loss: 44 distinct negatives cannot be drawn from 43 items"):
        model_config(name, {"loss": {"kind": "sampled-softmax", "negatives": 44}}, 43)


@dataclass(frozen=True)
class Switches:
    """A config with a truth value and a choice of kinds."""

    on: bool = False
    width: int | None = None


def test_truth_values_are_for_switches_alone() -> None:
    assert build_config(Switches, {"on": True}, "here") == Switches(on=True)
    with pytest.raises(ConfigError, match="here: width=False is not usable: a number is needed, not true or false"):
        build_config(Switches, {"width": False}, "here")


def test_a_choice_lists_what_may_be_chosen() -> None:
    with pytest.raises(ConfigError, match=r"training: schedule='linear' is not usable: .*'constant' or 'cosine'"):
        build_config(TrainingConfig, {"schedule": "linear"}, "training")


def test_settings_reach_the_model() -> None:
    values = {"embedding_dim": 10, "num_blocks": 3, "num_heads": 5, "ffn_dim": 12, "max_len": 9, "dropout": 0.25}
    config = model_config("sasrec", values, 43)
    assert config.as_dict().items() >= (values | {"num_items": 43, "norm": "pre", "positions": "learned"}).items()
    shapes = {name: tuple(weight.shape) for name, weight in config.model_class(config.values).named_parameters()}
    assert shapes["items.weight"] == (44, 10)
    assert shapes["positions.weight"] == (9, 10)
    assert shapes["blocks.blocks.2.ffn.inner.weight"] == (12, 10)
    dropouts = {part.rate for part in config.model_class(config.values).modules() if isinstance(part, Dropout)}
    assert dropouts == {0.25}
