"""`/metrics` counts what happened, and nothing that happened in another app."""

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families


def samples(client: TestClient) -> dict[tuple[str, ...], float]:
    """(name, label values in name order) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(client) -> None:
    for item_id in ("item-05", "item-06", "a/b", "nope"):
        client.get(f"/v1/items/{item_id}")
    client.get("/somewhere/else")
    counts = samples(client)
    assert counts["recsys_requests_total", "/v1/items/{item_id:path}", "200"] == 3
    assert counts["recsys_requests_total", "/v1/items/{item_id:path}", "404"] == 1
    assert counts["recsys_requests_total", "other", "404"] == 1
    assert counts["recsys_request_seconds_count", "/v1/items/{item_id:path}"] == 4
    assert counts["recsys_request_seconds_sum", "/v1/items/{item_id:path}"] > 0


def test_stages_fallbacks_and_unknown_items_are_counted(client) -> None:
    for body in ({"history": ["item-05", "x"]}, {"history": ["x", "y"]}, {"user_id": "ann", "history": ["item-05"]}):
        client.post("/v1/recommend", json=body)
    counts = samples(client)
    assert counts["recsys_no_history_total",] == 1
    assert counts["recsys_unknown_items_total", "recommend"] == 3
    stages = {stage: counts["recsys_stage_seconds_count", stage] for stage in ("state", "encode", "search")}
    assert stages == {"state": 1, "encode": 2, "search": 3}


def test_events_are_counted_by_outcome(client) -> None:
    event = {"user_id": "ann", "item_id": "x", "event_id": "1"}
    client.post("/v1/events", json=[event, event, {"user_id": "ann", "item_id": "item-05"}])
    counts = samples(client)
    assert counts["recsys_events_total", "stored"] == 2
    assert counts["recsys_events_total", "duplicate"] == 1
    assert counts["recsys_unknown_items_total", "events"] == 1


def test_each_app_counts_for_itself_and_names_its_bundle(client, client_of, bert4rec, tmp_path) -> None:
    client.get("/version")
    other = client_of(bert4rec, state=tmp_path / "other.sqlite")
    counts = samples(other)
    assert ("recsys_requests_total", "/version", "200") not in counts
    assert counts["recsys_bundle", "bert4rec", other.app.state.variants.control.service.bundle.version] == 1
