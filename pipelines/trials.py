"""The trials of a sweep in its folder's SQLite file; Optuna enters here alone.

A trial's parameters are a function of (seed, space, trials before it), never of the process: a sweep that was killed
and goes on tries what an undisturbed one tries.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipelines.space import Choices, Range, Space

STORAGE = "study.db"
STUDY = "sweep"
OUTCOME = "outcome"
STATES: Mapping[TrialState, Literal["running", "complete", "failed"]] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a training reached: the watched metric of its best epoch and of every epoch, and what it cost."""

    value: float
    best_epoch: int | None
    seconds: float
    by_epoch: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of parameters, and what became of it."""

    number: int
    state: Literal["running", "complete", "failed"]
    params: Mapping[str, Any]
    value: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Trials:
    """The trials of one sweep, on disk; every change is one transaction."""

    study: optuna.Study
    storage: RDBStorage
    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict)

    def all(self) -> list[Trial]:
        """By number."""
        return [trial_of(frozen) for frozen in self.study.get_trials(deepcopy=False)]

    def suggest(self, seed: int) -> Trial:
        """Begins the next trial, with parameters by TPE from those before it.

        They are drawn in memory and stored at once, so that no trial ever begins with half of its parameters.
        """
        earlier = self.study.get_trials(deepcopy=False)
        state = np.random.SeedSequence([seed, len(earlier)]).generate_state(1)
        memory = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=int(state[0])), study_name=STUDY
        )
        memory.add_trials(earlier)
        params = memory.ask(dict(self.distributions)).params
        self.study.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=dict(self.distributions))
        )
        return self.all()[-1]

    def complete(self, trial: Trial, figures: Figures) -> None:
        """Ends a trial with what it reached."""
        identity = self._identity(trial)
        for epoch, value in enumerate(figures.by_epoch, start=1):
            self.storage.set_trial_intermediate_value(identity, epoch, value)
        self.storage.set_trial_user_attr(
            identity, OUTCOME, {"best_epoch": figures.best_epoch, "seconds": figures.seconds}
        )
        self.study.tell(trial.number, figures.value)

    def fail(self, trial: Trial, reason: str, seconds: float) -> None:
        """Ends a trial that could not be trained."""
        self.storage.set_trial_user_attr(self._identity(trial), OUTCOME, {"reason": reason, "seconds": seconds})
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _identity(self, trial: Trial) -> int:
        study = self.storage.get_study_id_from_name(STUDY)
        return self.storage.get_trial_id_from_study_id_trial_number(study, trial.number)


@contextmanager
def open_trials(folder: Path, space: Space) -> Iterator[Trials]:
    """The trials kept in `folder`, none yet where it is new."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = quote(str((folder / STORAGE).resolve()))  # as a URI, since a path may hold a question mark
    storage = RDBStorage(f"sqlite:///file:{file}?uri=true")
    try:
        study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True)
        yield Trials(study, storage, {name: distribution(values) for name, values in space.searched.items()})
    finally:
        storage.remove_session()
        storage.engine.dispose()


def distribution(values: Range | Choices) -> BaseDistribution:
    """Optuna's word for the values of one setting."""
    if isinstance(values, Choices):
        return CategoricalDistribution(values.values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(float(values.low), float(values.high), log=values.log, step=values.step)


def trial_of(frozen: FrozenTrial) -> Trial:
    """Optuna's trial as ours."""
    return Trial(
        number=frozen.number,
        state=STATES[frozen.state],
        params={name: frozen.params[name] for name in sorted(frozen.params)},
        value=frozen.value,
        epochs=len(frozen.intermediate_values),
        **frozen.user_attrs.get(OUTCOME, {}),
    )
