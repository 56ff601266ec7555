"""Bundles of two stages: the service ranks as evaluation does, and says what it did."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Client, Tiny
from fastapi.testclient import TestClient
from rankers import ranker, scrambled
from test_service_metrics import samples

from models.dare import DARE
from models.dare_graph import DAREGraph
from recsys.batches import Histories
from recsys.bundle import open_bundle
from recsys.ranker_export import write_ranker_files
from recsys.reranking import Reranker
from recsys.steps import MANIFEST, writing_step
from recsys.stored_ranker import RankerCard
from serving.ranking import SecondStage

CANDIDATES, SHORTEST, NUM_ITEMS = 14, 3, 53
LOG_SHARE = np.random.default_rng(3).normal(size=NUM_ITEMS + 1).astype(np.float32)
HISTORY = [f"item-{number:02}" for number in (5, 8, 21, 8, 40, 33, 12, 9, 50, 31, 2, 6, 7, 45)]


def random_ranker(seed: int = 0) -> DARE:
    """Reads 12 events, keeps 4, and has a short branch."""
    settings: dict[str, Any] = {"num_items": NUM_ITEMS, "time_buckets": 0, "max_len": 12, "recent": 2}
    return scrambled(ranker(**settings), seed)


def with_ranker(first: Tiny, folder: Path, model: DARE) -> Tiny:
    """A bundle of one stage, and a ranker beside it."""
    graph = DAREGraph(model)
    sizes = {name: getattr(graph, name) for name in ("blocks", "least_places", "recent")}
    card = RankerCard(
        name="dare", config={}, max_len=12, candidates=CANDIDATES, shortest=SHORTEST, weight=None, **sizes
    )
    with writing_step("export", folder, config={}) as step:
        for file in first.folder.iterdir():
            if file.name != MANIFEST:
                (step.folder / file.name).write_bytes(file.read_bytes())
        write_ranker_files(step.folder, graph, card, LOG_SHARE)
    return replace(first, folder=folder)


@pytest.fixture(scope="session")
def tiny(sasrec: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The SASRec bundle with a ranker."""
    return with_ranker(sasrec, tmp_path_factory.mktemp("two-stages") / "bundle", random_ranker())


@pytest.fixture
def client(client_of: Client, tiny: Tiny) -> TestClient:
    """The service on it."""
    return client_of(tiny)


def recommend(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def offline(tiny: Tiny, history: Sequence[str], exclude: Sequence[str] = (), candidates: int = CANDIDATES) -> Any:
    """(row, score) of the evaluator's second stage, best first."""
    known = [tiny.catalog.rows[item_id] for item_id in history if item_id in tiny.catalog.rows]
    first = tiny.scores(history)
    first[[*known, *(tiny.catalog.rows[item_id] for item_id in exclude)]] = -np.inf
    items = torch.tensor([known])
    batch = Histories(items, torch.zeros_like(items), torch.tensor([len(known)], dtype=torch.int32))
    reranker = Reranker(random_ranker().eval(), candidates, torch.from_numpy(LOG_SHARE), shortest=SHORTEST)
    scores = reranker.reordered(batch, torch.from_numpy(first)[None])[0].numpy()
    order = np.argsort(-scores, kind="stable")
    return [(row, scores[row]) for row in order.tolist() if np.isfinite(scores[row])]


def assert_as_offline(answer: dict[str, Any], tiny: Tiny, expected: Any) -> None:
    assert ids(answer) == [tiny.catalog.item_ids[row - 1] for row, _ in expected]
    np.testing.assert_allclose([item["score"] for item in answer["items"]], [score for _, score in expected], rtol=1e-4)


@pytest.mark.parametrize("length", [3, 4, 5, 11, 12, 13, 14])
def test_the_list_is_the_evaluators(length: int, client: TestClient, tiny: Tiny) -> None:
    """After the whole history: longer than either stage reads, with unknown items, fewer events than are kept."""
    history = ["unknown", *HISTORY[:length]]
    answer = recommend(client, history=history, k=CANDIDATES)
    assert_as_offline(answer, tiny, offline(tiny, history))
    assert answer["stages"] == ["encode", "search", "rank"]
    assert (answer["unranked"], answer["rank_events"], answer["rank_keys"]) == (None, min(length, 12), "gathered")
    assert answer["milliseconds"]["rank"] > 0
    assert ids(recommend(client, history=history, k=5)) == ids(answer)[:5], "as many are ranked for a short list"


def test_excluded_items_give_their_places_to_others(client: TestClient, tiny: Tiny) -> None:
    exclude = ids(recommend(client, history=HISTORY, k=8))
    answer = recommend(client, history=HISTORY, exclude=exclude, k=CANDIDATES)
    assert not set(ids(answer)) & {*exclude, *HISTORY, *tiny.catalog.retired}
    assert_as_offline(answer, tiny, offline(tiny, HISTORY, exclude))


def test_filters_choose_the_candidates_and_boosts_apply_to_the_final_scores(client: TestClient, tiny: Tiny) -> None:
    """Every second item is of two categories."""
    others = [item_id for item_id, row in tiny.catalog.rows.items() if row % 2 == 0]
    war = {"categories": {"any": ["War"]}}
    answer = recommend(client, history=HISTORY, k=CANDIDATES, filter=war)
    assert_as_offline(answer, tiny, offline(tiny, HISTORY, others))
    assert answer["rank_events"] == 12
    plain = recommend(client, history=HISTORY, k=50)
    boosted = recommend(client, history=HISTORY, k=50, boosts=[{"filter": war, "add": 1.5}])
    expected = {
        item["item_id"]: item["score"] + (1.5 if "War" in item["categories"] else 0.0) for item in plain["items"]
    }
    assert {item["item_id"]: item["score"] for item in boosted["items"]} == pytest.approx(expected, abs=1e-5)
    assert ids(boosted) == sorted(expected, key=lambda item_id: -expected[item_id])
    assert ids(boosted) != ids(plain)


def test_pages_of_a_ranked_list(client: TestClient) -> None:
    first = recommend(client, history=HISTORY, k=6)
    second = recommend(client, history=HISTORY, k=6, after=first["next"])
    assert ids(first) + ids(second) == ids(recommend(client, history=HISTORY, k=12))


def test_a_longer_list_than_is_ranked_by_rule_is_ranked_whole(client: TestClient, tiny: Tiny) -> None:
    answer = recommend(client, history=HISTORY, k=30)
    assert_as_offline(answer, tiny, offline(tiny, HISTORY, candidates=30))


def test_a_request_may_do_without_the_ranker(client: TestClient, client_of: Client, sasrec: Tiny, tmp_path) -> None:
    answer = recommend(client, history=HISTORY, rank=False)
    alone = recommend(client_of(sasrec, state=tmp_path / "other.sqlite"), history=HISTORY)
    assert answer["items"] == alone["items"]
    assert (answer["unranked"], answer["stages"]) == ("not asked", ["encode", "search"])
    assert (answer["rank_keys"], answer["rank_events"], answer["milliseconds"]["rank"]) == (None, 0, 0)
    assert ids(answer) != ids(recommend(client, history=HISTORY)), "or nothing is shown here"
    assert ids(recommend(client, history=HISTORY, rank=True)) == ids(recommend(client, history=HISTORY))


def test_a_bundle_without_a_ranker_refuses_to_rank(client_of: Client, sasrec: Tiny) -> None:
    client = client_of(sasrec)
    refusal = client.post("/v1/recommend", json={"history": HISTORY, "rank": True})
    assert refusal.status_code == 422
    assert refusal.json()["detail"].startswith("rank: this bundle holds no ranker; leave rank out")
    answer = recommend(client, history=HISTORY)
    assert (answer["unranked"], answer["stages"]) == (None, ["encode", "search"])
    assert recommend(client, history=HISTORY, rank=False)["items"] == answer["items"]
    assert client.get("/version").json()["ranker"] is None


@pytest.mark.parametrize("history", [[], HISTORY[:1], [*HISTORY[:2], "unknown"]])
def test_short_histories_keep_the_retrievers_order(history: list[str], client: TestClient) -> None:
    answer = recommend(client, history=history)
    assert (answer["unranked"], answer["rank_keys"]) == ("short history", None)
    assert "rank" not in answer["stages"]
    assert answer["items"] == recommend(client, history=history, rank=False)["items"]


def test_stored_events_are_ranked_by_and_their_keys_are_appended_to(client: TestClient, tiny: Tiny) -> None:
    """The list after each event is that of the history so far; a new start of the service changes nothing."""
    origins = []
    for place, item_id in enumerate(HISTORY, start=1):
        client.post("/v1/events", json={"user_id": "ann", "item_id": item_id, "timestamp": 10**15 + place})
        answer = recommend(client, user_id="ann", k=CANDIDATES)
        origins.append(answer["rank_keys"])
        if place >= SHORTEST:
            assert_as_offline(answer, tiny, offline(tiny, HISTORY[:place]))
            assert answer["stages"] == ["state", "encode", "search", "rank"]
    assert origins[:3] == [None, None, "gathered"]
    assert origins[3:].count("appended") > 8
    again = recommend(client, user_id="ann", k=CANDIDATES)
    assert (again["rank_keys"], again["items"]) == ("kept", answer["items"])
    longer = recommend(client, user_id="ann", history=["item-20"], k=CANDIDATES)
    assert_as_offline(longer, tiny, offline(tiny, [*HISTORY, "item-20"]))


def test_a_deleted_users_keys_are_not_kept(client: TestClient) -> None:
    for user_id in ("ann", "bob"):
        client.post("/v1/events", json=[{"user_id": user_id, "item_id": item_id} for item_id in HISTORY])
        recommend(client, user_id=user_id)
    kept = {user_id: client.get(f"/v1/users/{user_id}").json()["kept_keys"] for user_id in ("ann", "bob")}
    assert kept["ann"] == kept["bob"] > 0
    client.delete("/v1/users/ann")
    assert client.get("/v1/users/ann").json()["kept_keys"] == 0
    assert recommend(client, user_id="bob")["rank_keys"] == "gathered"


def test_answers_do_not_depend_on_kept_keys(client_of: Client, tiny: Tiny, tmp_path: Path) -> None:
    keeping, forgetting = client_of(tiny), client_of(tiny, state=tmp_path / "other.sqlite", key_cache_bytes=0)
    for client in (keeping, forgetting):
        client.post("/v1/events", json=[{"user_id": "ann", "item_id": item_id} for item_id in HISTORY])
    for session in ([], ["item-20"], ["item-22", "item-23"], []):
        both = [recommend(client, user_id="ann", history=session) for client in (keeping, forgetting)]
        assert ids(both[0]) == ids(both[1])
        assert both[1]["rank_keys"] == "gathered"


def test_an_item_that_came_later_keeps_its_place(tiny: Tiny) -> None:
    stored = open_bundle(tiny.folder).ranker
    assert stored is not None
    second = SecondStage(stored, 0, 60)
    new, events = NUM_ITEMS + 1, np.array([5, 8, 21])
    found = np.array([new + 4, 7, 9, new, 12])
    retrieved = np.array([9.0, 8.0, 7.0, 6.0, 5.0], dtype=np.float32)
    ranked = second.ranked(None, events, found, retrieved)
    assert ranked is not None
    own = stored.scores(stored.gathered(events), np.array([7, 9, 12]))
    order = np.argsort(-own)
    assert ranked.rows.tolist() == [new + 4, *np.array([7, 9, 12])[order][:2], new, np.array([7, 9, 12])[order][2]]
    np.testing.assert_allclose(ranked.scores, own[order][[0, 0, 1, 1, 2]], rtol=1e-6)
    assert second.ranked(None, events, np.array([new, new + 1]), retrieved[:2]) is None
    assert second.read(np.array([1, new, 2])) is None, "two events of items that it knows are a short history"
    assert second.read(np.array([1, new, 2, 3])).tolist() == [1, 2, 3]  # type: ignore[union-attr]


def test_a_weight_adds_the_two_stages_scores(tiny: Tiny) -> None:
    stored = open_bundle(tiny.folder).ranker
    assert stored is not None
    second = SecondStage(replace(stored, card=replace(stored.card, weight=0.5)), 0, 60)
    events, found = np.array([5, 8, 21]), np.array([7, 9, 12, 30])
    retrieved = np.array([0.9, 0.8, 0.1, -3.0], dtype=np.float32)
    expected = retrieved + 0.5 * stored.scores(stored.gathered(events), found)
    ranked = second.ranked(None, events, found, retrieved)
    assert ranked is not None
    np.testing.assert_allclose(ranked.scores, -np.sort(-expected), rtol=1e-5)
    assert ranked.rows.tolist() == found[np.argsort(-expected)].tolist()


def test_metrics_and_version_tell_of_the_second_stage(client: TestClient) -> None:
    client.post("/v1/events", json=[{"user_id": "ann", "item_id": item_id} for item_id in HISTORY])
    for body in ({"user_id": "ann"}, {"user_id": "ann"}, {"history": HISTORY}, {"history": HISTORY[:1]}):
        recommend(client, **body)
    recommend(client, history=HISTORY, rank=False)
    counts = samples(client)
    assert counts["recsys_rank_keys_total", "gathered"] == 2
    assert counts["recsys_rank_keys_total", "kept"] == 1
    assert counts["recsys_unranked_total", "short history"] == 1
    assert counts["recsys_unranked_total", "not asked"] == 1
    assert counts["recsys_stage_seconds_count", "rank"] == 3
    assert counts["recsys_key_cache_entries",] == 1
    assert counts["recsys_key_cache_bytes",] > 12 * 4
    assert client.get("/version").json()["ranker"] == {
        "name": "dare",
        "candidates": CANDIDATES,
        "max_len": 12,
        "shortest": SHORTEST,
        "weight": None,
    }


def test_the_page_shows_who_ranked(client: TestClient, client_of: Client, sasrec: Tiny, tmp_path: Path) -> None:
    def page(client: TestClient, history: Sequence[str]) -> str:
        return client.get("/", params={"item": history}).text

    ranked = page(client, HISTORY)
    assert "<dt>Ranked by</dt><dd>dare, 12 events</dd>" in ranked
    best = recommend(client, history=HISTORY, k=1)["items"][0]["title"]
    assert best in ranked[ranked.index('id="recommendations"') :].split("</li>")[0]
    short = page(client, HISTORY[:2])
    assert "<dt>Ranked by</dt><dd>sasrec</dd>" in short
    assert "Fewer than 3 events: the order is that of sasrec alone." in short
    assert "Ranked by" not in page(client_of(sasrec, state=tmp_path / "other.sqlite"), HISTORY)


def test_bundles_on_one_state_never_share_keys(client_of: Client, tiny: Tiny, sasrec: Tiny, tmp_path: Path) -> None:
    """Another ranker behind the same users, one after the other: each answers by its own keys."""
    first = client_of(tiny)
    first.post("/v1/events", json=[{"user_id": "ann", "item_id": item_id} for item_id in HISTORY])
    before = recommend(first, user_id="ann", k=CANDIDATES)
    second = client_of(with_ranker(sasrec, tmp_path / "other", random_ranker(seed=1)))
    answer = recommend(second, user_id="ann", k=CANDIDATES)
    assert answer["rank_keys"] == "gathered"
    assert answer["model_version"] != before["model_version"]
    assert ids(answer) != ids(before)
    again = recommend(first, user_id="ann", k=CANDIDATES)
    assert (again["rank_keys"], again["items"]) == ("kept", before["items"])
