"""Lines of docs/results.md that come from a small record of their own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import results_page
from benchmarks.records import read_experiments
from benchmarks.results_page import cost_lines, weight_lines

COST = {
    "test_set_seconds": [2.0, 2.1],
    "threads_of_test_set": 2,
    "encode_milliseconds": [[0.4, 0.8], [0.5, 0.9]],
    "request_milliseconds": [[1.0, 2.0], [1.1, 2.2]],
    "items": 12101,
    "created": "2026-11-21T18:03:12+00:00",
    "commit": "3ea5b750cf3b65b54f07547791b821421fb00b4c",
}


def test_costs_stand_beside_those_without_reasoning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_page, "RECORDS", tmp_path)
    experiment = replace(read_experiments()[0], name="tiny")
    assert cost_lines(experiment) == []
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "reasoning-cost.json").write_text(json.dumps(COST), encoding="utf-8")
    lines = cost_lines(experiment)
    assert "exact search of 12101 items" in lines[1]
    assert lines[1].endswith("2026-11-21, commit 3ea5b750cf3b):")
    assert lines[-1] == "| 1 | 2.10 | +5.0 % | 1.100, 2.200 | +10.0 % | 0.500, 0.900 | +25.0 % |"


def test_weights_of_rankers_stand_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {("dare", 0): {"weight": 0.7}, ("dare", 1): {"weight": None}, ("sasrec", 0): {"seed": 0}}
    monkeypatch.setattr(results_page, "read_record", lambda _, model, seed: kept.get((model, seed)))
    models = {"sasrec": {"model": "sasrec"}, "dare": {"model": "dare", "over": "sasrec"}}
    (line,) = weight_lines(replace(read_experiments()[0], models=models))
    assert line.endswith("by seed: dare 0.7/alone.")
    assert weight_lines(replace(read_experiments()[0], models={"sasrec": models["sasrec"]})) == []
