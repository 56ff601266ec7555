"""User state: what `/v1/events` stored is what a history sent with the request would be."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from recsys.errors import ConfigError
from serving.state import Event, SqliteState, StateError

NOON = 1_700_000_000_000_000


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqliteState]:
    store = SqliteState(tmp_path / "state.sqlite", history_limit=5)
    yield store
    store.close()


def event(item_id: str, timestamp: int = NOON, user_id: str = "ann", event_id: str | None = None) -> Event:
    return Event(user_id=user_id, item_id=item_id, timestamp=timestamp, event_id=event_id)


def post_events(client: TestClient, events: Any) -> dict[str, Any]:
    answer = client.post("/v1/events", json=events)
    assert answer.status_code == 202, answer.text
    return answer.json()


def recommend(client: TestClient, **body: Any) -> dict[str, Any]:
    """The answer without what differs between two equal requests."""
    answer = client.post("/v1/recommend", json=body).json()
    differing = {"request_id", "state", "encoding", "stages", "milliseconds"}
    return {key: value for key, value in answer.items() if key not in differing}


def test_stored_events_answer_like_the_same_history_sent(client) -> None:
    history = ["item-07", "unknown", "item-12", "item-30", "item-07"]
    answer = post_events(client, [{"user_id": "ann", "item_id": item_id} for item_id in history])
    assert (answer["stored"], answer["duplicates"], answer["unknown_items"]) == (5, 0, ["unknown"])
    assert recommend(client, user_id="ann") == recommend(client, history=history)
    assert recommend(client, user_id="ann", history=["item-44"]) == recommend(client, history=[*history, "item-44"])
    assert recommend(client, user_id="bob") == recommend(client, history=[])


def test_one_event_may_come_alone(client) -> None:
    assert post_events(client, {"user_id": "ann", "item_id": "item-07"})["stored"] == 1
    assert recommend(client, user_id="ann") == recommend(client, history=["item-07"])


def test_an_event_without_time_happens_now(client) -> None:
    post_events(client, {"user_id": "ann", "item_id": "item-07"})
    post_events(client, {"user_id": "ann", "item_id": "item-08", "timestamp": NOON})
    assert recommend(client, user_id="ann") == recommend(client, history=["item-08", "item-07"])


def test_state_survives_a_restart(client_of, sasrec) -> None:
    first = client_of(sasrec)
    post_events(first, [{"user_id": "ann", "item_id": item_id} for item_id in ("item-07", "item-12")])
    before = recommend(first, user_id="ann")
    first.__exit__(None, None, None)
    second = client_of(sasrec)
    assert recommend(second, user_id="ann") == before
    assert before["history_length"] == 2


def test_history_is_in_order_of_time_then_of_arrival(state) -> None:
    state.append([event("c", NOON + 2), event("a", NOON)])
    state.append([event("d", NOON + 2), event("b", NOON)])
    assert state.history("ann") == ["a", "b", "c", "d"]
    assert state.history("bob") == []


def test_only_the_newest_events_are_kept(state, tmp_path) -> None:
    state.append([event("bob's", user_id="bob")])
    state.append([event(str(number), NOON + number) for number in range(4)])
    state.append([event(str(number), NOON + number) for number in (7, 6, 5, 4)])
    state.append([event("late", NOON - 1)])
    assert state.history("ann") == ["3", "4", "5", "6", "7"]
    assert state.history("bob") == ["bob's"]
    with sqlite3.connect(tmp_path / "state.sqlite") as file:
        assert file.execute("SELECT count(*) FROM events").fetchone() == (6,)
    file.close()


def test_the_service_bounds_what_it_keeps(client_of, sasrec) -> None:
    client = client_of(sasrec, history_limit=3)
    post_events(client, [{"user_id": "ann", "item_id": f"item-{number:02}"} for number in range(20, 28)])
    assert recommend(client, user_id="ann") == recommend(client, history=["item-25", "item-26", "item-27"])


def test_an_event_id_counts_once_a_user(state) -> None:
    assert state.append([event("a", event_id="1"), event("a", event_id="1"), event("b", event_id="2")]) == 2
    assert state.append([event("a", event_id="1"), event("c")]) == 1
    assert state.append([event("c")]) == 1
    assert state.append([event("a", event_id="1", user_id="bob")]) == 1
    assert state.history("ann") == ["a", "b", "c", "c"]
    assert state.history("bob") == ["a"]


def test_a_repeated_request_stores_nothing_twice(client) -> None:
    events = [{"user_id": "ann", "item_id": f"item-{number}", "event_id": str(number)} for number in (20, 21)]
    assert post_events(client, events)["stored"] == 2
    again = post_events(client, events)
    assert (again["stored"], again["duplicates"]) == (0, 2)
    assert recommend(client, user_id="ann")["history_length"] == 2


def test_events_are_stored_all_or_none(state) -> None:
    with pytest.raises(StateError, match="NOT NULL"):
        state.append([event("a"), event(None)])  # type: ignore[arg-type]  # SQLite itself refuses the second
    assert state.history("ann") == []
    state.append([event("b")])
    assert state.history("ann") == ["b"]


def test_concurrent_appends_of_two_processes_lose_nothing(tmp_path) -> None:
    stores = [SqliteState(tmp_path / "shared.sqlite", history_limit=1_000) for _ in range(2)]
    events = [event(f"{writer}-{number}", user_id=f"user-{number % 2}") for writer in range(8) for number in range(30)]
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda place: stores[place % 2].append([events[place]]), range(len(events))))
    assert sum(stored) == len(events)
    for store in stores:
        assert sorted(store.history("user-0") + store.history("user-1")) == sorted(each.item_id for each in events)
        store.close()


def test_concurrent_requests_lose_nothing(client) -> None:
    bodies = [{"user_id": "ann", "item_id": f"i{number}", "event_id": str(number)} for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: post_events(client, body), [*bodies, *bodies]))
    assert sum(answer["stored"] for answer in answers) == len(bodies)
    assert sorted(client.app.state.variants.stores.state.history("ann")) == sorted(body["item_id"] for body in bodies)


@pytest.mark.parametrize("kind", ["no folder", "not a database"])
def test_an_unusable_file_is_refused_with_its_name(kind, tmp_path) -> None:
    path = tmp_path / "missing" / "state.sqlite" if kind == "no folder" else tmp_path / "text"
    if kind == "not a database":
        path.write_text("something else entirely, long enough to be read as a header\n" * 40)
    with pytest.raises(ConfigError, match=rf"{path}: cannot keep user state there \(.*RECSYS_STATE"):
        SqliteState(path, history_limit=5)
