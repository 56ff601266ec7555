"""What `recsys sweep` leaves for people: the best settings, a table of trials, the best runs.

best.yaml   trials.csv   manifest.json   trials/NUMBER/ (the best run)
"""

import csv
import io
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from pipelines.search import Search, SweepConfig
from pipelines.trials import Trial
from pipelines.validation import WATCHED
from recsys import __version__
from recsys.steps import MANIFEST, Step, git_commit, partial_folder, write_json, write_text

BEST = "best.yaml"
TABLE = "trials.csv"
RUNS = "trials"
SHOWN = 10
"""So many trials are printed."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The output of `recsys sweep`, so far or at its end."""

    config: SweepConfig
    manifest: dict[str, Any]
    trials: Sequence[Trial]

    def ranking(self) -> list[Trial]:
        """Complete trials, best first; among equals the earliest."""
        return ranking(self.trials)

    def train_command(self) -> str:
        """What trains with the best settings."""
        words = ("train", self.config.data, "--model", self.config.model, "--config", self.config.out / BEST)
        rest = ("--seed", self.config.seed, "--out", f"runs/{self.config.model}")
        return shlex.join(["recsys", *map(str, words + rest)])

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        best = [asdict(trial) for trial in self.ranking()[:SHOWN]]
        return {"out": str(self.config.out), **self.manifest, "best_trials": best, "train": self.train_command()}


def write_results(search: Search, step: Step, trials: Sequence[Trial]) -> None:
    """The files that people read, each replaced whole; runs that are not wanted go."""
    best = next(iter(ranking(trials)), None)
    remove_runs(search.config, trials, best)
    write_text(step.folder / TABLE, trials_csv(search, trials))
    if best is not None:
        settings = yaml.safe_dump(search.settings(best), sort_keys=False)
        write_text(step.folder / BEST, f"{header(search, trials, best)}{settings}")
    step.counts.update(counts_of(trials, best))
    write_json(step.folder / MANIFEST, step.manifest())


def remove_runs(config: SweepConfig, trials: Sequence[Trial], best: Trial | None) -> None:
    """Deletes the runs of ended trials but the best one (with `keep_runs`: of failed ones only)."""
    for trial in trials:
        kept = trial.state == "complete" and (config.keep_runs or trial == best)
        if trial.state != "running" and not kept:
            folder = run_folder(config, trial)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(partial_folder(folder), ignore_errors=True)


def run_folder(config: SweepConfig, trial: Trial) -> Path:
    """Where a trial is trained."""
    return config.out / RUNS / str(trial.number)


def ranking(trials: Sequence[Trial]) -> list[Trial]:
    """Complete trials, best first; among equals the earliest."""
    complete = [trial for trial in trials if trial.value is not None]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def counts_of(trials: Sequence[Trial], best: Trial | None) -> dict[str, Any]:
    """For the manifest."""
    states = [trial.state for trial in trials]
    counts = {"trials": len(trials), "complete": states.count("complete"), "failed": states.count("failed")}
    seconds = {"trial_seconds": round(sum(trial.seconds for trial in trials), 3)}
    if best is None:
        return {**counts, **seconds}
    found = {"best_trial": best.number, "best_epoch": best.best_epoch, f"best_validation_{WATCHED}": best.value}
    return {**counts, **seconds, **found}


def trials_csv(search: Search, trials: Sequence[Trial]) -> str:
    """One row a trial; figures with all their digits."""
    columns = ("number", "state", WATCHED, "best_epoch", "epochs", "seconds", *search.space.searched, "reason")
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    for trial in trials:
        row = {**asdict(trial), WATCHED: trial.value, **trial.params}
        table.writerow({column: row[column] for column in columns})
    return text.getvalue()


def header(search: Search, trials: Sequence[Trial], best: Trial) -> str:
    """Where the settings come from, as comments."""
    config, counts = search.config, counts_of(trials, best)
    epoch = "" if best.best_epoch is None else f", epoch {best.best_epoch}"
    lines = (
        f"{config.model} on {config.data} (data {search.prepared.fingerprint[:12]}), recsys sweep over "
        f"{search.space.source}.",
        f"Best of {counts['complete']} trials ({counts['failed']} more failed), seed {config.seed}: trial "
        f"{best.number}{epoch}, validation {WATCHED} {best.value}.",
        f"{datetime.now(UTC).isoformat(timespec='seconds')}, recsys {__version__}, commit {git_commit() or 'unknown'}.",
    )
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)


def words(params: Mapping[str, Any]) -> str:
    """`dropout 0.2, loss.kind gbce`: sections left out."""
    return ", ".join(f"{name.partition('.')[2]} {shown(value)}" for name, value in params.items())


def shown(value: Any) -> str:
    """Four digits of a fraction, all else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def best_table(sweep: Sweep) -> Table:
    """The best trials, one row each."""
    counts = sweep.manifest["counts"]
    table = Table(title=f"{sweep.config.model}: best of {counts['complete']} trials, {counts['failed']} failed")
    trials = sweep.ranking()[:SHOWN]
    names = list(trials[0].params)
    for column in ("trial", WATCHED, "best epoch", "seconds", *(name.partition(".")[2] for name in names)):
        table.add_column(column, justify="right")
    for trial in trials:
        epoch = "-" if trial.best_epoch is None else str(trial.best_epoch)
        figures = (str(trial.number), f"{trial.value:.4f}", epoch, f"{trial.seconds:.1f}")
        table.add_row(*figures, *(shown(trial.params[name]) for name in names))
    return table
