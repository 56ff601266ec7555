"""`recsys sweep`: a search space becomes trials, and the best of them on the validation part a config file.

best.yaml   trials.csv   manifest.json   trials/NUMBER/ (the best run)   study.db (Optuna's storage)
"""

import csv
import fcntl
import io
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from pipelines.loading import run_scorer
from pipelines.reporter import Reporter
from pipelines.space import FIXED, Sections, Space, check_names, flat, read_space, resolved, with_settings
from pipelines.train import WATCHED, Plan, TrainConfig, make_plan, train, watched_cases, watched_metrics
from pipelines.trials import STORAGE, Figures, Trial, Trials, open_trials
from recsys import __version__
from recsys.errors import ConfigError, DataError, RecsysError
from recsys.prepared import Prepared
from recsys.runs import EPOCHS, Run, open_run
from recsys.steps import MANIFEST, Step, describe_input, git_commit, partial_folder, read_manifest, write_json
from recsys.training import TrainingConfig

BEST = "best.yaml"
TABLE = "trials.csv"
RUNS = "trials"
CURRENT = ".trial.yaml"
LOCK = ".lock"
NOT_HASHED = (MANIFEST, RUNS, STORAGE, CURRENT, LOCK)
HOPELESS = 3
"""So many failures, and nothing but failures, end a sweep."""
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of `recsys sweep`; `space` None means the one that comes with the model.

    `trials` and `seconds` count those of earlier calls too: the same command goes on, a larger number adds trials.
    """

    data: Path
    model: str
    out: Path
    space: Path | None = None
    trials: int = 50
    seconds: float | None = None
    preset: str | None = None
    config_file: Path | None = None
    settings: tuple[str, ...] = ()
    seed: int = 0
    keep_runs: bool = False

    def __post_init__(self) -> None:
        if self.trials < 1 or (self.seconds is not None and not self.seconds > 0):
            raise ConfigError(f"sweep: --trials {self.trials} and --seconds {self.seconds} must be above 0.")


@dataclass(frozen=True, kw_only=True)
class Search:
    """A sweep with every setting resolved; `base` is what trials share."""

    config: SweepConfig
    space: Space
    base: Sections
    prepared: Prepared

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "model": self.config.model,
            "data": self.prepared.fingerprint,
            "seed": self.config.seed,
            "keep_runs": self.config.keep_runs,
            "space": self.space.as_plain(),
            "settings": self.base,
        }

    def settings(self, trial: Trial) -> Sections:
        """Everything a trial is trained with."""
        sections = with_settings(self.base, trial.params, self.space.source)
        return resolved(self.config.model, sections, self.prepared.catalog.num_items)

    def inputs(self) -> list[Path]:
        """Files and folders that decided the search."""
        given = (self.config.data, self.config.space, self.config.config_file)
        return [path for path in given if path is not None]


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


def sweep(config: SweepConfig, reporter: Reporter) -> Sweep:
    """Trains trials until there are enough of them; an interrupted sweep goes on, with the trial it was in first.

    Only training events and validation cases are read.
    """
    search = make_search(config)
    with sweep_folder(search) as step, open_trials(config.out, search.space) as trials:
        write_results(search, step, trials.all())
        while (trial := next_trial(search, trials)) is not None:
            run_trial(search, trials, trial, reporter)
            write_results(search, step, trials.all())
        stop_if_hopeless(search, trials.all(), limit=1)
        return Sweep(config=config, manifest=read_manifest(config.out, "sweep"), trials=trials.all())


def make_search(config: SweepConfig) -> Search:
    """Preset, then the config file, then the space's fixed settings, then single settings; every value checked."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("sweep: runs in one process; start it without torchrun.")
    plan = make_plan(
        TrainConfig(
            data=config.data,
            model=config.model,
            out=config.out,
            preset=config.preset,
            config_file=config.config_file,
            settings=config.settings,
        )
    )
    space = read_space(config.space, config.model)
    given = {text.partition("=")[0] for text in config.settings}
    if both := sorted(given & space.searched.keys()):
        raise ConfigError(f"sweep: --set {both[0]} fixes what {space.source} searches; drop one of the two.")
    fixed = {name: value for name, value in space.fixed.items() if name not in given}
    num_items = plan.prepared.catalog.num_items
    sections = plan_sections(plan)
    check_names((*space.searched, *space.fixed), sections, space.source)
    base = resolved(config.model, with_settings(sections, fixed, f"{space.source}: {FIXED}"), num_items)
    space.check(config.model, base, num_items)
    return Search(config=config, space=space, base=base, prepared=plan.prepared)


def plan_sections(plan: Plan) -> Sections:
    """A plan's settings in the form of a config file."""
    found = {key: value for key, value in plan.as_dict().items() if key in {"model", "training"}}
    found["model"] = {key: value for key, value in found["model"].items() if key != "num_items"}
    return found


@contextmanager
def sweep_folder(search: Search) -> Iterator[Step]:
    """Holds the sweep's folder, new or of the same search."""
    out = search.config.out
    held = [name for name in os.listdir(out) if not name.startswith(".")] if out.exists() else []
    if held and MANIFEST not in held:
        raise DataError(f"sweep: {out} exists already and holds no sweep; choose another --out.")
    described = [describe_input(path) for path in search.inputs()]
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        step = Step(
            name="sweep",
            folder=out,
            config=search.as_dict(),
            inputs=described,
            seed=search.config.seed,
            scratch=NOT_HASHED,
        )
        if (out / MANIFEST).exists():
            check_same(search, read_manifest(out, "sweep"))
        else:
            write_json(out / MANIFEST, step.manifest())
        yield step


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other sweeps out of `folder`; a killed process lets go of it."""
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"sweep: another sweep is writing {folder}; wait for it to end.") from None
        yield


def check_same(search: Search, manifest: Mapping[str, Any]) -> None:
    """Trials of different searches cannot be compared, so only the same one may go on."""
    before, now = dict(flat(manifest["config"])), dict(flat(json.loads(json.dumps(search.as_dict()))))
    changes = [
        f"{name} was {before.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changes:
        more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        raise DataError(
            f"sweep: {search.config.out} holds a sweep of another search ({'; '.join(changes[:SHOWN])}{more}). Repeat "
            "its command to go on, or choose another --out."
        )


def next_trial(search: Search, trials: Trials) -> Trial | None:
    """The trial that was interrupted, or a new one; None where there are enough."""
    known = trials.all()
    for trial in known:
        if trial.state == "running":
            return trial
    stop_if_hopeless(search, known, limit=HOPELESS)
    spent = sum(trial.seconds for trial in known)
    enough = search.config.seconds is not None and spent >= search.config.seconds
    return None if enough or len(known) >= search.config.trials else trials.suggest(search.config.seed)


def stop_if_hopeless(search: Search, trials: Sequence[Trial], limit: int) -> None:
    """Raises the latest failure where there are `limit` of them and no success."""
    failed = [trial for trial in trials if trial.state == "failed"]
    if len(failed) >= limit and len(failed) == len(trials):
        raise DataError(
            f"sweep: no trial succeeded, all {len(failed)} failed; the last: {failed[-1].reason} "
            f"Change {search.space.source} or the data, and sweep into another --out."
        )


def run_trial(search: Search, trials: Trials, trial: Trial, reporter: Reporter) -> None:
    """Trains one trial, from its checkpoint where it has one, and records what it reached or why it failed."""
    name = f"sweep {search.config.model}: trial {trial.number}"
    reporter.say(f"{name} of {search.config.trials}: {words(trial.params)}")
    began = time.perf_counter()
    try:
        figures = figures_of(trained(search, trial, reporter), search.prepared)
    except (RecsysError, torch.OutOfMemoryError) as error:
        trials.fail(trial, str(error), round(time.perf_counter() - began, 3))
        reporter.say(f"{name} failed: {error}")
    else:
        trials.complete(trial, figures)
        reporter.say(f"{name}: validation {WATCHED} {figures.value:.4f}")


def trained(search: Search, trial: Trial, reporter: Reporter) -> Run:
    """The trial's run; one that had ended when the sweep was killed is taken as it is."""
    config, out = search.config, run_folder(search.config, trial)
    if out.exists():
        return open_run(out)
    settings = config.out / CURRENT
    write_text(settings, yaml.safe_dump(search.settings(trial), sort_keys=False))
    run = train(
        TrainConfig(
            data=config.data, model=config.model, out=out, config_file=settings, seed=config.seed, tracking=False
        ),
        reporter,
    )
    return run or open_run(out)


def run_folder(config: SweepConfig, trial: Trial) -> Path:
    """Where a trial is trained."""
    return config.out / RUNS / str(trial.number)


def figures_of(run: Run, prepared: Prepared) -> Figures:
    """The best epoch's validation figure; a model without epochs is ranked here."""
    counts = run.manifest["counts"]
    if "best_epoch" not in counts:
        return Figures(value=counting_figure(run, prepared), best_epoch=None, seconds=run.manifest["seconds"])
    lines = (run.folder / EPOCHS).read_text(encoding="utf-8").splitlines()
    return Figures(
        value=counts[f"best_validation_{WATCHED}"],
        best_epoch=counts["best_epoch"],
        seconds=counts["training_seconds"],
        by_epoch=[json.loads(line)[WATCHED] for line in lines],
    )


def counting_figure(run: Run, prepared: Prepared) -> float:
    """The watched metric on the validation cases that training would rank."""
    cases = watched_cases(prepared, TrainingConfig.validation_cases)
    return watched_metrics(run_scorer(run, prepared), prepared, cases)[WATCHED]


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


def write_text(path: Path, text: str) -> None:
    """Writes so that `path` is never seen half-written."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


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
