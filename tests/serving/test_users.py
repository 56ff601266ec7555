"""`/v1/users/{user_id}`: all that is known of one user, and nothing left of a deleted one."""

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from serving.queries import Query

NOON = 1_700_000_000_000_000


def recommend(client: TestClient, **body: Any) -> dict[str, Any]:
    return client.post("/v1/recommend", json=body).json()


def send(client: TestClient, user_id: str, *item_ids: str) -> None:
    events = [
        {"user_id": user_id, "item_id": item_id, "timestamp": NOON + place, "event_id": f"{user_id}-{place}"}
        for place, item_id in enumerate(item_ids)
    ]
    assert client.post("/v1/events", json=events).status_code == 202


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("state.sqlite*"))


def test_all_that_is_known_of_a_user_is_shown(client) -> None:
    client.post("/v1/events", json={"user_id": "ann", "item_id": "x", "timestamp": NOON + 9})
    send(client, "ann", "item-07", "unknown")
    answer = client.get("/v1/users/ann", headers={"X-Request-ID": "abc"})
    assert answer.json() == {
        "request_id": "abc",
        "user_id": "ann",
        "events": [
            {"item_id": "item-07", "timestamp": NOON, "event_id": "ann-0"},
            {"item_id": "unknown", "timestamp": NOON + 1, "event_id": "ann-1"},
            {"item_id": "x", "timestamp": NOON + 9, "event_id": None},
        ],
        "kept_keys": 0,
    }
    assert client.get("/v1/users/bob").json()["events"] == []


@pytest.mark.parametrize("user_id", ["a/b", "ä ö", "x?y#z", "/"])
def test_any_id_has_a_path(user_id, client) -> None:
    send(client, user_id, "item-07")
    path = f"/v1/users/{quote(user_id, safe='')}"
    assert len(client.get(path).json()["events"]) == 1
    assert client.delete(path).json()["events"] == 1
    assert client.get(path).json()["events"] == []


def test_an_id_too_long_to_be_stored_is_refused(client) -> None:
    assert (
        client.get(f"/v1/users/{'x' * 513}").status_code == client.delete(f"/v1/users/{'x' * 513}").status_code == 422
    )


def test_a_deleted_user_leaves_nothing_behind(client, tmp_path) -> None:
    send(client, "somebody", "item-07", "item-12", "item-30")
    send(client, "ann", "item-44")
    assert recommend(client, user_id="somebody")["history_length"] == 3
    assert "Title" in client.get("/?user=somebody").text
    assert b"somebody" in files(tmp_path)
    assert client.delete("/v1/users/somebody").json()["events"] == 3
    assert b"somebody" not in files(tmp_path)
    assert client.app.state.variants.control.service.recommender.cache_size().entries == 0
    assert client.get("/v1/users/somebody").json()["events"] == []
    assert "Nothing is stored for this user." in client.get("/?user=somebody").text
    assert recommend(client, user_id="somebody")["source"] == "no_history"
    assert recommend(client, history=["item-07", "item-12", "item-30"])["encoding"] == "full"
    assert recommend(client, user_id="ann")["history_length"] == 1
    assert client.delete("/v1/users/somebody").json()["events"] == 0


def test_a_user_deleted_while_being_answered_leaves_no_encoding(client, monkeypatch) -> None:
    """The history was read before the deletion, and would be kept after it."""
    variants = client.app.state.variants
    service = variants.control.service
    send(client, "ann", "item-07", "item-12")
    read = service.stores.state.history

    def deleted_meanwhile(user_id: str) -> list[str]:
        history = read(user_id)
        variants.forget(user_id)
        return history

    monkeypatch.setattr(service.stores.state, "history", deleted_meanwhile)
    assert service.recommender.recommend(Query(user_id="ann")).history_length == 2
    assert service.recommender.cache_size().entries == 0


@pytest.mark.parametrize("seen_by", [None, "/health/ready", "/v1/users/bob"])
def test_a_deletion_in_one_process_reaches_what_the_other_keeps(seen_by, client, client_of, sasrec, tmp_path) -> None:
    """With the next request there, whoever asks, and whoever has read the state in between."""
    other = client_of(sasrec)
    send(client, "ann", "item-07")
    assert recommend(other, user_id="ann")["history_length"] == recommend(client, user_id="ann")["history_length"] == 1
    assert other.delete("/v1/users/ann").json()["events"] == 1
    assert client.app.state.variants.control.service.recommender.cache_size().entries > 0
    if seen_by is not None:
        assert client.get(seen_by).status_code == 200
    assert recommend(client, user_id="bob")["source"] == "no_history"
    assert client.app.state.variants.control.service.recommender.cache_size().entries == 0
    assert recommend(client, user_id="ann")["history_length"] == 0
    with sqlite3.connect(tmp_path / "state.sqlite") as file:
        assert file.execute("SELECT count(*) FROM events").fetchone() == (0,)
    file.close()
