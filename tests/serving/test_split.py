"""Who gets which variant: always the same, in shares that follow the weights; and how that is changed while serving."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from test_service_metrics import samples

from recsys.errors import ConfigError
from serving.app import create_app
from serving.settings import Settings, read_settings
from serving.split import Split, SplitFile

USERS = [f"user:u{number}" for number in range(20_000)]
CHI_SQUARE = {1: 10.83, 2: 13.82}
"""What chance exceeds once in a thousand times, by degrees of freedom."""


def split(salt: str = "s", **weights: float) -> Split:
    return Split(salt=salt, weights=weights)


def chosen(one: Split) -> list[str]:
    return [one.choose(user)[0] for user in USERS]


def test_shares_follow_the_weights() -> None:
    one = split(control=5, new=3, other=2, idle=0)
    found = chosen(one)
    expected = {"control": 0.5, "new": 0.3, "other": 0.2}
    assert one.shares == expected | {"idle": 0}
    counts = {name: found.count(name) for name in expected}
    distance = sum((counts[name] - share * len(USERS)) ** 2 / (share * len(USERS)) for name, share in expected.items())
    assert distance < CHI_SQUARE[2]
    assert "idle" not in found
    assert {one.choose(user) for user in USERS[:200]} == set(expected.items())


def test_a_user_keeps_the_variant_unless_it_loses_share() -> None:
    before, after = chosen(split(control=0.9, new=0.1)), chosen(split(control=0.8, new=0.2))
    assert chosen(split(control=90, new=10)) == before
    moved = [(old, now) for old, now in zip(before, after, strict=True) if old != now]
    assert set(moved) == {("control", "new")}
    assert abs(len(moved) / len(USERS) - 0.1) < 0.01
    three, two = chosen(split(a=2, b=1, c=1)), chosen(split(a=2, b=1, c=0))
    assert {old for old, now in zip(three, two, strict=True) if old != now} == {"c"}


def test_another_salt_mixes_anew() -> None:
    one, other = chosen(split("s", a=1, b=1)), chosen(split("t", a=1, b=1))
    both = np.mean([a == b for a, b in zip(one, other, strict=True)])
    assert abs(both - 0.5) < 0.02


def test_stopping_leaves_somebody_to_answer() -> None:
    one = Split(salt="s", weights={"control": 0.5, "new": 0.5}, shadows=("new",))
    assert (one.without("new").shares, one.without("new").shadows) == ({"control": 1, "new": 0}, ())
    assert one.without("control").shares == {"control": 0, "new": 1}
    assert one.without("control").without("new").shares == {"control": 1, "new": 0}
    assert one.without(None) == Split(salt="s", weights={"control": 1, "new": 0})


@pytest.fixture
def start(tmp_path: Path, sasrec, bert4rec):
    """`start(weights=…)`: a service with the variants control (SASRec), new (BERT4Rec) and twin (SASRec)."""
    opened = []

    def run(**settings: Any) -> TestClient:
        variants = {"new": str(bert4rec.folder), "twin": str(sasrec.folder)}
        state = tmp_path / "state.sqlite"
        app = create_app(sasrec.folder, Settings(state=state, watch_seconds=0, variants=variants, **settings))
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client

    yield run
    for client in opened:
        client.__exit__(None, None, None)


def post(client: TestClient, path: str, body: Any, status: int = 200) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def recommend(client: TestClient, **asked: Any) -> dict[str, Any]:
    return post(client, "/v1/recommend", {"history": ["item-05", "item-30"], **asked})


def variants_of(client: TestClient, kind: str, count: int = 40) -> list[str]:
    return [recommend(client, **{kind: f"u{number}"})["variant"] for number in range(count)]


def test_users_and_sessions_keep_their_variant_and_each_answer_is_of_its_bundle(start) -> None:
    client = start(weights={"control": 1, "new": 1})
    versions = {model["variant"]: model["bundle"] for model in client.get("/v1/models").json()["models"]}
    for kind in ("user_id", "session_id"):
        found = variants_of(client, kind)
        assert set(found) == {"control", "new"}
        assert variants_of(client, kind) == found
    answer = recommend(client, user_id="u1")
    assert answer["model_version"] == versions[answer["variant"]]
    assert len({recommend(client)["variant"] for _ in range(40)}) == 2, "by the request's own id"
    asks = [{"history": ["item-05", "item-30"], "user_id": f"u{number}"} for number in range(12)]
    batch = post(client, "/v1/recommend/batch", {"requests": asks})["answers"]
    alone = [post(client, "/v1/recommend", ask) for ask in asks]
    assert [(one["variant"], one["model_version"]) for one in batch] == [
        (one["variant"], one["model_version"]) for one in alone
    ]
    assert [[item["item_id"] for item in one["items"]] for one in batch] == [
        [item["item_id"] for item in one["items"]] for one in alone
    ]
    assert {one["variant"] for one in batch} == {"control", "new"}


def test_weights_change_at_once_and_a_variant_can_be_stopped(start) -> None:
    client = start()
    assert set(variants_of(client, "user_id")) == {"control"}
    answer = client.put("/v1/variants", json={"weights": {"control": 1, "new": 3}}).json()
    assert answer["shares"] == {"control": 0.25, "new": 0.75, "twin": 0}
    assert answer["kept"] is False
    assert variants_of(client, "user_id").count("new") > 20
    assert samples(client)["recsys_share", "new"] == 0.75
    assert post(client, "/v1/variants/stop", {"variant": "new"})["shares"]["control"] == 1
    assert set(variants_of(client, "user_id")) == {"control"}
    client.put("/v1/variants", json={"weights": {"twin": 1}, "shadows": ["new"]})
    assert set(variants_of(client, "user_id")) == {"twin"}
    models = {model["variant"]: model for model in client.get("/v1/models").json()["models"]}
    assert [(model["share"], model["shadow"]) for model in models.values()] == [(0, False), (0, True), (1, False)]
    assert post(client, "/v1/variants/stop", {})["shadows"] == []
    assert set(variants_of(client, "user_id")) == {"control"}
    for weights, message in (
        ({"nobody": 1}, "there is no variant 'nobody'; there are control, new, twin"),
        ({"control": 0}, "give numbers from 0, one of them above"),
        ({"control": -1}, "greater than or equal to 0"),
        ({}, "at least 1 item"),
    ):
        refused = client.put("/v1/variants", json={"weights": weights})
        assert refused.status_code == 422
        assert message in refused.json()["detail"]
    assert post(client, "/v1/variants/stop", {"variant": "nobody"}, 404)


def test_a_file_keeps_weights_over_a_restart_and_tells_other_processes(start, tmp_path) -> None:
    file = tmp_path / "split.json"
    client, other = start(split_file=file), start(split_file=file)
    assert client.put("/v1/variants", json={"weights": {"new": 1}}).json()["kept"] is True
    assert set(variants_of(other, "user_id", 3)) == {"new"}
    assert set(variants_of(start(split_file=file, weights={"control": 1}), "user_id", 3)) == {"new"}
    file.write_text("{")
    assert set(variants_of(client, "user_id", 3)) == {"new"}, "what cannot be read changes nothing"
    with pytest.raises(ConfigError, match=r"split\.json: holds no split"):
        start(split_file=file)
    file.write_text(json.dumps({"weights": {"old": 1}, "shadows": []}))
    with pytest.raises(ConfigError, match=r"split\.json: weights: there is no variant 'old'"):
        start(split_file=file)


@pytest.mark.parametrize("kept", ["in memory", "in one process", "in two"])
def test_of_two_that_are_stopped_at_once_none_comes_back(kept, tmp_path) -> None:
    path = None if kept == "in memory" else tmp_path / "split.json"
    one = SplitFile(split(control=1, a=1, b=1), path)
    other = SplitFile(split(control=1, a=1, b=1), path) if kept == "in two" else one
    begun, over = Event(), Event()

    def slowly(now: Split) -> Split:
        begun.set()
        over.wait(0.3)  # in vain where the other one waits its turn
        return now.without("a")

    first = Thread(target=one.change, args=(slowly,))
    first.start()
    assert begun.wait(20)
    other.change(lambda now: now.without("b"))
    over.set()
    first.join(20)
    assert one.now.weights == other.now.weights == {"control": 1, "a": 0, "b": 0}


def test_who_reads_an_older_file_slowly_does_not_undo_a_change(tmp_path, monkeypatch) -> None:
    file = SplitFile(split(control=1, a=1), tmp_path / "split.json")
    (tmp_path / "split.json").write_text(json.dumps({"weights": {"control": 1, "a": 2}, "shadows": []}))
    read, begun, over = json.loads, Event(), Event()

    def slowly(text: str) -> Any:
        content = read(text)
        if not begun.is_set():
            begun.set()
            over.wait(0.3)  # in vain where the change waits for the reader
        return content

    monkeypatch.setattr(json, "loads", slowly)
    reader = Thread(target=lambda: file.now)
    reader.start()
    assert begun.wait(20)
    file.change(lambda now: now.without("a"))
    over.set()
    reader.join(20)
    assert file.now.weights == {"control": 1, "a": 0}


def test_items_and_deletions_reach_all_variants(start) -> None:
    client = start(weights={"control": 1, "new": 1})
    assert client.delete("/v1/items/item-09").status_code == 204
    answers = [recommend(client, user_id=f"u{number}", k=200) for number in range(10)]
    assert {answer["variant"] for answer in answers} == {"control", "new"}
    assert not [answer for answer in answers if "item-09" in [item["item_id"] for item in answer["items"]]]
    variants = client.app.state.variants
    assert all(service.recommender.cache_size().entries for service in variants.services())
    client.delete("/v1/users/u1")
    assert [service.recommender.cache_size().entries for service in variants.services()] == [0, 0, 0]


def sum_of(counts: dict[tuple[str, ...], float], name: str) -> float:
    return sum(value for key, value in counts.items() if key[0] == name)


def once(client: TestClient, holds: Callable[[dict[tuple[str, ...], float]], bool]) -> dict[tuple[str, ...], float]:
    """The counts when this holds, or after some seconds."""
    deadline = time.monotonic() + 20
    while not holds(counts := samples(client)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return counts


def test_shadows_answer_the_same_and_are_only_measured(start) -> None:
    client = start(shadows=("new", "twin"))
    post(client, "/v1/events", {"user_id": "u1", "item_id": "item-12"}, 202)
    answers = [recommend(client, user_id=f"u{number}") for number in range(6)]
    assert {answer["variant"] for answer in answers} == {"control"}
    counts = once(client, lambda counts: sum_of(counts, "recsys_shadow_seconds_count") == 12)
    assert counts["recsys_shadow_seconds_count", "new"] == counts["recsys_shadow_seconds_count", "twin"] == 6
    assert counts["recsys_shadow_overlap_sum", "twin"] == 6, "the same bundle, over the same events"
    assert counts["recsys_shadow_overlap_sum", "new"] < 6
    assert counts["recsys_answer_seconds_count", "control"] == 6
    assert ("recsys_answer_seconds_count", "new") not in counts
    assert client.get("/", params={"item": "item-05"}).status_code == 200
    page = samples(client)
    assert page["recsys_stage_seconds_count", "encode"] > counts["recsys_stage_seconds_count", "encode"]
    assert page["recsys_answer_seconds_count", "control"] == 6, "the page is nobody's variant"
    assert ("recsys_answer_seconds_count", "new") not in page


def test_a_shadow_that_is_slow_or_broken_costs_nobody_anything(start, monkeypatch) -> None:
    client = start(shadows=("new",), shadow_waiting=2)
    released, recommender = Event(), client.app.state.variants.all["new"].service.recommender
    monkeypatch.setattr(recommender, "recommend", lambda _: released.wait(20) and 1 / 0)
    assert len([recommend(client) for _ in range(8)]) == 8
    released.set()
    counts = once(client, lambda counts: sum_of(counts, "recsys_shadow_missed_total") == 8)
    dropped, failed = (counts["recsys_shadow_missed_total", "new", why] for why in ("dropped", "failed"))
    assert dropped + failed == 8
    assert 2 <= failed <= 3
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"VARIANTS": "new"}, "RECSYS_VARIANTS='new' cannot be used: .*'new' is no NAME=VALUE; put semicolons between"),
        ({"VARIANTS": "a b=x"}, "RECSYS_VARIANTS=.* cannot be used"),
        ({"WEIGHTS": "control=many"}, "RECSYS_WEIGHTS=.*valid number"),
        ({"VARIANTS": "control=x"}, "control is the bundle that `recsys serve` names"),
        ({"WEIGHTS": "new=1"}, "RECSYS_WEIGHTS, RECSYS_SHADOWS: weights: there is no variant 'new'; there are control"),
        ({"SHADOWS": "new"}, "shadows: there is no variant 'new'"),
    ],
)
def test_wrong_settings_are_said_at_the_start(variables, message, sasrec, tmp_path, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"RECSYS_{name}", value)
    with (
        pytest.raises(ConfigError) as error,
        TestClient(create_app(sasrec.folder, read_settings(tmp_path / "state.sqlite"))),
    ):
        pass
    assert re.search(message, str(error.value)), error.value


def test_settings_are_read_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("RECSYS_VARIANTS", "new=models:/shop@new; other=/b/o")
    monkeypatch.setenv("RECSYS_WEIGHTS", "control=9; new=0.5")
    monkeypatch.setenv("RECSYS_SHADOWS", "other")
    settings = read_settings()
    assert settings.variants == {"new": "models:/shop@new", "other": "/b/o"}
    assert (settings.weights, settings.shadows) == ({"control": 9, "new": 0.5}, ("other",))
