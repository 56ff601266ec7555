"""An event that was acknowledged is there after a death without warning, under load."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import httpx2 as httpx
import pytest
from redis_server import RedisServer
from service_process import served

from serving.redis_state import RedisState
from serving.state import Event, SqliteState, StateError, UserState

WRITERS, BEFORE_DEATH = 4, 60
NOON = 1_700_000_000_000_000


def sent_until_death(send: Callable[[str, str], bool], kill: Callable[[], None]) -> set[tuple[str, str]]:
    """(user, event) that `send` said was acknowledged; `kill` strikes once there are enough, with others under way."""
    acknowledged: set[tuple[str, str]] = set()

    def write(writer: int) -> None:
        for number in count():
            user_id, event_id = f"user-{(writer + number) % 3}", f"{writer}-{number}"
            if not send(user_id, event_id):
                return
            acknowledged.add((user_id, event_id))
            if len(acknowledged) == BEFORE_DEATH:
                kill()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))
    assert len(acknowledged) >= BEFORE_DEATH
    return acknowledged


def found(state: UserState) -> set[tuple[str, str | None]]:
    """(user, event) of all that is kept."""
    return {(event.user_id, event.event_id) for number in range(3) for event in state.events(f"user-{number}")}


def test_a_killed_service_has_lost_no_acknowledged_event(sasrec, tmp_path) -> None:
    path = tmp_path / "state.sqlite"
    with served(sasrec.folder, path, tmp_path / "log", history_limit=100_000) as service, httpx.Client() as client:

        def send(user_id: str, event_id: str) -> bool:
            event = {"user_id": user_id, "item_id": "item-07", "event_id": event_id}
            try:
                return client.post(f"{service.address}/v1/events", json=event).status_code == 202
            except httpx.TransportError:
                return False

        acknowledged = sent_until_death(send, lambda: service.process.send_signal(signal.SIGKILL))
        assert service.process.wait(timeout=30) == -signal.SIGKILL
    state = SqliteState(path, history_limit=100_000)
    assert acknowledged <= found(state)
    state.close()


@pytest.fixture
def server(tmp_path: Path):
    server = RedisServer(tmp_path / "redis", ("--save", "", "--appendonly", "yes", "--appendfsync", "always")).start()
    yield server
    server.stop()


def test_a_killed_redis_that_syncs_always_has_lost_no_acknowledged_event(server) -> None:
    state = RedisState(server.url, history_limit=100_000)

    def send(user_id: str, event_id: str) -> bool:
        try:
            state.append([Event(user_id=user_id, item_id="item-07", timestamp=NOON, event_id=event_id)])
        except StateError:
            return False
        return True

    acknowledged = sent_until_death(send, lambda: server.stop(signal.SIGKILL))
    server.start()
    assert acknowledged <= found(state)
    state.close()
