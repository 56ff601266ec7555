"""SQLite and Redis as one state: whatever happens, both give the answers of a dictionary of sorted lists."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_server import RedisServer

from recsys.errors import ConfigError
from serving.new_items import ItemStore
from serving.redis_state import RedisState
from serving.settings import Settings
from serving.state import Event, SqliteState, StateError, UserState, connect
from serving.stores import item_file, open_state

NOON = 1_700_000_000_000_000
LIMIT = 4


class ByHand:
    """The protocol's words as plain lists."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Event]] = {}

    def append(self, events: list[Event]) -> int:
        stored = 0
        for event in events:
            own = self.kept.setdefault(event.user_id, [])
            if event.event_id is None or event.event_id not in {other.event_id for other in own}:
                own.append(event)
                stored += 1
        for user_id in {event.user_id for event in events}:
            self.kept[user_id] = sorted(self.kept[user_id], key=lambda event: event.timestamp)[-LIMIT:]
        return stored

    def delete(self, user_id: str) -> int:
        return len(self.kept.pop(user_id, []))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """`stores(forget_seconds=…)` opens the same store again and again, empty at first."""
    opened: list[UserState] = []
    server = request.getfixturevalue("server") if request.param == "redis" else None
    if server is not None:
        with server.client() as client:
            client.flushall()

    def opening(forget_seconds: float = 0, limit: int = LIMIT) -> UserState:
        state: UserState
        if server is None:
            state = SqliteState(tmp_path / "state.sqlite", limit, forget_seconds, wait_seconds=2)
        else:
            state = RedisState(server.url, limit, forget_seconds, wait_seconds=2)
        opened.append(state)
        return state

    yield opening
    for state in opened:
        state.close()


IDS = st.sampled_from(["a", "b", "ä/{é}:\N{SNOWMAN}", '["x"] \x00 \n', "user:a"])
USERS = st.sampled_from(["user:a", "ä/{é}\N{SNOWMAN}"])
EVENT = st.builds(
    Event,
    user_id=USERS,
    item_id=IDS,
    timestamp=st.sampled_from([0, 7, NOON, NOON + 1, 253_402_300_799_999_998, 253_402_300_799_999_999]),
    event_id=st.none() | st.sampled_from(["1", "2", "ä:1", "user"]),
)
STEPS = st.lists(st.lists(EVENT, min_size=1, max_size=6) | USERS, max_size=12)


@given(STEPS)
@settings(max_examples=60)
def test_both_stores_answer_like_sorted_lists(server, tmp_path_factory, steps) -> None:
    """A step is a request with events, or the deletion of a user."""
    with server.client() as client:
        client.flushall()
    redis = RedisState(server.url, LIMIT)
    sqlite = SqliteState(tmp_path_factory.mktemp("sqlite") / "state.sqlite", LIMIT)
    by_hand = ByHand()
    for place, step in enumerate(steps):
        answers = [
            store.append(step) if isinstance(step, list) else store.delete(step) for store in (by_hand, redis, sqlite)
        ]
        assert answers[0] == answers[1] == answers[2]
        for user_id in {event.user_id for event in step} if isinstance(step, list) else {step}:
            expected = by_hand.kept.get(user_id, [])
            assert redis.events(user_id) == sqlite.events(user_id) == expected
            assert redis.history(user_id) == sqlite.history(user_id) == [event.item_id for event in expected]
        assert redis.deletions == sqlite.deletions == sum(isinstance(step, str) for step in steps[: place + 1])
    redis.close()
    sqlite.close()


def event(item_id: str, timestamp: int = NOON, user_id: str = "ann", event_id: str | None = None) -> Event:
    return Event(user_id=user_id, item_id=item_id, timestamp=timestamp, event_id=event_id)


def test_an_event_id_counts_again_once_its_event_was_dropped(stores) -> None:
    state = stores(limit=2)
    assert state.append([event("a", NOON, event_id="1"), event("b", NOON + 1, event_id="2")]) == 2
    assert state.append([event("c", NOON + 2), event("a", NOON + 3, event_id="1")]) == 1
    assert state.history("ann") == ["b", "c"]
    assert state.append([event("a", NOON + 3, event_id="1"), event("b", NOON + 4, event_id="2")]) == 1
    assert state.history("ann") == ["c", "a"]


def test_replicas_that_append_at_once_lose_nothing(stores) -> None:
    replicas = [stores(limit=1_000), stores(limit=1_000)]
    events = [event(f"{number}", event_id=f"{number % 60}", user_id=f"u{number % 3}") for number in range(120)]
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda place: replicas[place % 2].append([events[place]]), range(len(events))))
    assert sum(stored) == 60
    for user_id in ("u0", "u1", "u2"):
        first, second = (replica.events(user_id) for replica in replicas)
        assert first == second
        assert len({event.event_id for event in first}) == len(first) == 20


def test_a_silent_user_is_forgotten_and_begins_anew(stores) -> None:
    state = stores(forget_seconds=0.3)
    state.append([event("a", event_id="1"), event("b", user_id="bob")])
    deadline = time.monotonic() + 20
    while state.history("ann") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert state.history("ann") == state.events("ann") == []
    assert state.append([event("c", NOON - 1, event_id="1")]) == 1
    assert state.history("ann") == ["c"]


def test_each_event_lets_a_user_be_known_longer(tmp_path) -> None:
    now = 1_000.0
    state = SqliteState(tmp_path / "state.sqlite", LIMIT, forget_seconds=60, clock=lambda: now)
    state.append([event("a")])
    now = 1_059.0
    state.append([event("b")])
    now = 1_118.0
    assert state.history("ann") == ["a", "b"]
    now = 1_119.0
    assert state.history("ann") == []
    state.close()


def test_users_who_are_never_written_to_again_go_with_those_who_are(tmp_path) -> None:
    now = 1_000.0
    state = SqliteState(tmp_path / "state.sqlite", LIMIT, forget_seconds=60, clock=lambda: now)
    state.append([event("a", user_id=f"user-{number}") for number in range(20)])
    now = 2_000.0
    state.append([event("b"), event("b")])
    state.append([event("b")])
    with sqlite3.connect(tmp_path / "state.sqlite") as file:
        assert file.execute("SELECT user_id, item_id FROM events").fetchall() == [("ann", "b")] * 3
        assert file.execute("SELECT count(*) FROM forgotten").fetchone() == (1,)
    file.close()
    state.close()


def test_without_the_setting_users_stay(stores) -> None:
    stores(forget_seconds=0.3).append([event("a", event_id="1")])
    stores().append([event("b")])
    time.sleep(0.5)
    assert stores().history("ann") == ["a", "b"]
    assert stores().append([event("c", event_id="1")]) == 0


def test_a_deleted_user_leaves_nothing_in_the_file(tmp_path, monkeypatch) -> None:
    """Freed cells keep their bytes until the file is rewritten; some builds of SQLite hide that, but not all of it."""

    def plain(path: Path, wait_seconds: float = 5) -> sqlite3.Connection:
        connection = connect(path, wait_seconds)
        connection.execute("PRAGMA secure_delete=OFF")
        return connection

    monkeypatch.setattr("serving.state.connect", plain)
    path = tmp_path / "state.sqlite"
    state, other = SqliteState(path, 4, forget_seconds=900), SqliteState(path, 4)
    order = [number * 7_919 % 500 for number in range(4_000)]
    for place in range(0, len(order), 50):
        state.append([
            event(f"item-{number}", NOON + number, f"user-{number}-end", f"event-{place}-{number}")
            for number in order[place : place + 50]
        ])
    assert other.history("user-7-end")
    for number in (7, 8, 499):
        assert f"user-{number}-end".encode() in path.read_bytes() + _journal(path)
        assert state.delete(f"user-{number}-end") == 4
        assert f"user-{number}-end".encode() not in path.read_bytes() + _journal(path)
    assert state.delete("user-7-end") == 0
    assert other.history("user-7-end") == []
    assert len(other.history("user-9-end")) == 4
    state.close()
    other.close()


def _journal(path: Path) -> bytes:
    return path.with_name(path.name + "-wal").read_bytes()


def test_a_deletion_that_could_not_clear_the_journal_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("serving.state.SECONDS_TO_DELETE", 0.1)
    path = tmp_path / "state.sqlite"
    state = SqliteState(path, 4)
    state.append([event("a")])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
    with pytest.raises(StateError, match="hold old pages of the deleted user; delete again"):
        state.delete("ann")
    reader.execute("COMMIT")
    reader.close()
    assert state.delete("ann") == 0
    assert b"ann" not in path.read_bytes() + _journal(path)
    state.close()


def test_a_deleted_user_leaves_no_key(server) -> None:
    with server.client() as client:
        client.flushall()
        state = RedisState(server.url, LIMIT)
        state.append([event("a", event_id="1"), event("b", user_id="bob")])
        assert state.delete("ann") == 1
        assert sorted(client.keys()) == [b"recsys:arrivals", b"recsys:deletions", b"recsys:events:bob"]
        state.close()


def test_a_server_that_does_not_answer_in_time_is_a_state_error(server) -> None:
    state = RedisState(server.url, LIMIT, wait_seconds=0.1)
    server.freeze()
    for call in (lambda: state.append([event("a")]), lambda: state.history("ann"), state.check):
        with pytest.raises(StateError, match="user state does not answer: Timeout"):
            call()
    server.thaw()
    state.check()
    state.close()


def test_a_file_that_another_holds_is_a_state_error(tmp_path) -> None:
    state = SqliteState(tmp_path / "state.sqlite", LIMIT, wait_seconds=0.1)
    other = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError, match="locked"):
        state.append([event("a")])
    assert state.history("ann") == []
    other.execute("ROLLBACK")
    other.close()
    assert state.append([event("a")]) == 1
    state.close()


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (
            "redis://:secret@127.0.0.1:1/0",
            r"^redis://127\.0\.0\.1:1/0: cannot keep user state there \(.*RECSYS_STATE\.$",
        ),
        ("redis://127.0.0.1:1/0?password=secret", r"^redis://127\.0\.0\.1:1/0: cannot keep user state there"),
        ("redis://127.0.0.1:no/0", r"cannot keep user state there \(.*RECSYS_STATE"),
        ("postgres://host/db", r"^RECSYS_STATE: postgres:// is not known; give a file, or an address that begins with"),
    ],
)
def test_an_unusable_address_is_refused_without_its_password(state, complaint) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        open_state(Settings(state=state))
    assert "secret" not in str(refused.value)


def test_new_items_lie_beside_the_events_where_these_are_in_a_file() -> None:
    assert item_file(Settings(state="one.sqlite")) == Path("one.sqlite")
    assert item_file(Settings(state="redis://host/0")) == Path("recsys-items.sqlite")
    assert item_file(Settings(state="redis://host/0", new_items=Path("two.sqlite"))) == Path("two.sqlite")


def test_new_items_that_cannot_be_kept_stop_the_start(tmp_path) -> None:
    with pytest.raises(
        ConfigError, match=r"no-folder/items\.sqlite: cannot keep new items there .* set RECSYS_NEW_ITEMS"
    ):
        ItemStore(tmp_path / "no-folder" / "items.sqlite")


def test_what_a_server_may_lose_is_said_in_the_log(server, caplog) -> None:
    RedisState(server.url, LIMIT).close()
    assert "Redis runs without appendonly: what came since its last snapshot is lost when it dies" in caplog.text
    assert "evict" not in caplog.text
    with server.client() as client:
        client.config_set("maxmemory", "1gb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        RedisState(server.url, LIMIT).close()
        client.config_set("maxmemory", "0")
    assert "Redis may evict users (maxmemory-policy allkeys-lru): set noeviction" in caplog.text
