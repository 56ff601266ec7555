"""The nightly job for Dagster (extra `dagster`): `dagster dev -m pipelines.dagster_definitions`.

    dataset -> prepared -> candidate -> decision -> champion (only where the alias moves)

One run a day is one `recsys run` (pipelines.run_pipeline), whose lock, resumption, gate and retention hold here too.
A partition is the day whose logs a run brings in; what it reads are all log files that match, as always. A day whose
logs were read before, or never came, makes no asset anew: the decision becomes stale. Settings: `DagsterSettings`, from
the environment.
"""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.pipeline_config import PipelineConfig, load_pipeline
from pipelines.reporter import Reporter
from pipelines.run_pipeline import Outcome, run_pipeline
from recsys.errors import ConfigError

STEPS = ("dataset", "prepared", "candidate", "decision", "champion")
LINEAGE = {"dataset": "dataset", "prepared": "prepared", "candidate": "run", "champion": "bundle"}
"""Asset -> what a cycle's lineage calls it."""

NOT_REFUSED = "candidate_not_refused"
RETRIES, RETRY_SECONDS = 3, 300
A_NIGHT = timedelta(hours=12)
"""Before the deadline: a decision of earlier is not of this night."""


class DagsterSettings(BaseSettings):
    """`RECSYS_PIPELINE`: PIPELINE.yaml; `RECSYS_FIRST_DAY`: the first partition; `RECSYS_HOUR`, `RECSYS_MINUTE`: when
    the day before is run (UTC); `RECSYS_DEADLINE`: cron line of when it must be decided; from then on
    Dagster calls the decision stale."""

    model_config = SettingsConfigDict(env_prefix="RECSYS_")

    pipeline: Path
    first_day: date = date(2026, 1, 1)
    hour: int = 2
    minute: int = 15
    deadline: str = "0 8 * * *"


@dg.definitions
def defs() -> dg.Definitions:
    """What `dagster dev` and `dagster definitions validate` load."""
    try:
        settings = DagsterSettings()
    except ValidationError as error:
        raise ConfigError(
            f"dagster: set RECSYS_PIPELINE to the path of a PIPELINE.yaml (docs/pipeline.md): "
            f"{error.errors()[0]['msg']}."
        ) from None
    return definitions(load_pipeline(settings.pipeline), settings)


def definitions(config: PipelineConfig, settings: DagsterSettings) -> dg.Definitions:
    """Assets, their job and its schedule."""
    cycle = cycle_assets(config, settings)
    job = dg.define_asset_job(f"{config.name}_nightly", selection=dg.AssetSelection.assets(cycle))

    @dg.schedule(
        name=f"{config.name}_nightly_schedule",
        job=job,
        cron_schedule=f"{settings.minute} {settings.hour} * * *",
        execution_timezone="UTC",
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        day = (context.scheduled_execution_time - timedelta(days=1)).date().isoformat()
        return dg.RunRequest(run_key=day, partition_key=day)

    return dg.Definitions(assets=[cycle], jobs=[job], schedules=[nightly])


def key_of(config: PipelineConfig, name: str) -> dg.AssetKey:
    """Two pipelines' assets in one instance are told apart."""
    return dg.AssetKey([config.name, name])


def cycle_assets(config: PipelineConfig, settings: DagsterSettings) -> dg.AssetsDefinition:
    """What a cycle leaves behind, made by one call of the nightly job; a decision is due every day."""
    fresh = dg.FreshnessPolicy.cron(deadline_cron=settings.deadline, lower_bound_delta=A_NIGHT)

    @dg.multi_asset(
        name=f"{config.name}_cycle",
        specs=[
            dg.AssetSpec(
                key_of(config, name),
                deps=[key_of(config, before)] if before else [],
                skippable=True,
                freshness_policy=fresh if name == "decision" else None,
                description=f"{name} of the latest cycle of {config.name}",
            )
            for before, name in zip(("", *STEPS), STEPS, strict=False)
        ],
        check_specs=[dg.AssetCheckSpec(NOT_REFUSED, asset=key_of(config, "decision"))],
        partitions_def=dg.DailyPartitionsDefinition(settings.first_day.isoformat()),
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=dg.RetryPolicy(max_retries=RETRIES, delay=RETRY_SECONDS),
        pool=f"{config.name}_cycle",
    )
    def cycle(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        outcome = run_pipeline(config, Reporter())
        for sentence in outcome.sentences():
            context.log.info(sentence)
        yield from results(config, outcome)

    return cycle


def results(config: PipelineConfig, outcome: Outcome) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """An outcome in Dagster's words: where each asset that was made lies, with its hash, the decision, and whether the
    decision that stands refuses."""
    record = outcome.record
    if not outcome.nothing_new:
        yield from assets(config, record)
    yield dg.AssetCheckResult(
        asset_key=key_of(config, "decision"),
        check_name=NOT_REFUSED,
        passed=record["action"] != "refuse",
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"sentence": record["sentence"], "cycle": record["cycle"], "nothing_new": outcome.nothing_new},
    )


def assets(config: PipelineConfig, record: dict[str, Any]) -> Iterator[dg.MaterializeResult[Any]]:
    """What a cycle left behind; a champion only where the alias moved."""
    for name in STEPS:
        if name == "champion" and record["action"] != "replace":
            continue
        if name == "decision":
            found = {key: record[key] for key in ("action", "verdict", "sentence", "registry", "folder")}
            version = None
        else:
            found = {key: record["lineage"][LINEAGE[name]][key] for key in ("path", "sha256")}
            version = dg.DataVersion(found["sha256"])
        if name == "champion":
            found["registered_version"] = record["lineage"]["registered_version"]
        metadata = {"cycle": record["cycle"]} | found
        yield dg.MaterializeResult(asset_key=key_of(config, name), metadata=metadata, data_version=version)
