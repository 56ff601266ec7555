"""The typed client against a service on a port: answers in its own classes, and one kind of error."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from recsys import client as client_module
from recsys.client import Ask, Client, Event, NewItem, Read, ServiceError
from serving.app import create_app
from serving.run import bound_socket
from serving.settings import Settings


@pytest.fixture(scope="module")
def address(sasrec, tmp_path_factory) -> Iterator[str]:
    """A service of the SASRec bundle on a free port."""
    state = tmp_path_factory.mktemp("client") / "state.sqlite"
    with bound_socket("127.0.0.1", 0) as listener:
        config = uvicorn.Config(create_app(sasrec.folder, Settings(state=state)), log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(address) -> Iterator[Client]:
    with Client(address) as opened:
        yield opened


def test_recommendations_with_all_wishes(client, sasrec) -> None:
    answer = client.recommend(
        Ask(
            history=("item-05", "item-30"),
            k=4,
            exclude=["item-07"],
            filter={"year": {"max": 2020}},
            boosts=[{"filter": {"categories": {"any": ["War"]}}, "add": 2.0}],
            diversity={"mmr": 0.8},
            why=1,
            fields=["year"],
        )
    )
    assert len(answer.items) == 4
    assert (answer.source, answer.history_length) == ("model", 2)
    first = answer.items[0]
    assert first.fields == {"year": 1989 + sasrec.catalog.rows[first.item_id]}
    assert first.why[0].item_id in {"item-05", "item-30"}
    assert answer.milliseconds.search > 0


def test_pages_follow_each_other(client) -> None:
    pages = list(client.pages(Ask(history=["item-05"], k=20)))
    ids = [item.item_id for page in pages for item in page.items]
    assert [len(page.items) for page in pages] == [20, 20, 10]
    assert len(set(ids)) == 50
    assert ids == [item.item_id for item in client.recommend(Ask(history=["item-05"], k=200)).items]


def test_a_batch_answers_in_order(client) -> None:
    asks = [Ask(history=["item-05"], k=3), Ask(history=[]), Ask(history=["item-30"], k=2)]
    answers = client.recommend_all(asks)
    assert [(len(answer.items), answer.source) for answer in answers] == [
        (3, "model"),
        (10, "no_history"),
        (2, "model"),
    ]


def test_events_are_stored_and_read(client) -> None:
    events = [Event(user_id="ann", item_id="item-05", event_id="1"), Event(user_id="ann", item_id="x")]
    stored = client.store_events(events)
    assert (stored.stored, stored.duplicates, stored.unknown_items) == (2, 0, ["x"])
    assert client.store_events(events[:1]).duplicates == 1
    assert client.recommend(Ask(user_id="ann")).history_length == 1


def test_items_and_models(client) -> None:
    assert client.item("a/b").item_id == "a/b"
    assert len(client.similar("a/b", k=7)) == 7
    client.delete_item("a/b")
    assert client.item("a/b").retired is True
    assert client.store_items([NewItem(item_id="a/b")]).restored == 1
    assert client.item("a/b").retired is False
    (model,) = client.models()
    assert (model.model, model.items, model.metrics) == ("sasrec", 53, {"test": {"ndcg_at_10": 0.25}})
    assert model.item_fields == {
        "item_id": "texts",
        "title": "texts",
        "categories": "lists of texts",
        "year": "numbers",
    }


def test_what_the_service_refuses_is_an_error_with_the_problem(client) -> None:
    with pytest.raises(ServiceError, match="k: Input should be less than or equal to 200") as error:
        client.recommend(Ask(history=[], k=500))
    assert error.value.status == 422
    assert [entry["field"] for entry in error.value.errors] == ["k"]
    assert len(str(error.value.request_id)) == 32
    with pytest.raises(ServiceError, match="item 'nope' is not in the catalogue") as error:
        client.delete_item("nope")
    assert (error.value.status, error.value.errors) == (404, [])


def test_a_service_that_does_not_answer_is_the_same_error() -> None:
    with (
        Client("http://127.0.0.1:9") as nobody,
        pytest.raises(ServiceError, match=r"127\.0\.0\.1:9.*does not") as error,
    ):
        nobody.models()
    assert error.value.status is None


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(502, text="<h1>Bad gateway</h1>"), "answered 502 Bad Gateway"),
        (httpx.Response(200, json={"models": [{}]}), "does not understand"),
        (httpx.Response(200, text="hello"), "does not understand"),
    ],
)
def test_what_stands_between_is_the_same_error_too(response, message) -> None:
    transport = httpx.MockTransport(lambda _: response)
    with Client("http://service", transport=transport) as proxied, pytest.raises(ServiceError, match=message) as error:
        proxied.models()
    assert error.value.status == response.status_code


def test_answers_have_the_fields_that_the_service_describes(address) -> None:
    """So that neither can change alone."""
    schemas = httpx.get(f"{address}/openapi.json").json()["components"]["schemas"]
    kinds = {
        kind.__name__: kind
        for kind in vars(client_module).values()
        if isinstance(kind, type) and issubclass(kind, Read) and kind not in {Read, client_module.Item}
    }
    assert {"Recommendations", "ItemDetails", "Models"} <= kinds.keys() <= schemas.keys()
    assert {name: set(kind.model_fields) for name, kind in kinds.items()} == {
        name: set(schemas[name]["properties"]) for name in kinds
    }


@pytest.mark.parametrize(
    ("kind", "message"), [(Ask, "RecommendRequest"), (Event, "EventMessage"), (NewItem, "ItemMessage")]
)
def test_what_is_sent_has_the_fields_that_the_service_takes(kind, message, address) -> None:
    schemas = httpx.get(f"{address}/openapi.json").json()["components"]["schemas"]
    assert set(kind.__dataclass_fields__) == set(schemas[message]["properties"])
