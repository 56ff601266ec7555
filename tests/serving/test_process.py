"""A service process from outside: what it logs, and how it goes."""

import json
import re
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
from service_process import served

from serving.api_keys import SCOPES, create_key


def test_a_json_line_a_request_says_nothing_of_users_items_or_keys(sasrec, tmp_path) -> None:
    keys = tmp_path / "keys.json"
    secret = create_key(keys, "shop", SCOPES)
    state, log = tmp_path / "state.sqlite", tmp_path / "log"
    with (
        served(sasrec.folder, state, log, logs="json", keys=keys) as service,
        httpx.Client(base_url=service.address, headers={"Authorization": f"Bearer {secret}"}) as client,
    ):
        client.post("/v1/events", json={"user_id": "hidden-ann", "item_id": "hidden-item", "event_id": "hidden-e"})
        client.get("/v1/users/hidden-ann", headers={"X-Request-ID": "abc"})
        client.get("/v1/items/hidden-item")
        client.post("/v1/recommend", json={"history": ["hidden-item"], "k": 0, "hidden-field": 1})
        client.get("/?user=hidden-ann")
        client.get("/v1/users/hidden-ann", headers={"Authorization": "Bearer hidden-guess"})
    text = log.read_text()
    assert secret not in text
    assert "hidden" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    requests = [line for line in lines if line["message"] == "request" and line["route"] != "/health/ready"]
    found = [(line["method"], line["route"], line["status"], line["key"]) for line in requests]
    assert found == [
        ("POST", "/v1/events", 202, "shop"),
        ("GET", "/v1/users/{user_id:path}", 200, "shop"),
        ("GET", "/v1/items/{item_id:path}", 404, "shop"),
        ("POST", "/v1/recommend", 422, "shop"),
        ("GET", "/", 200, "shop"),
        ("GET", "other", 401, None),
    ]
    assert requests[1]["request_id"] == "abc"
    assert all(line["milliseconds"] > 0 and re.match(r"20\d\d-.*\+00:00$", line["time"]) for line in requests)


def test_as_text_requests_are_not_logged(sasrec, tmp_path) -> None:
    with served(sasrec.folder, tmp_path / "state.sqlite", tmp_path / "log") as service:
        httpx.get(f"{service.address}/v1/items/item-05")
    text = (tmp_path / "log").read_text()
    assert "Application startup complete" in text
    assert "items" not in text
    assert "{" not in text


def soon(holds: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return False


def test_at_sigterm_it_is_not_ready_then_closes_and_open_requests_finish(sasrec, tmp_path) -> None:
    body = json.dumps({"history": ["item-05"], "k": 3}).encode()
    with served(sasrec.folder, tmp_path / "state.sqlite", tmp_path / "log", drain_seconds=1) as service:
        open_request = socket.create_connection(("127.0.0.1", service.port))
        head = (
            f"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        open_request.sendall(head.encode() + b"\r\n\r\n" + body[:5])

        service.process.send_signal(signal.SIGTERM)
        assert soon(lambda: httpx.get(f"{service.address}/health/ready").status_code == 503)
        assert httpx.get(f"{service.address}/health/live").status_code == 200
        assert httpx.post(f"{service.address}/v1/recommend", json={"history": []}).status_code == 200

        def closed() -> bool:
            try:
                httpx.get(f"{service.address}/health/live")
            except httpx.TransportError:
                return True
            return False

        assert soon(closed)
        assert service.process.poll() is None
        open_request.sendall(body[5:])
        answer = open_request.recv(65_536)
        while chunk := open_request.recv(65_536):
            answer += chunk
        open_request.close()
        assert answer.startswith(b"HTTP/1.1 200")
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["items"]) == 3
        assert service.process.wait(timeout=30) in {0, -signal.SIGTERM}


def test_a_second_sigterm_does_not_wait(sasrec, tmp_path) -> None:
    with served(sasrec.folder, tmp_path / "state.sqlite", tmp_path / "log", drain_seconds=3_600) as service:
        service.process.send_signal(signal.SIGTERM)
        assert soon(lambda: httpx.get(f"{service.address}/health/ready").status_code == 503)
        assert service.end() in {0, -signal.SIGTERM}
