"""A search space: settings by their dotted names, each with the values a sweep may give it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from models.registry import build_config, model_config
from pipelines.settings import merge, read_yaml
from recsys.errors import ConfigError
from recsys.training import TrainingConfig

FIXED = "fixed"
GOLDEN = (math.sqrt(5) - 1) / 2
"""Where a range is tried inside: no whole number, unless the range holds nothing else."""

Sections: TypeAlias = dict[str, dict[str, Any]]
"""Settings as a config file holds them: `model`, and for models trained by gradient `training`."""
Scalar: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both among them; whole ones where both are whole."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"low={self.low} must be below high={self.high}.")
        if self.log and self.low <= 0:
            raise ConfigError(f"a logarithmic range cannot begin at low={self.low}; begin above 0.")
        if self.step is not None:
            self._check_step(self.step)

    def _check_step(self, step: int | float) -> None:
        if self.log:
            raise ConfigError(f"step={step} has no meaning in a logarithmic range; drop one of the two.")
        if not step > 0 or (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(step)):
            raise ConfigError(f"step={step} must lead from low={self.low} to high={self.high} in whole steps.")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def examples(self) -> list[Scalar]:
        """Both ends; of a range without steps also a number inside, which is a fraction unless numbers are whole."""
        inside = self.low + (self.high - self.low) * GOLDEN
        return [self.low, self.high] if self.whole or self.step else [self.low, self.high, inside]

    def as_plain(self) -> dict[str, Any]:
        """For manifests."""
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}


@dataclass(frozen=True)
class Choices:
    """One of a few values."""

    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        odd = [value for value in self.values if not isinstance(value, Scalar)]
        if odd or not self.values:
            raise ConfigError(f"choices must be single values, at least one; not {odd[0] if odd else '[]'}.")
        if len(set(self.values)) < len(self.values):
            raise ConfigError(f"a choice stands twice in {list(self.values)}.")

    def examples(self) -> list[Scalar]:
        """All of them."""
        return list(self.values)

    def as_plain(self) -> list[Scalar]:
        """For manifests."""
        return list(self.values)


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a sweep varies, and what it sets for every trial."""

    source: str
    searched: Mapping[str, Range | Choices]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def as_plain(self) -> dict[str, Any]:
        """For manifests: what is searched."""
        return {name: values.as_plain() for name, values in self.searched.items()}

    def check(self, model: str, base: Sections, num_items: int) -> None:
        """Raises where a value can never be used.

        A value may suit only some values of the others (heads and width), so it is tried beside those of `base`, the
        others' first and the others' last.
        """
        ends = [{name: values.examples()[end] for name, values in self.searched.items()} for end in (0, -1)]
        for name, values in self.searched.items():
            for value in values.examples():
                errors = [self._refusal(model, base, {**others, name: value}, num_items) for others in ({}, *ends)]
                if all(errors):
                    raise ConfigError(f"{self.source}: {name}={value} cannot be used: {errors[0]}")

    def _refusal(self, model: str, base: Sections, values: Mapping[str, Any], num_items: int) -> str | None:
        try:
            resolved(model, with_settings(base, values, self.source), num_items)
        except ConfigError as error:
            return str(error)
        return None


def read_space(path: Path | None, model: str) -> Space:
    """The space of a YAML file, or the one that comes with the model; settings sorted, so that order has no effect."""
    source, content = packaged_space(model) if path is None else (str(path), read_yaml(path))
    fixed = content.pop(FIXED, None) or {}
    if not isinstance(fixed, dict):
        raise ConfigError(f"{source}: {FIXED!r} must map settings to values, not {fixed!r}.")
    if not content:
        raise ConfigError(f"{source}: names no setting to search, such as model.dropout: [0.1, 0.3].")
    for name in (*content, *fixed):
        if not isinstance(name, str) or not all(name.split(".")) or "." not in name:
            raise ConfigError(f"{source}: {name!r} is no setting; expected section.key, such as model.dropout.")
    if twice := sorted(content.keys() & fixed.keys()):
        raise ConfigError(f"{source}: {twice[0]} is both searched and fixed; drop one of the two.")
    return Space(
        source=source, searched={name: values_of(source, name, content[name]) for name in sorted(content)}, fixed=fixed
    )


def packaged_space(model: str) -> tuple[str, dict[str, Any]]:
    """Name and content of `models/sweeps/MODEL.yaml`."""
    file = files("models.sweeps").joinpath(f"{model}.yaml")
    if not file.is_file():
        raise ConfigError(f"sweep: no search space comes with {model!r}; write one (docs/sweeps.md) and pass --space.")
    return f"models/sweeps/{model}.yaml", yaml.safe_load(file.read_text(encoding="utf-8"))


def values_of(source: str, name: str, given: Any) -> Range | Choices:
    """The entry of one setting."""
    try:
        if isinstance(given, list):
            return Choices(tuple(given))
        if not isinstance(given, dict) or not {"low", "high"} <= given.keys():
            raise ConfigError(f"{given!r} is neither a list of choices nor a range such as {{low: 0.0, high: 0.5}}.")
        numbers = {key: number(key, given[key]) for key in ("low", "high", "step") if given.get(key) is not None}
        values: Range = build_config(Range, {**given, **numbers}, "range")
    except ConfigError as error:
        raise ConfigError(f"{source}: {name}: {error}") from None
    return values


def number(key: str, given: Any) -> int | float:
    """A number as it is; YAML reads 1e-4, without a point, as text."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return given
    try:
        return float(given if isinstance(given, str) else "")
    except ValueError:
        raise ConfigError(f"{key}={given!r} must be a number.") from None


def check_names(names: Iterable[str], sections: Sections, source: str) -> None:
    """Raises where a dotted name is none of the settings in `sections`, which hold all of them."""
    known = dict(flat(sections))
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigError(f"{source}: no setting {name!r}{hint}; docs/models.md lists them.")


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of mappings within mappings."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def with_settings(base: Sections, values: Mapping[str, Any], source: str) -> Sections:
    """`base` with settings by their dotted names in it."""
    sections = dict(base)
    for name, value in values.items():
        nested: Any = reduce(lambda inner, key: {key: inner}, reversed(name.split(".")), value)
        merge(sections, nested, f"{source}: {name}", set(base))
    return sections


def resolved(model: str, sections: Sections, num_items: int) -> Sections:
    """The same settings as the config classes understand them: validated, with their defaults, in their types."""
    values = model_config(model, sections["model"], num_items).as_dict()
    found = {"model": {key: value for key, value in values.items() if key != "num_items"}}
    if "training" in sections:
        found["training"] = asdict(build_config(TrainingConfig, sections["training"], f"training of {model}"))
    return found
