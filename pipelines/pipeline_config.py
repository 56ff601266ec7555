"""PIPELINE.yaml of `recsys run`: its sections, checked before anything is done. Keys: docs/pipeline.md."""

import glob
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from models.registry import MODELS, build_config, is_ranker, is_student, model_config, preset
from pipelines.guardrails import Guardrail, with_standard
from pipelines.ingest import IngestConfig
from pipelines.prepare import PrepareConfig
from pipelines.settings import merge, parse_setting, read_yaml
from recsys.errors import ConfigError, DataError
from recsys.increments import Duplicates
from recsys.readers import SourceFormat
from recsys.splits import Part
from recsys.timestamps import TimeUnit
from recsys.training import TrainingConfig

STEPS = ("ingest", "prepare", "train", "refit", "champion", "evaluate", "decide", "export", "register")
RESULT_SECTIONS = ("ingest", "prepare", "train", "refit", "compare", "register")
"""What a cycle's result depends on besides its files; the others say how it is run."""


@dataclass(frozen=True, kw_only=True)
class IngestSection:
    """Options of `recsys ingest`."""

    format: SourceFormat = "auto"
    map: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str = "utf-8"
    time_unit: TimeUnit = "auto"
    items: Path | None = None
    items_map: Mapping[str, str] = field(default_factory=dict)
    duplicates: Duplicates = "drop"
    max_rejected: str | None = None
    memory: str | None = None


@dataclass(frozen=True, kw_only=True)
class PrepareSection:
    """Options of `recsys prepare`; the split is by time, and the catalogue that of the champion, extended."""

    validation_share: float = 0.1
    test_share: float = 0.1
    validation_from: str | None = None
    test_from: str | None = None
    min_user_events: int = 1
    min_item_events: int = 1
    seen: Literal["auto", "exclude", "keep"] = "auto"
    retire: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """Options of `recsys train`; `warm`: begin with the champion's weights, once there is one."""

    model: str
    preset: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    warm: bool = False
    tracking: bool = True

    @property
    def settings(self) -> tuple[str, ...]:
        """As texts of `--set`."""
        return setting_texts(self.set)


@dataclass(frozen=True, kw_only=True)
class CompareSection:
    """Options of `recsys compare`; `guard`: figure -> change over the standard guardrails. `report`: an HTML page."""

    part: Part = "test"
    draws: int = 10_000
    seed: int = 0
    margin: float = 0.01
    guard: Mapping[str, float] = field(default_factory=dict)
    report: bool = True

    @property
    def guardrails(self) -> tuple[Guardrail, ...]:
        """The standard ones and these."""
        return with_standard([Guardrail(figure, change) for figure, change in self.guard.items()])


@dataclass(frozen=True, kw_only=True)
class RegisterSection:
    """Where the champion is kept: name and alias in the MLflow registry."""

    name: str = "recsys"
    alias: str = "champion"


@dataclass(frozen=True, kw_only=True)
class NotifySection:
    """`webhook`: URL that gets each cycle's verdict, or its error, as JSON."""

    webhook: str | None = None
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ConfigError(f"notify: webhook={self.webhook!r} must begin with http:// or https://.")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """A nightly job: `sources` are patterns of log files; `keep` past cycles stay whole; a failed step is tried
    `retries` times more, the first after `retry_seconds`, then twice as long; `limit_minutes` holds for a step."""

    name: str
    work: Path
    sources: tuple[str, ...]
    train: TrainSection
    ingest: IngestSection = field(default_factory=IngestSection)
    prepare: PrepareSection = field(default_factory=PrepareSection)
    refit: bool = False
    compare: CompareSection = field(default_factory=CompareSection)
    register: RegisterSection = field(default_factory=RegisterSection)
    notify: NotifySection = field(default_factory=NotifySection)
    keep: int = 2
    retries: int = 0
    retry_seconds: float = 30.0
    limit_minutes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources=[] names no log; give at least one pattern such as logs/*.csv.gz.")
        for name in ("keep", "retries", "retry_seconds"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{name}={value} must not be below 0.")
        if unknown := [step for step in self.limit_minutes if step not in STEPS]:
            raise ConfigError(f"limit_minutes: no step {unknown[0]!r}; known are {', '.join(STEPS)}.")
        if wrong := {step: value for step, value in self.limit_minutes.items() if not value > 0}:
            raise ConfigError(f"limit_minutes: {wrong} must be above 0.")
        if self.refit and self.compare.part == "validation":
            raise ConfigError(
                "refit: true learns from the validation events, so compare.part=validation judges nothing; set "
                "compare.part: test."
            )

    def result_settings(self) -> dict[str, Any]:
        """What a cycle's result depends on, files apart: those are told by their content."""
        sections = {name: value for name, value in asdict(self).items() if name in RESULT_SECTIONS}
        for name in ("items", "max_rejected", "memory"):
            sections["ingest"].pop(name)
        sections["prepare"].pop("retire")
        return sections

    def log_files(self) -> list[Path]:
        """Files of all patterns, in the order of the patterns and then of their names."""
        found: list[Path] = []
        for pattern in self.sources:
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
            if not matches:
                raise DataError(f"run {self.name}: sources: no file matches {pattern!r}.")
            found += [match for match in matches if match not in found]
        return found

    def ingest_config(self, files: list[Path], out: Path) -> IngestConfig:
        """What `recsys ingest` is asked for."""
        section = self.ingest
        return IngestConfig(
            sources=tuple(files),
            out=out,
            format=section.format,
            mapping=section.map,
            columns=section.columns,
            delimiter=section.delimiter,
            encoding=section.encoding,
            time_unit=section.time_unit,
            items=section.items,
            items_mapping=section.items_map,
            duplicates=section.duplicates,
            max_rejected=section.max_rejected,
            memory=section.memory,
            overwrite=True,
        )

    def prepare_config(self, dataset: Path, out: Path, extend: Path | None) -> PrepareConfig:
        """What `recsys prepare` is asked for."""
        return PrepareConfig(dataset=dataset, out=out, extend=extend, overwrite=True, **asdict(self.prepare))


def setting_texts(values: Mapping[str, Any]) -> tuple[str, ...]:
    """`section.key` -> value as texts `section.key=value`, which read back as they were."""
    return tuple(
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=1_000_000).strip()}"
        for key, value in values.items()
    )


def load_pipeline(path: Path) -> PipelineConfig:
    """Reads and checks PIPELINE.yaml; its relative paths are taken from its own folder."""
    values = read_yaml(path)
    refuse_missing(PipelineConfig, values, str(path))
    if isinstance(values["train"], dict):
        refuse_missing(TrainSection, values["train"], f"{path}: train")
    try:
        config: PipelineConfig = build_config(PipelineConfig, values, str(path))
        config.ingest_config([Path("log")], Path("out"))
        config.prepare_config(Path("dataset"), Path("out"), None)
        check_model(config.train)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    return resolved(config, path.resolve().parent)


def refuse_missing(section: type[Any], values: Mapping[str, Any], where: str) -> None:
    """Keys that have no default must be there."""
    needed = [entry.name for entry in fields(section) if entry.default is MISSING and entry.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}; see docs/pipeline.md.")


def check_model(section: TrainSection) -> None:
    """Refuses what could not be trained alone or could not become a bundle, and settings that do not exist."""
    sections = preset(section.model, section.preset)
    if (
        is_ranker(section.model)
        or is_student(section.model)
        or not issubclass(MODELS[section.model][0], torch.nn.Module)
    ):
        raise ConfigError(
            f"train: model: {section.model!r} cannot be trained, exported and served by itself; choose a retriever "
            "such as sasrec or bert4rec."
        )
    for text in section.settings:
        merge(sections, parse_setting(text), f"train: set {text}", set(sections))
    model_config(section.model, sections["model"], num_items=1)
    build_config(TrainingConfig, sections["training"], f"training of {section.model}")


def resolved(config: PipelineConfig, base: Path) -> PipelineConfig:
    """With absolute paths and patterns."""
    items, retire = config.ingest.items, config.prepare.retire
    return replace(
        config,
        work=base / config.work,
        sources=tuple(str(base / pattern) for pattern in config.sources),
        ingest=replace(config.ingest, items=items and base / items),
        prepare=replace(config.prepare, retire=retire and base / retire),
    )
