"""Bad requests: one problem each, naming the field, with the request's id and nothing of the inside."""

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("path", "body", "field", "message"),
    [
        ("recommend", {"history": [], "colour": 1}, "colour", "Extra inputs are not permitted"),
        ("recommend", {"history": [], "k": 0}, "k", "greater than or equal to 1 (received 0)"),
        ("recommend", {"history": [], "k": 201}, "k", "less than or equal to 200 (received 201)"),
        ("recommend", {"history": [], "k": "10"}, "k", "valid integer (received '10')"),
        ("recommend", {"history": [], "k": True}, "k", "valid integer"),
        ("recommend", {"history": "item-05"}, "history", "valid list"),
        ("recommend", {"history": ["item-05", 7]}, "history.1", "valid string (received 7)"),
        ("recommend", {"history": [""]}, "history.0", "at least 1 character"),
        ("recommend", {"history": [], "exclude_seen": "yes"}, "exclude_seen", "valid boolean"),
        ("recommend", {}, "body", "give history"),
        ("recommend", [], "body", "valid dictionary"),
        ("events", {"user_id": "ann"}, "0.item_id", "Field required"),
        ("events", [], "body", "at least 1 item"),
        ("items", {"item_id": "a", "fields": {"": "x"}}, "0.fields..[key]", "at least 1 character"),
        ("events", [{"user_id": "ann", "item_id": "a"}, 7], "1", "valid dictionary"),
        ("events", {"user_id": "ann", "item_id": "a", "x": 1}, "0.x", "Extra inputs"),
        ("events", {"user_id": "ann", "item_id": "a", "timestamp": 1_700_000_000}, "0.timestamp", "give microseconds"),
    ],
)
def test_a_body_that_cannot_be_used_is_a_422_with_the_field(path, body, field, message, client) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert (problem["status"], problem["type"]) == (422, "about:blank")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert message in problem["errors"][0]["message"]
    assert f"{field}: " in problem["detail"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"history": [', "is not JSON"),
        (b'{"history": ["\\ud800"]}', "unicode"),
        (b'{"history": ["\xe9"]}', "body: is not text in UTF-8"),
        (b"[" * 100_000, "body: is nested too deep"),
        (b'{"k": ' + b"1" * 5_000 + b"}", "body: is not JSON that can be read"),
    ],
    ids=["cut", "surrogate", "bytes", "deep", "digits"],
)
def test_a_body_that_is_no_json_text_is_refused(body, message, client) -> None:
    answer = client.post("/v1/recommend", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_many_wrong_fields_make_a_short_answer(client) -> None:
    answer = client.post("/v1/recommend", json={"history": list(range(5_000))})
    assert len(answer.json()["errors"]) == 10


@pytest.mark.parametrize("k", ["0", "201", "ten"])
def test_similar_refuses_a_wrong_k(k, client) -> None:
    answer = client.get("/v1/similar/item-05", params={"k": k})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "k")


@pytest.mark.parametrize("path", ["/v1/items/nope", "/v1/similar/nope"])
def test_an_unknown_item_is_a_404_with_its_id(path, client) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "item 'nope' is not in the catalogue of bundle" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/recommend", 405)])
def test_a_wrong_path_or_method_is_a_problem_too(method, path, status, client) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["status"]) == (status, status)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/v1/items/a/b", "GET, DELETE"),
        ("PUT", "/v1/users/ann", "GET, DELETE"),
        ("GET", "/v1/items", "POST"),
    ],
)
def test_a_wrong_method_is_told_those_of_all_routes_with_this_path(method, path, allowed, client) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize("field", ["history", "exclude"])
def test_more_ids_than_are_read_is_a_413(field, client_of, sasrec) -> None:
    client = client_of(sasrec, max_history=4)
    body: dict[str, Any] = {"history": ["item-05"], field: ["item-05"] * 5}
    answer = client.post("/v1/recommend", json=body)
    assert (answer.status_code, answer.json()["status"]) == (413, 413)
    assert f"{field}: 5 entries, and at most 4 are read" in answer.json()["detail"]
    assert client.post("/v1/recommend", json={**body, field: ["item-05"] * 4}).status_code == 200


def test_more_events_than_are_taken_is_a_413_and_stores_nothing(client_of, sasrec) -> None:
    client = client_of(sasrec, max_events=2)
    answer = client.post("/v1/events", json=[{"user_id": "ann", "item_id": "a"}] * 3)
    assert answer.status_code == 413
    assert client.app.state.variants.stores.state.history("ann") == []


@pytest.mark.parametrize("chunked", [True, False])
def test_a_large_body_is_a_413(chunked, client_of, sasrec) -> None:
    client = client_of(sasrec, max_body_bytes=1_000)
    body = b'{"history": ["' + b"x" * 2_000 + b'"]}'
    content = (body[place : place + 100] for place in range(0, len(body), 100)) if chunked else body
    answer = client.post("/v1/recommend", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "body: more than 1,000 bytes" in answer.json()["detail"]


def test_a_request_keeps_the_id_its_client_gave(client) -> None:
    answer = client.post("/v1/recommend", json={"history": []}, headers={"X-Request-ID": "abc-1"})
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"] == "abc-1"
    missing = client.get("/v1/items/nope", headers={"X-Request-ID": "abc-2"})
    assert missing.json()["request_id"] == missing.headers["X-Request-ID"] == "abc-2"


@pytest.mark.parametrize("offered", [None, "", "two words", "<b>", "x" * 129])
def test_an_id_that_is_not_plain_is_replaced(offered, client) -> None:
    headers = {} if offered is None else {"X-Request-ID": offered}
    answer = client.post("/v1/recommend", json={"history": []}, headers=headers)
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert len(answer.json()["request_id"]) == 32


def test_a_bug_tells_the_client_nothing_but_an_id(client, monkeypatch) -> None:
    monkeypatch.setattr(client.app.state.variants.control.service.recommender, "recommend", lambda _: 1 // 0)
    answer = client.post("/v1/recommend", json={"history": []}, headers={"X-Request-ID": "abc"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert (answer.json()["request_id"], answer.headers["X-Request-ID"]) == ("abc", "abc")
    assert not {"ZeroDivisionError", "Traceback", "division"} & set(answer.text.split())
    assert 'recsys_requests_total{route="/v1/recommend",status="500"} 1.0' in client.get("/metrics").text
