"""Of a deleted user nothing comes back by what was asked before; and what hangs keeps no service from ending."""

from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_exposure_log import post, soon
from test_service_metrics import samples

from recsys.exposures import read_exposures
from serving.recommender import Recommender
from serving.successor import check_successor
from serving.variants import Variants


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "exposures"


@pytest.fixture
def client(client_of, sasrec, bert4rec, log) -> TestClient:
    """Of the variants control and new, the latter in the shadow; ann did something."""
    client = client_of(
        sasrec,
        variants={"new": str(bert4rec.folder)},
        shadows=("new",),
        shadow_waiting=3,
        exposures=log,
        watch_seconds=0,
    )
    post(client, "/v1/events", {"user_id": "ann", "item_id": "item-12"})
    return client


def variants_of(client: TestClient) -> Variants:
    return client.app.state.variants  # type: ignore[attr-defined]


def remembers(recommender: Recommender) -> bool:
    """Whether it holds anything that was made of a history."""
    return bool(recommender.recent() or recommender.cache_size().entries)


def test_shadows_do_not_answer_what_a_deleted_user_asked(client, log, monkeypatch) -> None:
    new = variants_of(client).all["new"].service.recommender
    begun, released, answering = Event(), Event(), new.recommend

    def late(query: Any) -> Any:
        begun.set()
        released.wait(30)
        return answering(query)

    monkeypatch.setattr(new, "recommend", late)
    for _ in range(3):
        post(client, "/v1/recommend", {"user_id": "ann"})
    assert begun.wait(30)
    client.delete("/v1/users/ann")
    released.set()
    assert soon(lambda: samples(client).get(("recsys_shadow_missed_total", "new", "dropped")) == 2)
    assert not remembers(new)
    back = post(client, "/v1/recommend", {"history": ["item-05"]})
    assert soon(lambda: samples(client).get(("recsys_shadow_seconds_count", "new")) == 2)
    client.__exit__(None, None, None)
    assert read_exposures(log, shadow=True)["request_id"].to_list() == [back["request_id"]]


def test_a_bundle_on_trial_keeps_nothing_of_who_is_deleted_meanwhile(client, monkeypatch) -> None:
    variants = variants_of(client)
    old, new = variants.control.service, variants.all["new"].service
    for _ in range(2):
        post(client, "/v1/recommend", {"user_id": "ann"})
    assert soon(lambda: samples(client).get(("recsys_shadow_seconds_count", "new")) == 2)
    new.recommender.drop_kept()
    assert "item-12" in {item for query in old.recommender.recent() for item in query.history}
    answering, deleted = old.recommender.recommend, []

    def recommend(query: Any) -> Any:
        if not deleted:
            deleted.append(variants.forget("ann"))
        return answering(query)

    monkeypatch.setattr(old.recommender, "recommend", recommend)
    check_successor(new, old, client.app.state.settings.model_copy(update={"least_shared_items": 0}))
    assert deleted == [1]
    assert not remembers(old.recommender)
    assert not remembers(new.recommender)


def test_what_hangs_keeps_nothing_from_being_written_at_the_end(client_of, sasrec, bert4rec, log, monkeypatch) -> None:
    client = client_of(
        sasrec,
        variants={"new": str(bert4rec.folder)},
        shadows=("new",),
        shadow_waiting=1,
        exposures=log,
        watch_seconds=0.01,
    )
    hanging, released, ended = [Event(), Event()], Event(), []

    def hang(number: int) -> None:
        hanging[number].set()
        ended.append(released.wait(60))

    new = variants_of(client).all["new"]
    monkeypatch.setattr(new.service.recommender, "recommend", lambda _: hang(0))
    monkeypatch.setattr(new, "follow", lambda: hang(1))
    for _ in range(5):
        post(client, "/v1/recommend", {"history": ["item-05"]})
    assert all(each.wait(30) for each in hanging)
    client.__exit__(None, None, None)
    assert (len(read_exposures(log)), ended) == (5, [])
    released.set()
    assert soon(lambda: len(ended) == 2)
