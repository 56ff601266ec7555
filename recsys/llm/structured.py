"""Answers that have to be JSON under a schema: read strictly, else dug out of the text around it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from recsys.errors import ConfigError
from recsys.llm.calls import canonical_json

MOST_OF_A_PROBLEM = 300
Found = Literal["strict", "extracted"]


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A valid value and how it was found, or what is wrong with the text."""

    value: Any = None
    found: Found = "strict"
    problem: str | None = None


class AnswerSchema:
    """A JSON schema (2020-12) of an object, which may refer to nothing outside itself."""

    def __init__(self, content: Any, where: str = "schema") -> None:
        if not isinstance(content, Mapping) or content.get("type") != "object":
            raise ConfigError(f'{where}: must be the schema of an object ("type": "object" with "properties").')
        try:
            Draft202012Validator.check_schema(content)
        except SchemaError as error:
            place = "/".join(map(str, error.absolute_path)) or "top"
            raise ConfigError(
                f"{where}: is no JSON schema (at {place}: {error.message[:MOST_OF_A_PROBLEM]})."
            ) from None
        self.content = dict(content)
        self._validator = Draft202012Validator(content, registry=Registry())
        resolver = Registry().with_resource("", DRAFT202012.create_resource(self.content)).resolver()
        for reference in references(content):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise ConfigError(
                    f"{where}: refers to {reference!r}, which is not in it; write what is meant into the file."
                ) from None

    @property
    def properties(self) -> dict[str, Any]:
        """Its fields."""
        return dict(self.content.get("properties", {}))

    @property
    def sha256(self) -> str:
        """Of its canonical JSON: blanks and order do not count."""
        return hashlib.sha256(canonical_json(self.content).encode()).hexdigest()

    def problem_of(self, value: Any) -> str | None:
        """What is wrong with it in one line, None where nothing is."""
        error = best_match(self._validator.iter_errors(value))
        if error is None:
            return None
        place = "".join(f"[{part!r}]" for part in error.absolute_path)
        return f"answer{place}: {error.message}"[:MOST_OF_A_PROBLEM]

    def parse(self, text: str) -> Parsed:
        """The whole text as JSON; or the first balanced object in it that is valid."""
        try:
            value = strict_json(text)
        except ValueError as error:
            problem = f"it is not JSON ({error})"
        else:
            problem_of_all = self.problem_of(value)
            if problem_of_all is None:
                return Parsed(value=value)
            problem = problem_of_all
        for candidate in balanced_objects(text):
            try:
                value = strict_json(candidate)
            except ValueError:
                continue
            inner = self.problem_of(value)
            if inner is None:
                return Parsed(value=value, found="extracted")
            problem = inner
        return Parsed(problem=problem)


def read_schema(path: Path) -> AnswerSchema:
    """From a JSON file."""
    try:
        content = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a schema ({error.strerror}).") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}).") from None
    return AnswerSchema(content, str(path))


def strict_json(text: str) -> Any:
    """JSON without NaN and infinities, without a name twice, and without what text columns cannot hold (half of a
    surrogate pair); `ValueError` says why not."""
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_name_twice)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def references(content: Any) -> Iterator[str]:
    """All `$ref` of a schema."""
    if isinstance(content, Mapping):
        if isinstance(reference := content.get("$ref"), str):
            yield reference
        for inner in content.values():
            yield from references(inner)
    elif isinstance(content, list):
        for inner in content:
            yield from references(inner)


def balanced_objects(text: str) -> Iterator[str]:
    """Stretches `{...}` whose braces match, outermost ones, from left to right; braces in strings do not count."""
    start = text.find("{")
    while start >= 0:
        end = _end_of_object(text, start)
        if end is None:
            start = text.find("{", start + 1)
        else:
            yield text[start:end]
            start = text.find("{", end)


def _end_of_object(text: str, start: int) -> int | None:
    depth, in_string, escaped = 0, False, False
    for place in range(start, len(text)):
        sign = text[place]
        if in_string:
            in_string = escaped or sign != '"'
            escaped = sign == "\\" and not escaped
        elif sign == '"':
            in_string = True
        elif sign in "{}":
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return place + 1
    return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the name {doubled[0]!r} comes twice")
    return dict(pairs)
