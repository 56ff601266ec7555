"""What `recsys sweep` searches: data, space, and the settings that all trials share."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.registry import is_student
from pipelines.plan import Plan, TrainConfig, make_plan
from pipelines.space import FIXED, Sections, Space, check_names, read_space, resolved, with_settings
from pipelines.trials import Trial
from recsys.errors import ConfigError
from recsys.prepared import Prepared


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


def make_search(config: SweepConfig) -> Search:
    """Preset, then the config file, then the space's fixed settings, then single settings; every value checked."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("sweep: runs in one process; start it without torchrun.")
    if is_student(config.model):
        raise ConfigError(f"sweep: {config.model} learns from a teacher, which trials are not given; train it instead.")
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
    if plan.model.ranks:
        raise ConfigError(
            f"sweep: {config.model} is a ranker, and trials are compared by full ranking; train it instead."
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
