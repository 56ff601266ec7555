"""Two replicas on one Redis answer as one service does, whichever is asked."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis_server import RedisServer
from service_process import served

NOON = 1_700_000_000_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


def answer(client: TestClient, user_id: str, history: list[str]) -> dict[str, Any]:
    """Without what differs between two equal requests; scores as far as caches may tell them apart."""
    whole = client.post("/v1/recommend", json={"user_id": user_id, "history": history, "k": 20}).json()
    differing = {"request_id", "encoding", "stages", "milliseconds"}
    items = [(item["item_id"], pytest.approx(item["score"], abs=1e-4)) for item in whole["items"]]
    return {**{key: value for key, value in whole.items() if key not in differing}, "items": items}


def test_replicas_answer_as_one(client_of, sasrec, server, tmp_path) -> None:
    """Events of random users and times go to one or the other; a service on SQLite gets them all."""
    shared = {"state": server.url, "new_items": tmp_path / "items.sqlite", "history_limit": 6}
    replicas = [client_of(sasrec, **shared), client_of(sasrec, **shared)]
    single = client_of(sasrec, history_limit=6)
    draw = np.random.default_rng(3)
    for number in range(40):
        user_id = f"user-{draw.integers(3)}"
        events = [
            {
                "user_id": user_id,
                "item_id": f"item-{draw.integers(1, 53):02}",
                "timestamp": NOON + int(draw.integers(50)),
                "event_id": str(draw.integers(60)),
            }
            for _ in range(draw.integers(1, 4))
        ]
        writer = replicas[draw.integers(2)]
        counts = [client.post("/v1/events", json=events).json() for client in (writer, single)]
        assert counts[0]["stored"] == counts[1]["stored"]
        if number % 8 == 7:
            deleted = [client.delete(f"/v1/users/{user_id}").json()["events"] for client in (writer, single)]
            assert deleted[0] == deleted[1] > 0
        history = [f"item-{draw.integers(1, 53):02}"][: draw.integers(2)]
        first, second, alone = (answer(client, user_id, history) for client in (*replicas, single))
        assert first == second == alone


def test_two_processes_share_what_they_are_told_at_once(sasrec, server, tmp_path) -> None:
    settings = {"new_items": tmp_path / "items.sqlite", "history_limit": 1_000}
    with (
        served(sasrec.folder, server.url, tmp_path / "one", **settings) as one,
        served(sasrec.folder, server.url, tmp_path / "two", **settings) as two,
        httpx.Client() as client,
    ):
        addresses = [one.address, two.address]

        def send(number: int) -> int:
            event = {"user_id": f"user-{number % 3}", "item_id": f"item-{number % 50 + 1:02}", "event_id": str(number)}
            answers = [client.post(f"{address}/v1/events", json=event) for address in addresses]
            return sum(answer.json()["stored"] for answer in answers)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(send, range(60))) == [1] * 60
        for number in range(3):
            first, second = (client.get(f"{address}/v1/users/user-{number}").json() for address in addresses)
            assert first["events"] == second["events"]
            assert len(first["events"]) == 20
            asked = {"user_id": f"user-{number}", "k": 20}
            lists = [client.post(f"{address}/v1/recommend", json=asked).json()["items"] for address in addresses]
            assert lists[0] == lists[1]
