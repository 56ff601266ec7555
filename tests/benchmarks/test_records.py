"""Experiments name what exists, and a record goes with the settings it was made with."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import records
from benchmarks.records import EARLIER, Experiment, read_experiments, read_floors, read_record
from benchmarks.results_page import page
from models.registry import model_config, preset

EXPERIMENTS = read_experiments()
MODELS = [(entry, model) for entry in EXPERIMENTS for model in entry.models]


@pytest.mark.parametrize(("experiment", "model"), MODELS, ids=lambda part: getattr(part, "name", part))
def test_every_model_of_every_experiment_can_be_built(experiment: Experiment, model: str) -> None:
    options = experiment.models[model]
    for role in set(EARLIER) & options.keys():
        other, earlier = experiment.earlier(model, role)
        assert earlier in other.models
    assert options.get("against", model) in experiment.models
    if "refit" in options:
        assert experiment.models[options["refit"]]["model"] == options["model"]
        return
    model_config(options["model"], preset(options["model"], options.get("preset"))["model"], num_items=10_000)


def test_a_record_of_another_preset_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, model = next(
        (entry, model) for entry, model in MODELS if read_record(entry, model, 0) is not None and "refit" not in model
    )
    kept = preset(experiment.models[model]["model"], experiment.models[model].get("preset"))

    def changed(*_: Any) -> dict[str, Any]:
        return {**kept, "model": {**kept["model"], "dropout": 0.123}}

    monkeypatch.setattr(records, "preset", changed)
    assert read_record(experiment, model, 0) is None


def test_other_data_settings_make_another_hash() -> None:
    experiment = EXPERIMENTS[0]
    model = next(iter(experiment.models))
    other = replace(experiment, prepare={**experiment.prepare, "seen": "keep"})
    assert other.settings_hash(model) != experiment.settings_hash(model)


def test_a_table_whose_records_are_stale_keeps_its_floors() -> None:
    """Of other data there is no table at all."""
    experiment = next(entry for entry in EXPERIMENTS if read_floors(entry) is not None)
    models = {name: {**options, "set": ["model.dropout=0.123"]} for name, options in experiment.models.items()}
    section = page([replace(experiment, models=models)])
    assert "| markov (floor) |" in section
    assert section.endswith("No model has been run with today's settings yet.\n")
    assert read_floors(replace(experiment, prepare={**experiment.prepare, "seen": "keep"})) is None


def test_the_page_is_that_of_the_records() -> None:
    assert (records.HERE.parent / "docs" / "results.md").read_text(encoding="utf-8") == page(EXPERIMENTS)
