"""A batch answers as its requests do one by one, whatever was kept before."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

UNLIKE = ("request_id", "milliseconds", "encoding", "stages")


def alone(client: TestClient, request: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def batch(client: TestClient, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = client.post("/v1/recommend/batch", json={"requests": requests}, headers={"X-Request-ID": "b"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["request_id"] == "b"
    return answer.json()["answers"]


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """All but scores' last digits, and items whose scores differ by no more."""
    same = {name: value for name, value in expected.items() if name not in {*UNLIKE, "items", "next"}}
    assert {name: found[name] for name in same} == same
    assert (found["next"] is None) == (expected["next"] is None)
    scores = [[item["score"] for item in answer["items"]] for answer in (found, expected)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    rows = zip(found["items"], expected["items"], strict=True)
    assert all(a["item_id"] == b["item_id"] or abs(a["score"] - b["score"]) < 1e-5 for a, b in rows)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "rearec"])
@pytest.mark.parametrize("cache", [0, 10**7])
def test_a_batch_equals_its_requests(name, cache, request, client_of) -> None:
    tiny = request.getfixturevalue(name)
    client, rng = client_of(tiny, encoding_cache_bytes=cache), np.random.default_rng(6)
    client.post("/v1/events", json=[{"user_id": "ann", "item_id": item_id} for item_id in ("item-08", "item-30")])
    item_ids = tiny.catalog.item_ids.to_list()
    requests: list[dict[str, Any]] = [
        {
            "history": [item_ids[place] for place in rng.integers(0, len(item_ids), length)],
            "k": int(rng.integers(1, 30)),
        }
        for length in (1, 3, 12, 7, 7)
    ]
    requests += [
        {"history": []},
        {"history": ["nobody-knows"]},
        {"user_id": "ann", "why": 2, "fields": ["year"]},
        requests[1],
        {**requests[2], "filter": {"year": {"max": 2010}}, "diversity": {"mmr": 0.5}},
        {**requests[3], "reasoning_steps": 0},
    ]
    expected = [alone(client, one) for one in requests[::2]]  # kept: a part of what the batch asks for
    answers = batch(client, requests)
    assert [answer["request_id"] for answer in answers] == [f"b.{number}" for number in range(len(requests))]
    for found, one in zip(answers[::2], expected, strict=True):
        assert_alike(found, one)
    for found, one in zip(answers[1::2], requests[1::2], strict=True):
        assert_alike(found, alone(client, one))


def test_what_one_batch_encoded_the_next_request_finds(client) -> None:
    requests = [{"history": ["item-05"]}, {"history": ["item-05", "item-06", "item-07"]}, {"history": ["item-05"]}]
    assert [answer["encoding"] for answer in batch(client, requests)] == ["full"] * 3
    longer = {"history": ["item-05", "item-06", "item-07", "item-08"]}
    assert [alone(client, one)["encoding"] for one in (requests[0], requests[1], longer)] == [
        "cached",
        "cached",
        "step",
    ]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"requests": []}, 422, "requests: List should have at least 1 item"),
        ({"requests": [{"history": []}, {"k": 3}]}, 422, "requests.1: give history"),
        ({"requests": [{"history": []}, {"history": [], "k": 0}]}, 422, "requests.1.k: "),
        ({"requests": [{"history": []}] * 4}, 413, "requests: 4 entries, and at most 3 are read"),
        ({"requests": [{"history": [], "filter": {"x": {"known": True}}}]}, 422, "requests.0.filter.x: items have no"),
        ({"requests": [{"history": [], "rank": True}]}, 422, "rank: this bundle holds no ranker"),
    ],
)
def test_one_request_that_cannot_be_used_refuses_the_batch(body, status, message, client_of, sasrec) -> None:
    answer = client_of(sasrec, max_batch=3).post("/v1/recommend/batch", json=body)
    assert answer.status_code == status
    assert message in answer.json()["detail"]
