"""The store is slow or gone: answers come from what requests carry, events are refused, and it ends by itself."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis_server import RedisServer

from serving.breaker import FAILURES, Breaker, GuardedState
from serving.state import Event, StateError

PERSISTENT = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
REFUSED = "user state does not answer, and nothing was acknowledged; try again"


class Clock:
    """Goes on when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorded:
    """A state that fails when told, and counts how often it was asked."""

    fails = False
    asked = 0

    def history(self, user_id: str) -> list[str]:
        self.asked += 1
        if self.fails:
            raise StateError("gone")
        return [user_id]

    append = delete = events = check = history  # type: ignore[assignment]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", PERSISTENT).start()
    yield server
    server.stop()


def samples(client: TestClient) -> set[str]:
    return set(client.get("/metrics").text.splitlines())


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it does so within some seconds."""
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    differing = {"request_id", "state", "encoding", "stages", "milliseconds"}
    return {key: value for key, value in answer.items() if key not in differing}


def attempt(breaker: Breaker, fails: bool) -> bool:
    """Whether the call was let through."""
    tried = False
    try:
        with breaker.trying():
            tried = True
            if fails:
                raise StateError("gone")
    except StateError:
        pass
    return tried


def test_after_failures_in_a_row_one_call_a_pause_is_tried(caplog) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    breaker = Breaker("reading", pause_seconds=5, clock=clock)
    assert [attempt(breaker, fails=True) for _ in range(FAILURES + 2)] == [True] * FAILURES + [False] * 2
    clock.now += 4.9
    assert not attempt(breaker, fails=False)
    clock.now += 0.1
    assert attempt(breaker, fails=True)
    assert not attempt(breaker, fails=False)
    clock.now += 5
    assert [attempt(breaker, fails=False) for _ in range(3)] == [True] * 3
    assert caplog.messages == ["reading: 3 failures in a row, the last: gone", "reading: well again"]


def test_failures_that_are_not_in_a_row_stop_nothing() -> None:
    breaker = Breaker("reading", pause_seconds=5, clock=Clock())
    assert all(attempt(breaker, fails=number % FAILURES != 0) for number in range(20))


def test_while_one_call_tries_the_others_are_refused() -> None:
    clock = Clock()
    breaker = Breaker("reading", pause_seconds=5, clock=clock)
    for _ in range(FAILURES):
        attempt(breaker, fails=True)
    clock.now += 5
    with breaker.trying():
        assert not attempt(breaker, fails=False)
    assert attempt(breaker, fails=False)


def test_writing_that_fails_does_not_stop_reading() -> None:
    store = Recorded()
    state = GuardedState(store, pause_seconds=60)  # type: ignore[arg-type]
    store.fails = True
    for _ in range(FAILURES + 2):
        with pytest.raises(StateError):
            state.append([Event(user_id="ann", item_id="a", timestamp=1)])
    store.fails = False
    assert store.asked == FAILURES
    assert state.history("ann") == ["ann"]


def test_a_store_that_goes_and_comes_back(client_of, sasrec, server) -> None:
    """Redis is stopped in the middle and started again; the service is not."""
    client = client_of(sasrec, state=server.url, state_pause_seconds=0.3, new_items=server.folder / "items.sqlite")
    event = {"user_id": "ann", "item_id": "item-07", "event_id": "1"}
    assert client.post("/v1/events", json=[event, {"user_id": "ann", "item_id": "item-12"}]).status_code == 202
    asked = {"user_id": "ann", "history": ["item-30"]}
    before = client.post("/v1/recommend", json=asked).json()
    assert (before["state"], before["history_length"]) == ("read", 3)
    assert client.get("/health/ready").json() == {"status": "ok"}

    server.stop()
    for _ in range(FAILURES + 2):
        answer = client.post("/v1/recommend", json=asked)
        assert answer.status_code == 200
        assert answer.json()["state"] == "unavailable"
        alone = client.post("/v1/recommend", json={"history": ["item-30"]}).json()
        assert alone["state"] is None
        assert comparable(answer.json()) == comparable(alone)
    assert client.post("/v1/recommend", json={"user_id": "ann"}).json()["source"] == "no_history"
    refused = client.post("/v1/events", json=[{"user_id": "ann", "item_id": "item-44", "event_id": "2"}] * 3)
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
    assert (refused.json()["detail"], refused.headers["Retry-After"]) == (REFUSED, "1")
    assert client.get("/v1/users/ann").status_code == client.delete("/v1/users/ann").status_code == 503
    assert client.get("/health/ready").json() == {"status": "degraded"}
    assert client.get("/health/live").json() == {"status": "ok"}
    assert "The user state does not answer: stored events are left out." in client.get("/?user=ann").text
    assert {
        f"recsys_without_state_total {FAILURES + 4}.0",
        'recsys_events_total{outcome="refused"} 3.0',
        "recsys_state_up 0.0",
    } <= samples(client)

    server.start()
    assert soon(lambda: client.get("/health/ready").json() == {"status": "ok"})
    assert comparable(client.post("/v1/recommend", json=asked).json()) == comparable(before)
    assert client.post("/v1/events", json=event).json()["duplicates"] == 1
    assert "recsys_state_up 1.0" in samples(client)


def test_a_slow_store_costs_its_limit_a_few_times_and_then_nothing(client_of, sasrec, server) -> None:
    client = client_of(
        sasrec,
        state=server.url,
        state_seconds=0.1,
        state_pause_seconds=60,
        new_items=server.folder / "items.sqlite",
    )
    server.freeze()
    answers = [client.post("/v1/recommend", json={"user_id": "ann"}).json() for _ in range(FAILURES + 4)]
    server.thaw()
    assert {answer["state"] for answer in answers} == {"unavailable"}
    waited = [answer["milliseconds"]["state"] >= 100 for answer in answers]
    assert waited == [True] * FAILURES + [False] * 4


def test_a_file_that_is_gone_is_no_different(client) -> None:
    client.app.state.variants.stores.state.close()
    assert client.post("/v1/recommend", json={"user_id": "ann"}).json()["state"] == "unavailable"
    answer = client.post("/v1/events", json={"user_id": "ann", "item_id": "item-07"})
    assert (answer.status_code, answer.json()["detail"], answer.headers["Retry-After"]) == (503, REFUSED, "5")
    assert client.get("/health/ready").json() == {"status": "degraded"}
