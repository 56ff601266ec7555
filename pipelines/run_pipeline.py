"""`recsys run PIPELINE.yaml`: from log files to a decision about the champion, once for each content of the logs.

    ingest -> prepare -> train -> [refit] -> champion as it is -> evaluate -> decide -> [export -> register] -> record

Every stage writes one folder by one rename, and is left out where that folder was made of the same inputs: killed at
any instant and run again, a cycle ends as if it had not been.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from pipelines.champion import Champion, find_champion
from pipelines.cycle import RECORD, Cycle, Stage
from pipelines.cycle_steps import decision_of, lineage, stages_to_decision, stages_to_registry
from pipelines.explained import explained
from pipelines.notify import notify
from pipelines.pipeline_config import PipelineConfig
from pipelines.reporter import Reporter
from pipelines.retention import sweep, tidy
from pipelines.run_lock import one_at_a_time
from recsys.errors import LimitError
from recsys.runs import open_run
from recsys.steps import write_json

LOCK = "run.lock"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call came to: the cycle's record, and whether it was there before the call."""

    record: dict[str, Any]
    nothing_new: bool

    @property
    def refused(self) -> bool:
        """Whether this call's candidate was refused."""
        return not self.nothing_new and self.record["action"] == "refuse"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return self.record | {"nothing_new": self.nothing_new}

    def sentences(self) -> list[str]:
        """For people."""
        record = self.record
        if self.nothing_new:
            return [f"nothing new: cycle {record['cycle']} of {record['finished']} had these logs and settings."]
        lines = [f"cycle {record['cycle']}: {record['sentence']}"]
        if version := record["lineage"]["registered_version"]:
            lines.append(f"models:/{record['registry']} is version {version} ({record['lineage']['bundle']['path']})")
        if record["notification"] != "not asked for":
            lines.append(f"webhook: {record['notification']}")
        return lines


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What `--dry-run` says: the state of every step, and what would follow."""

    cycle: str
    logs: int
    champion: str
    steps: dict[str, str] = field(default_factory=dict)
    then: str = ""

    def sentences(self) -> list[str]:
        """For people."""
        steps = [f"  {name}: {state}" for name, state in self.steps.items()]
        return [f"cycle {self.cycle}: {self.logs} log files, champion {self.champion}", *steps, self.then]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def run_pipeline(config: PipelineConfig, reporter: Reporter) -> Outcome:
    """Runs what is missing of the cycle of the logs as they are now; errors go to the webhook too."""
    with one_at_a_time(config.work / LOCK):
        try:
            cycle = Cycle.of(config)
            record = cycle.record()
            if record is not None:
                return Outcome(record=record, nothing_new=True)
            return Outcome(record=run_cycle(cycle, reporter), nothing_new=False)
        except Exception as error:
            message = {"pipeline": config.name, "action": "failed", "sentence": explained(error)}
            notify(config.notify, message, reporter)
            raise


def run_cycle(cycle: Cycle, reporter: Reporter) -> dict[str, Any]:
    """All stages, then retention, webhook and, last of all, the record."""
    config = cycle.config
    if config.compare.report:
        import pipelines.comparison_report  # noqa: F401 - what it needs is missed before the work, not after
    champion = standing_champion(cycle)
    cycle.begin(champion)
    run_stages(stages_to_decision(cycle, champion, reporter), config, reporter)
    decision = decision_of(cycle)
    if decision.action == "replace":
        run_stages(stages_to_registry(cycle), config, reporter)
    record = {
        "cycle": cycle.name,
        "pipeline": config.name,
        "action": decision.action,
        "verdict": decision.comparison["verdict"],
        "sentence": decision.sentence,
        "warnings": [] if champion is None else overlaps(cycle, champion),
        "registry": f"{config.register.name}@{config.register.alias}",
        "folder": str(cycle.folder),
        "lineage": lineage(cycle, champion),
    }
    for warning in record["warnings"]:
        reporter.say(f"warning: {warning}")
    tidy(cycle.folder)
    if gone := sweep(config.work, cycle.folder, config.keep, config.register.name, config.register.alias):
        reporter.say(f"no longer kept: {', '.join(gone)}")
    message = {key: value for key, value in record.items() if key != "lineage"}
    record["notification"] = notify(config.notify, message, reporter)
    record["finished"] = datetime.now(UTC).isoformat(timespec="microseconds")
    write_json(cycle.folder / RECORD, record)
    return record


def standing_champion(cycle: Cycle) -> Champion | None:
    """What the alias points at; where that is this cycle's own bundle, what it pointed at before."""
    section = cycle.config.register
    champion, started = find_champion(section.name, section.alias), cycle.started()
    if champion is None or started is None or not cycle.registered_its_own(champion.bundle):
        return champion
    before = started["champion"]
    if before is None:
        return None
    return Champion(version=before["version"], bundle=before["bundle"], run=open_run(Path(before["run"])))


def run_stages(stages: Sequence[Stage], config: PipelineConfig, reporter: Reporter) -> None:
    """One after the other; done ones are left out."""
    for stage in stages:
        if stage.is_done():
            reporter.say(f"{stage.name}: done before")
            continue
        reporter.say(f"{stage.name} ...")
        began = time.perf_counter()
        attempt(stage, config, reporter)
        reporter.say(f"{stage.name}: {time.perf_counter() - began:.1f} s")


def attempt(stage: Stage, config: PipelineConfig, reporter: Reporter) -> None:
    """Does a stage, again where it fails, within its time."""
    with limited(stage.name, config.limit_minutes.get(stage.name)):
        for tried in range(config.retries + 1):
            try:
                stage.work()
                return
            except LimitError:
                raise
            except Exception as error:
                if tried == config.retries:
                    raise
                pause = config.retry_seconds * 2**tried
                reporter.say(f"{stage.name}: failed ({error}); again in {pause:g} s")
                time.sleep(pause)


@contextmanager
def limited(name: str, minutes: float | None) -> Iterator[None]:
    """Ends the block with an error when its time is up; a long call into native code is ended when it returns."""
    if minutes is None:
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a signal handler is given
        raise LimitError(
            f"run: {name} took longer than limit_minutes.{name}={minutes:g}; raise the limit, or give it less to do. "
            "Run again, it goes on where it can."
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def overlaps(cycle: Cycle, champion: Champion) -> list[str]:
    """Warnings where the champion has learned from events that it is judged by here: its figures flatter it."""
    part = cycle.config.compare.part
    begins = str(open_run(cycle.candidate).prepared().manifest["counts"][f"{part}_from"])
    known = "validation_from" if champion.run.fit_on == "train" else "test_from"
    learned_until = champion.run.prepared().manifest["counts"].get(known, "their end: its split has no instant")
    if learned_until <= begins:
        return []
    return [
        f"the champion has learned from events up to {learned_until}, and the {part} part begins {begins}: "
        f"late logs or other shares moved it back, and the champion's figures flatter it."
    ]


def forecast(config: PipelineConfig) -> Forecast:
    """What `run_pipeline` would do now; reads only."""
    cycle = Cycle.of(config)
    record = cycle.record()
    if record is not None:
        then = (
            f"nothing new: cycle {cycle.name} of {record['finished']} had these logs and settings; nothing would run."
        )
        return Forecast(cycle=cycle.name, logs=len(cycle.logs), champion=champion_text(record["lineage"]), then=then)
    champion = standing_champion(cycle)
    stages = stages_to_decision(cycle, champion, Reporter(quiet=True))
    steps: dict[str, str] = {}
    for stage in stages:
        fresh = all(state == "done" for state in steps.values())
        steps[stage.name] = stage.state() if fresh else "to do"
    return Forecast(
        cycle=cycle.name,
        logs=len(cycle.logs),
        champion="none yet" if champion is None else f"version {champion.version} ({champion.run.model})",
        steps=steps | after_decision(cycle, decided=all(state == "done" for state in steps.values())),
        then=what_would_follow(config, champion),
    )


def champion_text(lineage_of: dict[str, Any]) -> str:
    """The one a finished cycle was compared with."""
    compared = lineage_of["compared_with"]
    return "none then" if compared is None else f"version {compared['version']} then"


def after_decision(cycle: Cycle, decided: bool) -> dict[str, str]:
    """States of export and register."""
    stages = stages_to_registry(cycle)
    if not decided:
        return {stage.name: "only if the gate says yes" for stage in stages}
    if decision_of(cycle).action != "replace":
        return {stage.name: "not: the gate said no" for stage in stages}
    return {stage.name: stage.state() for stage in stages}


def what_would_follow(config: PipelineConfig, champion: Champion | None) -> str:
    """The gate in words."""
    target = f"{config.register.name}@{config.register.alias}"
    if champion is None:
        return f"models:/{target} would point at the candidate if it beats every floor."
    rails = len(config.compare.guardrails)
    return (
        f"models:/{target} would move from version {champion.version} to the candidate if that is better on the "
        f"{config.compare.part} cases and {rails} guardrails hold; exit code 3 if it is worse or one is broken."
    )
