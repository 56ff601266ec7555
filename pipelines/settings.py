"""Settings of a run as texts: YAML files and `section.key=value`, the later over the earlier."""

from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from recsys.errors import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a config file ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: must hold sections such as 'model:' and 'training:', not a {type(content).__name__}."
        )
    return content


def parse_setting(text: str) -> dict[str, Any]:
    """`model.loss.kind=gbce` as {"model": {"loss": {"kind": "gbce"}}}."""
    path, equals, value = text.partition("=")
    keys = path.split(".")
    if not (equals and len(keys) > 1 and all(keys)):
        raise ConfigError(f"--set {text}: expected section.key=value, such as model.dropout=0.1.")
    try:
        return reduce(lambda inner, key: {key: inner}, reversed(keys), yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: not a YAML value ({' '.join(str(error).split())}).") from None


def merge(sections: dict[str, Any], update: dict[str, Any], where: str, known: set[str]) -> None:
    """Puts the keys of each section of `update` into `sections`."""
    for section, values in update.items():
        if section not in known:
            raise ConfigError(f"{where}: no section {section!r}; known are {', '.join(sorted(known))}.")
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: section {section!r} must hold settings, not {values!r}.")
        sections[section] = deep_merged(sections[section], values)


def deep_merged(values: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """`values` with those of `update` in their place; mappings within mappings are merged the same way."""
    both = {key: deep_merged(values[key], value) for key, value in update.items() if is_mapping(values.get(key), value)}
    return {**values, **update, **both}


def is_mapping(*values: Any) -> bool:
    """Whether all are dictionaries."""
    return all(isinstance(value, dict) for value in values)
