"""The nightly job under Dagster: materialised, scheduled and validated for real (extra `dagster`)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import random_rows

dg = pytest.importorskip("dagster", reason="the extra `dagster` is not installed: pip install 'recsys[dagster]'")

from pipelines import dagster_definitions  # noqa: E402 - needs the extra
from pipelines.dagster_definitions import NOT_REFUSED, DagsterSettings, definitions, defs  # noqa: E402
from pipelines.pipeline_config import load_pipeline  # noqa: E402
from pipelines.run_pipeline import Outcome  # noqa: E402
from recsys.errors import ConfigError  # noqa: E402

DAY = "2026-11-21"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A shop whose candidate learns too little to beat the floors."""
    folder = tmp_path_factory.mktemp("shop")
    rows = random_rows(0, 30, 20, 400)
    lines = ["user_id,item_id,timestamp", *(f"{user},{item},{time // 10**6}" for user, item, time in rows)]
    (folder / "log.csv").write_text("\n".join(lines))
    content = {
        "name": "shop",
        "work": "work",
        "sources": ["log.csv"],
        "ingest": {"time_unit": "s"},
        "prepare": {"seen": "keep"},
        "train": {
            "model": "sasrec",
            "set": {"model.max_len": 4, "model.embedding_dim": 8, "model.num_blocks": 1, "training.epochs": 1},
            "tracking": False,
        },
        "compare": {"draws": 100, "report": False},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("DAGSTER_HOME", str(folder))
        (folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        yield folder / "pipeline.yaml"


@pytest.fixture
def shop(pipeline: Path) -> Any:
    """Its definitions."""
    return definitions(load_pipeline(pipeline), DagsterSettings(pipeline=pipeline))


def materialised(shop: Any) -> dict[str, dict[str, Any]]:
    """One day's run: asset -> metadata."""
    job = shop.resolve_job_def("shop_nightly")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(partition_key=DAY, instance=instance)
    assert result.success
    [check] = result.get_asset_check_evaluations()
    nothing_new = check.metadata["nothing_new"].value
    events = [event.materialization for event in result.get_asset_materialization_events()]
    assert all(event.partition == DAY for event in events)
    found = {event.asset_key.path[-1]: {key: value.value for key, value in event.metadata.items()} for event in events}
    return {
        **found,
        NOT_REFUSED: {"passed": check.passed, "severity": check.severity.value, "nothing_new": nothing_new},
    }


def test_a_day_is_one_cycle_and_a_second_run_does_nothing(shop: Any, pipeline: Path) -> None:
    found = materialised(shop)
    assert set(found) == {"dataset", "prepared", "candidate", "decision", NOT_REFUSED}, "no champion was made"
    assert found["decision"]["action"] == "refuse"
    assert "does not beat" in found["decision"]["sentence"]
    assert found[NOT_REFUSED] == {"passed": False, "severity": "WARN", "nothing_new": False}
    folder = pipeline.parent / "work" / found["decision"]["cycle"]
    assert found["candidate"]["path"] == str(folder / "runs" / "candidate")
    assert materialised(shop) == {NOT_REFUSED: found[NOT_REFUSED] | {"nothing_new": True}}, "no asset is made anew"


def test_a_new_champion_is_an_asset(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"path": "/somewhere", "sha256": "0" * 64}
    lineage = dict.fromkeys(("dataset", "prepared", "run", "bundle"), described) | {"registered_version": "7"}
    words = dict.fromkeys(("cycle", "verdict", "sentence", "registry", "folder", "notification"), "better")
    outcome = Outcome(record=words | {"finished": "then", "action": "replace", "lineage": lineage}, nothing_new=False)
    monkeypatch.setattr(dagster_definitions, "run_pipeline", lambda *_: outcome)
    found = materialised(shop)
    assert found["champion"]["registered_version"] == "7"
    assert found[NOT_REFUSED]["passed"]
    monkeypatch.setattr(dagster_definitions, "run_pipeline", lambda *_: replace(outcome, nothing_new=True))
    assert set(materialised(shop)) == {NOT_REFUSED}


def test_every_night_asks_for_the_day_before(shop: Any) -> None:
    schedule = shop.get_repository_def().get_schedule_def("shop_nightly_schedule")
    assert schedule.cron_schedule == "15 2 * * *"
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(
            instance, repository_def=shop.get_repository_def(), scheduled_execution_time=datetime(2026, 11, 22, 2, 15)
        )
        [request] = schedule.evaluate_tick(context).run_requests
    assert request.partition_key == DAY


def test_a_decision_is_due_every_morning(shop: Any) -> None:
    graph = shop.resolve_asset_graph()
    policies = {key.path[-1]: graph.get(key).freshness_policy for key in graph.get_all_asset_keys()}
    assert policies["decision"].deadline_cron == "0 8 * * *"
    assert policies["decision"].lower_bound_delta == timedelta(hours=12)
    assert [name for name, policy in policies.items() if policy is not None] == ["decision"]


def test_dagster_itself_finds_the_definitions_valid(pipeline: Path) -> None:
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "pipelines.dagster_definitions"]
    environment = os.environ | {"RECSYS_PIPELINE": str(pipeline), "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(
        command, cwd=pipeline.parent, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert process.returncode == 0, process.stderr
    assert "Validation successful for code location pipelines.dagster_definitions" in process.stdout + process.stderr


def test_a_pipeline_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_PIPELINE", raising=False)
    with pytest.raises(ConfigError, match=r"dagster: set RECSYS_PIPELINE to the path of a PIPELINE.yaml"):
        defs()
