"""Items that a client took out: in no answer, after a restart either, until they are sent again."""

from typing import Any

import pytest
from fastapi.testclient import TestClient


def shown(client: TestClient, history: list[str]) -> set[str]:
    answer = client.post("/v1/recommend", json={"history": history, "k": 200, "exclude_seen": False})
    return {item["item_id"] for item in answer.json()["items"]}


def similar(client: TestClient) -> set[str]:
    return {item["item_id"] for item in client.get("/v1/similar/item-22", params={"k": 200}).json()["items"]}


def post(client: TestClient, body: Any) -> Any:
    return client.post("/v1/items", json=body)


def assert_absent(client: TestClient, item_id: str) -> None:
    for found in (shown(client, ["item-05", item_id]), shown(client, []), similar(client)):
        assert item_id not in found
        assert len(found) > 40
    assert client.get(f"/v1/items/{item_id}").json()["retired"] is True


def test_a_deleted_item_is_in_no_answer_and_comes_back_by_its_id(client_of, sasrec) -> None:
    client = client_of(sasrec)
    before = [shown(client, ["item-05"]), shown(client, []), similar(client)]
    for _ in range(2):
        assert client.delete("/v1/items/item-08").status_code == 204
    assert_absent(client, "item-08")
    answer = post(client, [{"item_id": "item-08"}])
    assert answer.status_code == 201
    assert {name: answer.json()[name] for name in ("stored", "replaced", "restored")} == {
        "stored": 0,
        "replaced": 0,
        "restored": 1,
    }
    assert [shown(client, ["item-05"]), shown(client, []), similar(client)] == before
    assert client.get("/v1/items/item-08").json()["retired"] is False


def test_a_deletion_survives_a_restart_and_so_does_taking_it_back(client_of, sasrec) -> None:
    client_of(sasrec).delete("/v1/items/a/b")
    again = client_of(sasrec)
    assert "a/b" not in shown(again, ["item-05"])
    post(again, {"item_id": "a/b"})
    assert "a/b" in shown(client_of(sasrec), ["item-05"])


def test_a_deletion_that_the_bundle_does_not_know_waits(client_of, sasrec, bert4rec) -> None:
    client_of(sasrec).delete("/v1/items/item-50")
    other = client_of(bert4rec)  # 41 items
    assert len(shown(other, ["item-05"])) == 41 - len(bert4rec.catalog.retired)
    assert "item-50" not in shown(client_of(sasrec), ["item-05"])


@pytest.mark.parametrize("item_id", ["item-08", "item-03"])
def test_what_is_not_deleted_does_not_come_back_by_its_id(item_id, client) -> None:
    """Neither an item that is there nor one that the bundle itself retired."""
    client.delete("/v1/items/item-03")
    answer = post(client, {"item_id": item_id})
    assert answer.status_code == 409
    assert "takes no new items" in answer.json()["detail"]


def test_an_unknown_item_cannot_be_deleted(client) -> None:
    answer = client.delete("/v1/items/nope")
    assert (answer.status_code, answer.json()["status"]) == (404, 404)


def test_an_item_with_texts_is_not_taken_for_one_that_comes_back(client) -> None:
    client.delete("/v1/items/item-08")
    assert post(client, {"item_id": "item-08", "title": "Another"}).status_code == 409
    assert "item-08" not in shown(client, ["item-05"])
