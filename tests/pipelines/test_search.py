"""Spaces and options of `recsys sweep`: what is refused, what wins over what, and what is another search."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeping import COUNTING, config_of, outcomes, space_file, swept
from tiny import tiny_prepared

from models.registry import preset
from pipelines.space import Choices, Space, read_space, resolved
from pipelines.sweep_results import Sweep
from recsys.errors import ConfigError, DataError
from recsys.prepared import Prepared


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """37 users, 31 items, leave-one-out."""
    return tiny_prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def counted(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Four trials of item-KNN, which are quick."""
    return swept(config_of(prepared, tmp_path_factory.mktemp("counted"), COUNTING, trials=4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model.dropuot": [0.1]}, r"space.yaml: no setting 'model.dropuot' \(did you mean 'model.dropout'\?\)"),
        ({"optimizer.rate": [0.1]}, "space.yaml: no setting 'optimizer.rate'"),
        ({"model.loss.knd": ["softmax"]}, r"no setting 'model.loss.knd' \(did you mean 'model.loss.kind'\?\)"),
        ({"model.loss": ["softmax"]}, "no setting 'model.loss'"),
        ({"model.num_items": [5]}, "no setting 'model.num_items'"),
        ({"model.loss.kind": ["softmax", "hinge"]}, "model.loss.kind=hinge cannot be used: .*'hinge' is not usable"),
        ({"dropout": [0.1]}, "'dropout' is no setting; expected section.key"),
        ({"model.dropout": 0.1}, "model.dropout: 0.1 is neither a list of choices nor a range"),
        ({"model.dropout": {"low": 0.1}}, r"model.dropout: \{'low': 0.1\} is neither"),
        ({"model.dropout": {"low": 0.5, "high": 0.1}}, "model.dropout: low=0.5 must be below high=0.1"),
        ({"model.dropout": {"low": 0.5, "high": 1.5}}, r"model.dropout=1.5 cannot be used: .*must lie in \[0, 1\)"),
        ({"model.dropout": {"low": 0.0, "high": 0.5, "log": True}}, "logarithmic range cannot begin at low=0.0"),
        ({"model.dropout": {"low": 0.0, "high": 0.5, "step": 0.2}}, "step=0.2 must lead from low=0.0 to high=0.5"),
        ({"model.dropout": {"low": 0.1, "high": 0.5, "step": 0.1, "log": True}}, "step=0.1 has no meaning"),
        ({"model.dropout": {"low": 0.1, "high": 0.5, "base": 2}}, "model.dropout: range: no setting 'base'"),
        ({"model.dropout": {"low": "little", "high": 0.5}}, "low='little' must be a number"),
        ({"model.dropout": {"low": False, "high": 0.5}}, "low=False must be a number"),
        ({"model.num_blocks": {"low": 1.0, "high": 3.0}}, r"num_blocks=2.2\d* cannot be used: .*valid integer"),
        ({"model.dropout": []}, "choices must be single values, at least one"),
        ({"model.dropout": [0.1, 0.1]}, r"a choice stands twice in \[0.1, 0.1\]"),
        ({"model.loss": [{"kind": "gbce"}]}, "choices must be single values, .* not {'kind': 'gbce'}"),
        ({"fixed": {"training.epochs": 2}}, "names no setting to search"),
        ({"fixed": [1], "model.dropout": [0.1]}, r"'fixed' must map settings to values, not \[1\]"),
        ({"fixed": {"model.loss.knd": 2}, "model.norm": ["pre"]}, "no setting 'model.loss.knd'"),
        ({"fixed": {"model.dropout": 2}, "model.norm": ["pre"]}, "dropout=2.0 must lie in"),
        ({"fixed": {"model.dropout": 0.1}, "model.dropout": [0.1]}, "model.dropout is both searched and fixed"),
        ("- model.dropout", "must hold sections .* not a list"),
        ("model.dropout: [0.1", "not valid YAML"),
    ],
)
def test_unusable_spaces_are_refused_before_anything_is_written(
    prepared: Prepared, tmp_path: Path, content: Any, message: str
) -> None:
    config = config_of(prepared, tmp_path, content, model="sasrec")
    with pytest.raises(ConfigError, match=message):
        swept(config)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ("model.decay=0.5",)}, "--set model.decay=?.* fixes what .*space.yaml searches"),
        ({"settings": ("model.dacay=0.5",)}, "no setting 'dacay'"),
        ({"model": "markov", "space": None}, "no search space comes with 'markov'; write one"),
        ({"model": "markof"}, "no model 'markof'"),
        ({"trials": 0}, "--trials 0 .* must be above 0"),
        ({"seconds": 0.0}, "--seconds 0.0 must be above 0"),
        ({"space": Path("nowhere.yaml")}, "nowhere.yaml: no such config file"),
    ],
)
def test_unusable_options_are_refused(
    prepared: Prepared, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        swept(config_of(prepared, tmp_path, COUNTING, **options))
    assert not (tmp_path / "sweep").exists()


def test_values_that_suit_only_some_of_the_others_are_allowed(prepared: Prepared) -> None:
    """Three heads cannot share the preset's 64 numbers, but the 48 that are searched with them."""
    base = resolved("sasrec", preset("sasrec"), prepared.catalog.num_items)
    width, heads = Choices((48, 64)), Choices((3, 4))
    both = Space(source="both", searched={"model.embedding_dim": width, "model.num_heads": heads})
    both.check("sasrec", base, prepared.catalog.num_items)
    with pytest.raises(ConfigError, match=r"alone: model.num_heads=3 cannot be used: .*embedding_dim=64"):
        Space(source="alone", searched={"model.num_heads": heads}).check("sasrec", base, prepared.catalog.num_items)


def test_single_settings_win_over_fixed_ones_and_those_over_the_file(prepared: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {max_len: 3, neighbours: 3}", encoding="utf-8")
    space = {"fixed": {"model.max_len": 5, "model.neighbours": 5}, "model.decay": [0.5]}
    options = {"model": "item-knn", "config_file": file, "settings": ("model.neighbours=7",), "trials": 1}
    result = swept(config_of(prepared, tmp_path, space, **options))
    assert yaml.safe_load((result.config.out / "best.yaml").read_text()) == {
        "model": {"max_len": 5, "neighbours": 7, "decay": 0.5}
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, r"\(seed was 0, is 1\)"),
        ({"keep_runs": True}, r"\(keep_runs was False, is True\)"),
        ({"settings": ("model.max_len=7",)}, r"\(settings.model.max_len was 20, is 7\)"),
        (
            {"space": {**COUNTING, "model.neighbours": [5, 10]}},
            r"space.model.neighbours was \[5, 10, 20\], is \[5, 10\]",
        ),
        ({"space": {**COUNTING, "model.max_len": [5, 10]}}, r"space.model.max_len was absent, is \[5, 10\]"),
        ({"space": {**COUNTING, "model.decay": {"low": 0.2, "high": 1.0}}}, "space.model.decay.low was 0.1, is 0.2"),
        ({"model": "popularity", "space": {"model.share": [0.1]}}, "model was item-knn, is popularity"),
        ({"data": 20}, r"\(data was \w+, is \w+\)"),
    ],
)
def test_another_search_does_not_go_on_in_the_same_folder(
    counted: Sweep, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = counted.config.out
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    if "space" in options:
        options |= {"space": space_file(tmp_path, options["space"])}
    if "data" in options:
        options |= {"data": tiny_prepared(tmp_path, num_users=options["data"]).folder}
    with pytest.raises(DataError, match=f"sweep holds a sweep of another search .*{message}.* or choose another --out"):
        swept(replace(counted.config, trials=5, **options))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_the_order_of_a_space_has_no_effect(prepared: Prepared, counted: Sweep, tmp_path: Path) -> None:
    turned = yaml.safe_dump(dict(reversed(COUNTING.items())), sort_keys=False)
    assert list(COUNTING) == sorted(COUNTING)
    assert outcomes(swept(config_of(prepared, tmp_path, turned, trials=2))) == outcomes(counted)[:2]


@pytest.mark.parametrize(
    "model",
    [entry.name.removesuffix(".yaml") for entry in files("models.sweeps").iterdir() if entry.name[-5:] == ".yaml"],
)
def test_the_spaces_that_come_along_fit_their_models(model: str) -> None:
    space = read_space(None, model)
    base = resolved(model, preset(model), num_items=12_101)
    space.check(model, base, num_items=12_101)
    assert {"model.dropout", "model.loss.kind", "training.learning_rate"} <= space.searched.keys()
