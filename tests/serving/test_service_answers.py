"""What `/v1/recommend`, `/v1/similar` and `/v1/items` answer: torch's own ranking, and what must never be in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient


def recommend(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def random_history(rng: np.random.Generator, item_ids: Sequence[str]) -> list[str]:
    return [item_ids[place] for place in rng.integers(0, len(item_ids), rng.integers(1, 41)).tolist()]


def assert_ranks_like(answer: dict[str, Any], scores: np.ndarray, rows: dict[str, int], k: int) -> None:
    """The k best of `scores` [V] in their order; only scores within float noise of each other may change places."""
    expected = [row for row in np.argsort(-scores, kind="stable")[:k] if np.isfinite(scores[row])]
    found = [rows[item_id] for item_id in ids(answer)]
    assert len(set(found)) == len(found) == len(expected)
    np.testing.assert_allclose([item["score"] for item in answer["items"]], scores[expected], rtol=0, atol=1e-4)
    swapped = [(a, b) for a, b in zip(found, expected, strict=True) if a != b]
    assert all(abs(scores[a] - scores[b]) <= 1e-5 for a, b in swapped), swapped


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_the_top_20_of_1000_histories_are_those_of_the_torch_model(name, exclude_seen, request, client_of) -> None:
    tiny = request.getfixturevalue(name)
    client, rng = client_of(tiny), np.random.default_rng(3)
    for _ in range(1000):
        history = random_history(rng, tiny.catalog.item_ids)
        scores = tiny.scores(history)
        if exclude_seen:
            scores[[tiny.catalog.rows[item_id] for item_id in history]] = -np.inf
        answer = recommend(client, history=history, k=20, exclude_seen=exclude_seen)
        assert answer["source"] == "model"
        assert (answer["history_length"], answer["history_used"]) == (len(history), min(len(history), 10))
        assert_ranks_like(answer, scores, tiny.catalog.rows, 20)


@pytest.mark.parametrize("steps", [None, 0, 1, 2])
def test_a_model_that_reasons_takes_the_steps_it_is_asked_for(steps, rearec, client_of) -> None:
    client, rng = client_of(rearec), np.random.default_rng(4)
    assert client.get("/version").json()["reasoning_steps"] == 2
    for _ in range(50):
        history = random_history(rng, rearec.catalog.item_ids)
        answer = recommend(client, history=history, k=20, reasoning_steps=steps)
        assert_ranks_like(answer, rearec.scores(history, steps=steps), rearec.catalog.rows, 20)


@pytest.mark.parametrize(("name", "most"), [("sasrec", 0), ("rearec", 2)])
def test_more_steps_than_the_bundle_has_are_refused(name, most, request, client_of) -> None:
    client = client_of(request.getfixturevalue(name))
    assert client.get("/version").json()["reasoning_steps"] == most
    recommend(client, history=["item-05"], reasoning_steps=most)
    answer = client.post("/v1/recommend", json={"history": ["item-05"], "reasoning_steps": most + 1})
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        f"reasoning_steps: {most + 1} were asked for, and the model of this bundle takes at most {most}"
    )


@pytest.mark.parametrize(("name", "hidden"), [("sasrec", True), ("bert4rec", False)])
def test_without_exclude_seen_the_rule_of_the_bundle_holds(name, hidden, request, client_of) -> None:
    tiny = request.getfixturevalue(name)
    history = ["item-08", "item-30"]
    answer = recommend(client_of(tiny), history=history, k=200)
    assert (not set(history) & set(ids(answer))) is hidden


def test_unknown_items_change_nothing_and_are_named_once(client) -> None:
    plain = recommend(client, history=["item-05", "item-30"], k=7)
    mixed = recommend(client, history=["x", "item-05", "y", "x", "item-30", "z"], exclude=["w", "x"], k=7)
    assert mixed["items"] == plain["items"]
    assert (plain["unknown_items"], mixed["unknown_items"]) == ([], ["x", "y", "z", "w"])
    assert mixed["history_length"] == mixed["history_used"] == 2


def test_an_unknown_item_takes_no_place_in_the_window(client) -> None:
    history = [f"item-{number:02}" for number in range(20, 30)]
    padded = [event for item_id in history for event in (item_id, "unknown")]
    assert recommend(client, history=padded)["items"] == recommend(client, history=history)["items"]


@pytest.mark.parametrize("history", [[], ["nobody", "knows"]])
def test_without_known_history_popularity_answers_and_says_so(history, client, sasrec) -> None:
    barred = ids(recommend(client, history=[], k=3))[1:]
    answer = recommend(client, history=history, exclude=barred, k=9)
    allowed = [
        (-sasrec.no_history[row], row)
        for item_id, row in sasrec.catalog.rows.items()
        if item_id not in {*sasrec.catalog.retired, *barred}
    ]
    expected = sorted(allowed)[:9]
    assert [(-item["score"], sasrec.catalog.rows[item["item_id"]]) for item in answer["items"]] == expected
    assert (answer["source"], answer["no_history"]) == ("no_history", "popularity, recent")
    assert (answer["history_length"], answer["unknown_items"]) == (0, history)


def test_a_model_answer_names_no_fallback(client) -> None:
    answer = recommend(client, history=["item-05"])
    assert (answer["source"], answer["no_history"]) == ("model", None)
    assert len(answer["items"]) == 10


@pytest.mark.parametrize("history", [["item-05", "item-03"], []])
def test_everything_is_returned_but_retired_items_and_padding(history, client, sasrec) -> None:
    answer = recommend(client, history=history, k=200, exclude_seen=False)
    assert sorted(ids(answer)) == sorted(set(sasrec.catalog.item_ids) - sasrec.catalog.retired)


def test_excluded_items_stay_out_and_fewer_may_be_left_than_asked_for(client, sasrec) -> None:
    keep = {"item-20", "item-21", "item-22"}
    exclude = sorted(set(sasrec.catalog.item_ids) - keep)
    answer = recommend(client, history=["item-05"], exclude=exclude, k=10)
    assert set(ids(answer)) == keep
    assert recommend(client, history=["item-05"], exclude=list(sasrec.catalog.item_ids), k=10)["items"] == []


def test_an_answer_shows_title_and_categories(client, sasrec) -> None:
    items = {item["item_id"]: item for item in recommend(client, history=["item-05"], k=200)["items"]}
    row = sasrec.catalog.rows["item-08"]
    assert (items["item-08"]["title"], items["item-08"]["categories"]) == (f"Title {row}", ["Drama", "War"])
    assert (items["item-01"]["title"], items["item-01"]["categories"]) == (None, [])


def test_an_answer_says_how_long_each_stage_took(client) -> None:
    milliseconds = recommend(client, history=["item-05"])["milliseconds"]
    assert milliseconds["state"] == 0
    assert milliseconds["encode"] > 0
    assert milliseconds["search"] > 0
    assert recommend(client, user_id="u", history=["item-05"])["milliseconds"]["state"] > 0


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_similar_items_have_the_largest_cosine(name, request, client_of) -> None:
    tiny = request.getfixturevalue(name)
    vectors = tiny.model.item_vectors().detach().numpy()[1:]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    row = tiny.catalog.rows["item-22"]
    cosines = np.concatenate([[-np.inf], unit @ unit[row - 1]])
    cosines[[row, *tiny.catalog.retired_rows]] = -np.inf
    answer = client_of(tiny).get("/v1/similar/item-22", params={"k": 12}).json()
    assert answer["item_id"] == "item-22"
    assert_ranks_like(answer, cosines, tiny.catalog.rows, 12)


def test_item_details_hold_the_other_fields_and_ids_may_hold_slashes(client) -> None:
    details = client.get("/v1/items/a/b").json()
    assert (details["item_id"], details["fields"], details["retired"]) == ("a/b", {"year": 1990}, False)
    assert client.get("/v1/items/item-03").json()["retired"] is True
    assert client.get("/v1/similar/a/b").json()["item_id"] == "a/b"


def test_version_names_the_bundle_and_what_was_measured(client, sasrec) -> None:
    version = client.get("/version").json()
    answer = recommend(client, history=["item-05"])
    assert version["bundle"] == answer["model_version"] == client.app.state.variants.control.service.bundle.version
    assert (version["model"], version["items"], version["max_len"]) == ("sasrec", sasrec.catalog.num_items, 10)
    assert version["metrics"] == {"test": {"ndcg_at_10": 0.25}}


def test_the_description_of_the_api_is_offered(client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/events", "/health/ready", "/version", "/metrics"} <= paths.keys()
