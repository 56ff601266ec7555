"""Who may call: keys and scopes, rates, time, origins; and that without settings everything stays as it was."""

import base64
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis_server import RedisServer
from starlette.routing import Mount

from recsys.errors import BundleError, ConfigError
from serving.api_keys import SCOPES, KeyRing, create_key, read_keys, revoke_key
from serving.guard import needed, rule_of
from serving.run import bound_socket, serve

EVENT = {"user_id": "ann", "item_id": "item-07"}
CALLS: dict[str, tuple[str, str, Any]] = {
    "recommend": ("POST", "/v1/recommend", {"history": []}),
    "events": ("POST", "/v1/events", EVENT),
    "items": ("POST", "/v1/items", {"item_id": "new", "title": "New"}),
    "users": ("GET", "/v1/users/ann", None),
    "admin": ("GET", "/metrics", None),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"any:{key}".encode()).decode()}


def status(client: TestClient, call: str, key: str | None = None) -> int:
    method, path, body = CALLS[call]
    return client.request(method, path, json=body, headers=None if key is None else bearer(key)).status_code


def test_a_key_opens_what_its_scopes_say_and_nothing_else(client_of, sasrec, file) -> None:
    keys = {scope: create_key(file, scope, [scope]) for scope in SCOPES}
    client = client_of(sasrec, keys=file)
    for scope, key in keys.items():
        for call in CALLS:
            answer = status(client, call, key)
            assert answer == 403 if call != scope else answer in {200, 202, 409}, (scope, call)
    both = create_key(file, "both", ["events", "recommend"])
    assert [status(client, call, both) for call in CALLS] == [200, 202, 403, 403, 403]
    assert client.get("/v1/items/item-05", headers=bearer(keys["recommend"])).status_code == 200
    assert client.delete("/v1/users/ann", headers=bearer(keys["recommend"])).status_code == 403


def test_without_a_valid_key_nothing_is_told(client_of, sasrec, file) -> None:
    key = create_key(file, "all", SCOPES)
    client = client_of(sasrec, keys=file)
    for headers in (
        {},
        bearer(""),
        bearer(key[:-1]),
        bearer(key + "x"),
        bearer(read_keys(file)[0].sha256),
        {"Authorization": key},
        {"Authorization": "Basic ???"},
        {"Authorization": b"Basic \xe9"},
        {"Authorization": b"Bearer \xe4\xff"},
        basic(key),
    ):
        for path in ("/v1/events", "/v1/users/ann", "/metrics", "/version", "/v1/nowhere"):
            answer = client.request("POST" if path == "/v1/events" else "GET", path, json=EVENT, headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["detail"] == "no valid API key; send one as Authorization: Bearer KEY"
    assert client.app.state.variants.stores.state.history("ann") == []
    for path in ("/health/live", "/health/ready", "/openapi.json", "/static/style.css"):
        assert client.get(path).status_code == 200


def test_a_browser_gives_the_key_as_a_password_and_on_pages_only(client_of, sasrec, file) -> None:
    recommend, users = create_key(file, "a", ["recommend"]), create_key(file, "b", ["recommend", "users"])
    client = client_of(sasrec, keys=file)
    asked = client.get("/")
    assert (asked.status_code, asked.headers["WWW-Authenticate"][:6]) == (401, "Basic ")
    assert client.get("/", headers=basic(recommend)).status_code == 200
    assert client.get("/?user=", headers=basic(recommend)).status_code == 200
    assert client.get("/?user=ann", headers=basic(recommend)).status_code == 403
    assert client.get("/?q=x&%75ser=ann", headers=basic(recommend)).status_code == 403
    assert client.get("/?user=ann", headers=basic(users)).status_code == 200
    assert client.get("/v1/users/ann", headers=basic(users)).status_code == 401


def test_every_route_has_a_rule(client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(routes) > 8
    assert [route for route in routes if rule_of(*route) is None] == []
    mounts = [route.path for route in client.app.routes if isinstance(route, Mount)]
    assert mounts == ["/static"]
    assert needed("POST", "/v1/whatever", "") == needed("GET", "/healthy", "") == {"admin"}


def test_the_file_holds_no_key_and_is_its_owners(file) -> None:
    keys = [create_key(file, name, ["events"]) for name in ("one", "two")]
    text = file.read_text()
    assert not [key for key in keys if key in text or key.removeprefix("recsys_") in text]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(set(keys)) == 2
    assert min(map(len, keys)) >= 43
    assert {key.name for key in read_keys(file)} == {"one", "two"}


def test_keys_come_and_go_without_a_restart(client_of, sasrec, file) -> None:
    first = create_key(file, "first", ["events"])
    client = client_of(sasrec, keys=file)
    second = create_key(file, "second", ["events"])
    assert (status(client, "events", first), status(client, "events", second)) == (202, 202)
    revoke_key(file, "first")
    assert (status(client, "events", first), status(client, "events", second)) == (401, 202)
    file.write_text("{")
    assert status(client, "events", second) == 202
    file.unlink()
    assert status(client, "events", second) == 202


def test_every_entry_is_compared(file, monkeypatch) -> None:
    """The time of an answer says nothing of where a key stands."""
    keys = [create_key(file, str(number), ["events"]) for number in range(5)]
    ring, compared = KeyRing(file), []
    monkeypatch.setattr("serving.api_keys.hmac.compare_digest", lambda a, b: compared.append(a) or a == b)
    for secret in (keys[0], keys[4], "wrong"):
        compared.clear()
        found = ring.find(secret)
        assert len(compared) == 5
        assert (None if found is None else found.name) == {keys[0]: "0", keys[4]: "4"}.get(secret)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda file: create_key(file, "one", ["events"]), "holds a key named 'one'; choose another name"),
        (lambda file: create_key(file, "two", []), "scopes of key 'two': none given; choose of recommend, events"),
        (
            lambda file: create_key(file, "two", ["event"]),
            r"scopes of key 'two': \['event'\] given; choose of recommend",
        ),
        (lambda file: create_key(file, "a\nb", ["events"]), "1 to 64 printable characters are needed"),
        (lambda file: create_key(file.parent / "no" / "file", "x", ["events"]), "cannot be written .*--file"),
        (lambda file: revoke_key(file, "two"), "holds no key named 'two'; it holds one"),
        (lambda file: KeyRing(file.parent / "absent"), "absent: API keys cannot be read there .*recsys keys create"),
    ],
)
def test_what_cannot_be_done_with_keys_is_said(make, complaint, file) -> None:
    create_key(file, "one", ["events"])
    with pytest.raises(ConfigError, match=complaint):
        make(file)
    assert [key.name for key in read_keys(file)] == ["one"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"keys": 3}', '{"keys": [{"name": "a"}]}', '{"keys": [{"scopes": ["x"]}]}']
)
def test_another_file_is_no_key_file(content, file) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"keys\.json: API keys cannot be read there"):
        KeyRing(file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_door_needs_keys_or_a_word(host, tmp_path, monkeypatch, file) -> None:
    message = (
        rf"^host {host} can be reached from other machines, and no API keys are set: .*RECSYS_WITHOUT_KEYS=true\.$"
    )
    with pytest.raises(ConfigError, match=message):
        serve(tmp_path / "no-bundle", host=host, port=0)
    create_key(file, "one", ["events"])
    for name, value in (("RECSYS_KEYS", str(file)), ("RECSYS_WITHOUT_KEYS", "true")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(BundleError, match="no such folder"):
                serve(tmp_path / "no-bundle", host=host, port=0, state=tmp_path / "state.sqlite")
    with bound_socket("localhost", 0) as listener:
        assert listener.getsockname()[0] in {"127.0.0.1", "::1"}


def test_rates_are_those_of_a_key(client_of, sasrec, file) -> None:
    ann, bob = (create_key(file, name, ["recommend"]) for name in ("ann", "bob"))
    client = client_of(sasrec, keys=file, rate_limit="3/hour")
    assert [status(client, "recommend", ann) for _ in range(5)] == [200, 200, 200, 429, 429]
    assert status(client, "recommend", bob) == 200
    refused = client.get("/version", headers=bearer(ann))
    assert (refused.status_code, refused.headers["content-type"]) == (429, "application/problem+json")
    assert 1 <= int(refused.headers["Retry-After"]) <= 3_600
    assert [client.get("/health/ready").status_code for _ in range(5)] == [200] * 5


def test_guessing_keys_is_limited_by_address(client_of, sasrec, file) -> None:
    key = create_key(file, "ann", ["recommend"])
    client = client_of(sasrec, keys=file, rate_limit="3/hour")
    assert [status(client, "recommend", f"guess-{number}") for number in range(5)] == [401, 401, 401, 429, 429]
    assert status(client, "recommend", key) == 200


def test_without_keys_rates_are_those_of_addresses_and_all_limits_hold(client_of, sasrec) -> None:
    client = client_of(sasrec, rate_limit="100/minute; 2/hour")
    assert [status(client, "recommend") for _ in range(3)] == [200, 200, 429]


def test_replicas_share_rates_and_count_for_themselves_without_redis(client_of, sasrec, tmp_path) -> None:
    server = RedisServer(tmp_path / "redis").start()
    shared = {"state": server.url, "new_items": tmp_path / "items.sqlite", "rate_limit": "3/hour"}
    first, second = client_of(sasrec, **shared), client_of(sasrec, **shared)
    assert [status(client, "recommend") for client in (first, second, first, second, first)] == [200] * 3 + [429] * 2
    server.stop()
    assert [status(first, "recommend") for _ in range(5)] == [200] * 3 + [429] * 2
    assert status(second, "recommend") == 200


@pytest.mark.parametrize("text", ["many", "3/fortnight", ""])
def test_a_rate_that_is_none_is_refused(text, client_of, sasrec) -> None:
    with pytest.raises(ConfigError, match=r"RECSYS_RATE_LIMIT='.*' cannot be used; give for example 100/second"):
        client_of(sasrec, rate_limit=text)


def test_what_takes_too_long_is_a_503_and_the_next_request_is_answered(client_of, sasrec, monkeypatch) -> None:
    client = client_of(sasrec, request_seconds=0.2, threads=1)
    answers, released = client.app.state.variants.control.service.recommender.recommend, threading.Event()

    def slow(query: object) -> object:
        released.wait(30)
        return answers(query)

    with monkeypatch.context() as patch:
        patch.setattr(client.app.state.variants.control.service.recommender, "recommend", slow)
        late = client.post("/v1/recommend", json={"history": []})
    assert (late.status_code, late.headers["content-type"]) == (503, "application/problem+json")
    assert late.json()["detail"] == "no answer within 0.2 s; try again later"
    assert late.json()["request_id"] == late.headers["X-Request-ID"]
    assert 'recsys_requests_total{route="/v1/recommend",status="503"} 1.0' in client.get("/metrics").text
    released.set()
    assert client.post("/v1/recommend", json={"history": []}).status_code == 200


def test_other_origins_may_not_read_answers_unless_named(client, client_of, sasrec, file, tmp_path) -> None:
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    for headers in (preflight, {"Origin": "https://shop.example"}):
        answer = client.options("/v1/recommend", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
    key = create_key(file, "shop", ["recommend"])
    shop = client_of(
        sasrec, keys=file, state=tmp_path / "b.sqlite", cors_origins="https://shop.example, https://b.example"
    )
    allowed = shop.options("/v1/recommend", headers={**preflight, "Access-Control-Request-Headers": "Authorization"})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    method, path, body = CALLS["recommend"]
    answer = shop.request(method, path, json=body, headers={**bearer(key), "Origin": "https://b.example"})
    assert answer.headers["access-control-allow-origin"] == "https://b.example"
    other = shop.request(method, path, json=body, headers={**bearer(key), "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    refused = shop.request(method, path, json=body, headers={"Origin": "https://shop.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://shop.example")


def test_a_draining_service_is_alive_and_not_ready(client) -> None:
    client.app.state.draining = True
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 503
    assert status(client, "recommend") == 200
