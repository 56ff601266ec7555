"""Damaged logs end in datasets whose rows add up, or in clear errors."""

import pytest

from benchmarks import fuzz_ingest
from recsys import steps


def test_damaged_logs_are_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "git_commit", lambda: None)
    outcomes, findings = fuzz_ingest.fuzz(files=100, seed=0)
    assert not findings
    assert min(outcomes["dataset"], outcomes["error"]) > 10


def test_undamaged_logs_are_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "git_commit", lambda: None)
    monkeypatch.setattr(fuzz_ingest, "DAMAGES", {"none": lambda content, _: content})
    outcomes, _ = fuzz_ingest.fuzz(files=len(fuzz_ingest.clean_logs()), seed=0)
    assert outcomes == {"dataset": len(fuzz_ingest.clean_logs())}
