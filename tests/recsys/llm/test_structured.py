"""JSON under a schema: strictly, or dug out of the text around it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_jobs import SCHEMA

from recsys.errors import ConfigError
from recsys.llm.structured import AnswerSchema, balanced_objects, read_schema

AGE = AnswerSchema(SCHEMA)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"n": 3}', "strict"),
        (' {"n": 3}\n', "strict"),
        ('```json\n{"n": 3}\n```', "extracted"),
        ('Sure! Here it is: {"n": 3}. Anything else?', "extracted"),
        ('<think>maybe {"n": "three"} or {x}</think>{"n": 3}', "extracted"),
        ('{ {"n": 3}', "extracted"),
        ('{"n": 3}{"n": 4}', "extracted"),
    ],
)
def test_the_first_valid_object_is_found(text: str, found: str) -> None:
    parsed = AGE.parse(text)
    assert (parsed.value, parsed.found, parsed.problem) == ({"n": 3}, found, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is not JSON"),
        ('{"n": 3', "it is not JSON"),
        ('{"n": "three"}', "answer['n']: 'three' is not of type 'integer'"),
        ('{"m": 3}', "answer: 'n' is a required property"),
        ('{"n": 3, "m": 3}', "Additional properties are not allowed ('m' was unexpected)"),
        ("[3]", "[3] is not of type 'object'"),
        ('{"n": NaN}', "NaN is no JSON number"),
        ('{"n": 1, "n": 2}', "the name 'n' comes twice"),
        ('{"n": 1e999}', "Out of range float values are not JSON compliant"),
        ('{"n": ' + 100_000 * "[", "it is nested too deeply"),
        ('so: {"n": 1.5}', "answer['n']: 1.5 is not of type 'integer'"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    parsed = AGE.parse(text)
    assert parsed.value is None
    assert problem in str(parsed.problem)


def test_half_a_surrogate_pair_is_no_text() -> None:
    schema = AnswerSchema({"type": "object", "properties": {"t": {"type": "string"}}})
    assert schema.parse('{"t": "\\ud83d"}').problem is not None
    assert schema.parse('{"t": "\\ud83d\\ude00"}').value == {"t": "😀"}


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(st.dictionaries(st.text(), VALUES), st.text().filter(lambda text: "{" not in text), st.text())
def test_a_balanced_object_is_found_whole_behind_any_text(content: dict[str, Any], before: str, after: str) -> None:
    assert next(balanced_objects(before + json.dumps(content) + after)) == json.dumps(content)


def test_equal_schemas_have_one_hash() -> None:
    assert AnswerSchema(dict(reversed(SCHEMA.items()))).sha256 == AGE.sha256
    assert AnswerSchema({**SCHEMA, "required": []}).sha256 != AGE.sha256


def test_references_within_the_schema_are_followed() -> None:
    inner = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    assert AnswerSchema(inner).parse('{"n": "x"}').problem is not None
    assert AnswerSchema(inner).parse('{"n": 1}').problem is None


def with_n(schema: dict[str, str]) -> str:
    """The schema of an object whose field n has this one."""
    return json.dumps({"type": "object", "properties": {"n": schema}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", 'must be the schema of an object \\("type": "object" with "properties"\\)'),
        ('{"type": "string"}', "must be the schema of an object"),
        ("{", "not valid JSON"),
        (with_n({"type": "whole"}), "is no JSON schema \\(at properties/n/type: 'whole'"),
        (with_n({"$ref": "http://x.y/z"}), "refers to 'http://x.y/z', which is not in it"),
        (with_n({"$ref": "#/$defs/n"}), "refers to '#/\\$defs/n', which is not in it"),
    ],
)
def test_schemas_that_cannot_be_used_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_schema(path)
    with pytest.raises(ConfigError, match="cannot be read as a schema"):
        read_schema(tmp_path / "absent.json")
