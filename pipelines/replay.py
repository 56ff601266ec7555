"""What `recsys backtest` replays: a log in periods, the policies to follow, and the settings to follow them with."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch

from models.registry import FLOORS, MODELS, build_config, is_ranker, is_student, model_config, preset
from pipelines.prepare import instant, seen_rule
from pipelines.settings import merge, parse_setting, read_yaml
from recsys.cleaning import repeated_events
from recsys.errors import ConfigError, DataError
from recsys.item_text import has_text
from recsys.periods import Period, cut_periods, period_length
from recsys.prepared import SeenRule
from recsys.schema import Dataset, open_dataset
from recsys.steps import describe_input
from recsys.training import TrainingConfig

POLICIES = ("never", "warm", "cold")
"""A model of before the first period; the last one trained on; one trained from scratch."""

FIRST, PREPARED = "first", "prepared"


@dataclass(frozen=True, kw_only=True)
class BacktestConfig:
    """Settings of `recsys backtest`; `settings` are texts `section.key=value`, `warm_settings` those of warm trainings
    over them. No policies: all that the model can follow."""

    dataset: Path
    out: Path
    model: str
    every: str
    policies: tuple[str, ...] = ()
    floors: bool = True
    begin: str | None = None
    end: str | None = None
    preset: str | None = None
    config_file: Path | None = None
    settings: tuple[str, ...] = ()
    warm_settings: tuple[str, ...] = ()
    seen: Literal["auto", "exclude", "keep"] = "auto"
    draws: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        period_length(self.every)
        if unknown := [name for name in self.policies if name not in POLICIES]:
            raise ConfigError(f"backtest: no policy {unknown[0]!r}; known are {', '.join(POLICIES)}.")
        self.check_model()

    def check_model(self) -> None:
        """Refuses models that do not learn from a log alone, and settings that do not exist."""
        sections = preset(self.model, self.preset)
        if is_ranker(self.model) or is_student(self.model):
            raise ConfigError(
                f"backtest: {self.model!r} needs another model's run; choose one that is trained alone, such as sasrec."
            )
        if not self.by_gradient and ("warm" in self.policies or self.warm_settings):
            raise ConfigError(
                f"backtest: {self.model!r} counts, and has no weights to go on from; drop the policy warm and its "
                "settings."
            )
        known = set(sections)
        if self.config_file is not None:
            merge(sections, read_yaml(self.config_file), str(self.config_file), known)
        for text in (*self.settings, *self.warm_settings):
            merge(sections, parse_setting(text), f"--set {text}", known)
        model_config(self.model, sections["model"], num_items=1)
        training = build_config(TrainingConfig, sections.get("training", {}), f"training of {self.model}")
        if training.user_share != 1:
            raise ConfigError(
                f"backtest: training.user_share={training.user_share} draws other users whenever one is new; leave it "
                "at 1."
            )

    @property
    def by_gradient(self) -> bool:
        """False for counting models."""
        return issubclass(MODELS[self.model][0], torch.nn.Module)

    @property
    def followed(self) -> tuple[str, ...]:
        """The policies to compare."""
        return self.policies or (POLICIES if self.by_gradient else ("never", "cold"))


@dataclass(frozen=True)
class Replay:
    """A log and the periods that it is replayed in."""

    config: BacktestConfig
    dataset: Dataset
    events: pl.DataFrame
    periods: tuple[Period, ...]
    seen: SeenRule

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the figures depend on, as JSON holds it."""
        given = {key: value for key, value in asdict(self.config).items() if key != "out"}
        log = describe_input(self.config.dataset)
        given |= {"policies": self.config.followed, "dataset": log["path"], "dataset_sha256": log["sha256"]}
        settings: dict[str, Any] = json.loads(json.dumps(given, default=str))
        return settings

    @cached_property
    def floors(self) -> tuple[str, ...]:
        """Floors that the log allows."""
        if not self.config.floors:
            return ()
        return tuple(name for name in FLOORS if name != "tfidf" or has_text(self.dataset.items()))

    def folder(self, period: Period) -> Path:
        """Of a finished period."""
        return self.config.out / "periods" / f"{period.number:04}"

    def work(self, period: Period) -> Path:
        """Of the data and runs of a period."""
        return self.config.out / "work" / f"{period.number:04}"

    def earlier_work(self, period: Period) -> list[Path]:
        """Of the periods before it, as far as they are kept: the first that was learned for, and the latest."""
        folders = sorted((self.config.out / "work").glob("[0-9]*"))
        return [folder for folder in folders if folder < self.work(period) and (folder / PREPARED).is_dir()]


def open_replay(config: BacktestConfig) -> Replay:
    """The log, checked to have times, and its periods."""
    dataset = open_dataset(config.dataset)
    if dataset.time == "order":
        raise DataError(
            f"backtest: the events of {config.dataset} have an order but no time, and periods need one; ingest a "
            "source with timestamps."
        )
    events = dataset.events()
    begin, end = (None if text is None else instant(text, "backtest") for text in (config.begin, config.end))
    periods = cut_periods(events["timestamp"].to_numpy(), config.every, begin, end)
    before = events.filter(pl.col("timestamp") < periods[0].start)
    return Replay(config, dataset, events, periods, seen_rule(config.seen, repeated_events(before) / len(before)))
