"""Requests made up from the description of the API, right and wrong ones: answers are what it says, and never a 5xx.

`python -m benchmarks.api_contract` sends more of them, with sequences of requests, to a running service.
"""

from collections.abc import Iterator

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.api_contract import narrowed
from serving.app import create_app
from serving.settings import Settings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 25
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def app(sasrec, tmp_path_factory) -> Iterator[FastAPI]:
    yield create_app(sasrec.folder, Settings(state=tmp_path_factory.mktemp("state") / "state.sqlite"))
    shutdown_lifespans()


def operations(app: FastAPI, known: bool) -> list[APIOperation]:
    """All that the description has; `known`: of names that the bundle knows alone."""
    description = app.openapi()
    if known:
        description = narrowed(description, ["item_id", "title", "categories", "year"], ["item-05", "item-06", "a/b"])
    schema = schemathesis.openapi.from_dict(description)
    schema.app = app
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.parametrize(("known", "mode"), [(True, RIGHT), (False, RIGHT), (False, WRONG)])
def test_answers_are_what_the_description_says(known, mode, app) -> None:
    found = operations(app, known)
    assert len(found) == sum(len(methods) for methods in app.openapi()["paths"].values())
    for operation in found:
        if mode is WRONG and not (operation.body or operation.query):
            continue  # any path is right

        @given(case=operation.as_strategy(mode))
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        def answered(case: Case) -> None:
            case.call_and_validate(checks=CHECKS)

        answered()
