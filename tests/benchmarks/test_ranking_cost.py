"""The cost curve measures what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from benchmarks import ranking_cost
from benchmarks.ranking_cost import CASES, Case, in_turn, question


@torch.no_grad()
def test_parts_of_candidates_are_scored_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(Case("din"), 50)
    whole = asked.model.score(asked.histories, asked.candidates)
    monkeypatch.setattr(ranking_cost, "UNIT_SCORES", 50 * 120)
    assert_close(asked.score(), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_search_keeps_what_the_ranker_keeps() -> None:
    asked = question(Case("dare", 32), 60)
    lookup, priorities = asked.model.explain(asked.histories, asked.candidates)
    assert asked.search().shape == (1, 500, 20)
    assert torch.equal(asked.search(), priorities.topk(20, dim=2).indices)
    assert lookup.keys.shape == (1, 60, 64)
    assert question(Case("twin"), 60).model.tables_of["key"] == "representation"


def test_the_peak_of_memory_is_seen() -> None:
    """In a process of its own: memory that another test has freed would be taken again, and nothing would grow."""
    measured = "first_call(lambda: torch.ones(64 << 18)).mib"
    program = f"from benchmarks.ranking_cost import first_call, torch; print({measured})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(64, abs=16)


def test_what_takes_long_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"short": 0, "long": 0}

    def work(name: str) -> torch.Tensor:
        calls[name] += 1
        return torch.zeros(1)

    times = iter([9.0, 1.0, 7.0, 3.0, 5.0])
    monkeypatch.setattr(ranking_cost, "processor_seconds", lambda each: (each(), next(times))[1])
    works = {"long": lambda: work("long"), "short": lambda: work("short")}
    assert in_turn(works, {"long": 8.0, "short": 0.1}) == {"long": 8.0, "short": 5.0}
    assert calls == {"long": 0, "short": ranking_cost.REPEATS}


def test_the_command_writes_page_numbers_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking_cost, "REPEATS", 1)
    monkeypatch.setattr(ranking_cost, "WIDTH", 4)
    monkeypatch.setattr(ranking_cost, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(sys, "argv", ["ranking_cost", "--out", str(tmp_path), "--lengths", "30", "60"])
    ranking_cost.main()
    figures = json.loads((tmp_path / "ranking-cost.json").read_text())
    assert list(figures["score"]) == [case.name for case in CASES]
    assert figures["search"]["din"] == [None, None]
    assert all(value > 0 for value in figures["score"]["twin"])
    page = (tmp_path / "ranking-cost.md").read_text()
    assert "| dare, attention 32 |" in page
    assert "(ranking-cost.png)" in page
    assert (tmp_path / "ranking-cost.png").stat().st_size > 1000
