"""The description of the API: each route has examples, and they are what the service takes and gives."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from serving import messages
from serving.examples import ANSWERS, REQUESTS

JSON = "application/json"


@pytest.fixture
def operations(client) -> dict[tuple[str, str], dict[str, Any]]:
    paths = client.get("/openapi.json").json()["paths"]
    return {(method, path): content for path, methods in paths.items() for method, content in methods.items()}


def test_every_route_has_an_example_of_all_that_is_sent_and_answered(operations) -> None:
    for route, operation in operations.items():
        if "requestBody" in operation:
            assert operation["requestBody"]["content"][JSON]["example"] == REQUESTS[route], route
        answered = next(content for status, content in operation["responses"].items() if status.startswith("2"))
        if JSON in answered.get("content", {}):
            assert answered["content"][JSON]["example"] == ANSWERS[route], route
        for parameter in operation.get("parameters", ()):
            assert "example" in parameter or "default" in parameter["schema"], (route, parameter["name"])


def test_no_example_is_of_a_route_that_is_gone(operations) -> None:
    assert REQUESTS.keys() | ANSWERS.keys() <= operations.keys()


def test_examples_of_answers_have_every_field(operations, client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for route, example in ANSWERS.items():
        answered = next(content for status, content in operations[route]["responses"].items() if status[0] == "2")
        name = answered["content"][JSON]["schema"]["$ref"].rsplit("/", 1)[1]
        kind = getattr(messages, name)
        assert TypeAdapter(kind).validate_python(example).model_dump(mode="json") == example, route
        assert set(schemas[name]["properties"]) == example.keys(), route


@pytest.mark.parametrize("route", REQUESTS, ids=lambda route: route[1])
def test_examples_of_requests_are_answered(route, client) -> None:
    method, path = route
    answer = client.request(method, path, json=REQUESTS[route])
    impossible = {"/v1/items", "/v1/models/rollback"}  # this bundle's model reads no texts, and no other was before
    expected = 409 if path in impossible else 200
    assert answer.status_code in {expected, 202}, answer.text


def test_every_problem_is_described(operations) -> None:
    for route, operation in operations.items():
        if route[1].startswith("/v1/"):
            assert {"404", "413", "422", "503"} <= operation["responses"].keys(), route
