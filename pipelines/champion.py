"""The champion as `recsys run` needs it: the run behind the bundle that an alias points at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.registry import COUNTED, is_student
from pipelines.pipeline_config import setting_texts
from recsys.errors import ConfigError, DataError
from recsys.registry import Holder, alias_holders
from recsys.runs import Run, open_run
from recsys.steps import describe_input


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A registered version and the run that its bundle was exported from."""

    version: str
    bundle: str
    run: Run

    @property
    def start(self) -> Run:
        """Whose weights a warm training begins with: of a refit the run it repeats, which has not learned from the
        validation events and so can be judged by them."""
        if self.run.fit_on == "train":
            return self.run
        return described_run(self.run.manifest["inputs"][1], f"{self.run.folder} repeats")

    def as_it_is(self) -> tuple[str, ...]:
        """Settings of a run of its very weights: all of its own, no epochs."""
        model = {f"model.{key}": value for key, value in self.run.config["model"].items() if key not in COUNTED}
        training = {f"training.{key}": value for key, value in self.run.config["training"].items()}
        return setting_texts(model | training | {"training.epochs": 0})


def find_champion(name: str, alias: str) -> Champion | None:
    """What the alias points at now, None where nothing is registered under it yet."""
    holders = alias_holders(name, alias)
    if not holders:
        return None
    what = f"models:/{name}@{alias} (version {holders[0].version})"
    if "ranker" in holders[0].manifest["config"]:
        raise ConfigError(f"run: {what} has two stages, and candidates of one stage stand here; use another alias.")
    run = described_run(exported(holders[0]), f"{what} was exported from")
    if is_student(run.model):
        raise ConfigError(
            f"run: {what} is a {run.model!r} run, which needs its teacher on new data; use another alias, or a model "
            "that is trained alone."
        )
    return Champion(version=holders[0].version, bundle=holders[0].bundle, run=run)


def exported(holder: Holder) -> dict[str, Any]:
    """Path and hash of the run that a bundle was made of."""
    entry: dict[str, Any] = holder.manifest["inputs"][0]
    return entry


def described_run(entry: dict[str, Any], what: str) -> Run:
    """The run that a manifest names, checked to be the same still."""
    folder = Path(entry["path"])
    if not folder.is_dir():
        raise DataError(
            f"run: {what} {folder}, which is gone, and the champion cannot be judged on new cases without; bring the "
            "folder back, move the alias (recsys register --rollback), or begin anew under another register.name."
        )
    if describe_input(folder)["sha256"] != entry["sha256"]:
        raise DataError(f"run: {what} {folder}, which was made anew since; move the alias, or register that run.")
    return open_run(folder)
