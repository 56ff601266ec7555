"""`recsys sweep`: a search space becomes trials, and the best of them on the validation part a config file.

The folder holds what sweep_results.py writes, and study.db (Optuna's storage).
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from pipelines.loading import run_scorer
from pipelines.plan import TrainConfig
from pipelines.reporter import Reporter
from pipelines.search import Search, SweepConfig, make_search
from pipelines.space import flat
from pipelines.sweep_results import RUNS, Sweep, run_folder, words, write_results
from pipelines.train import train
from pipelines.trials import STORAGE, Figures, Trial, Trials, open_trials
from pipelines.validation import WATCHED, watched_cases, watched_metrics
from recsys.errors import DataError, RecsysError
from recsys.prepared import Prepared
from recsys.runs import EPOCHS, Run, open_run
from recsys.steps import MANIFEST, Step, describe_input, read_manifest, write_json, write_text
from recsys.training import TrainingConfig

CURRENT = ".trial.yaml"
LOCK = ".lock"
NOT_HASHED = (MANIFEST, RUNS, STORAGE, CURRENT, LOCK)
MOST_CHANGES = 10
HOPELESS = 3
"""So many failures, and nothing but failures, end a sweep."""


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
        more = f"; and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
        raise DataError(
            f"sweep: {search.config.out} holds a sweep of another search ({'; '.join(changes[:MOST_CHANGES])}{more}). "
            "Repeat its command to go on, or choose another --out."
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
