"""What users did since the bundle was trained: a bounded history per user.

Item ids are stored as they came, known to the bundle or not: a later bundle may know them.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

from recsys.errors import ConfigError

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    event_id TEXT
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, timestamp, number);
CREATE UNIQUE INDEX IF NOT EXISTS event_once ON events (user_id, event_id) WHERE event_id IS NOT NULL;
"""
INSERT = """
INSERT INTO events (user_id, item_id, timestamp, event_id) VALUES (?, ?, ?, ?)
ON CONFLICT (user_id, event_id) WHERE event_id IS NOT NULL DO NOTHING
"""
FORGET = """
DELETE FROM events WHERE number IN (
    SELECT number FROM events WHERE user_id = ? ORDER BY timestamp DESC, number DESC LIMIT -1 OFFSET ?
)
"""
HISTORY = "SELECT item_id FROM events WHERE user_id = ? ORDER BY timestamp DESC, number DESC LIMIT ?"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One interaction; `timestamp` is microseconds since 1970 UTC."""

    user_id: str
    item_id: str
    timestamp: int
    event_id: str | None = None


class StateError(Exception):
    """The store does not answer; the request may be repeated later."""


class UserState(Protocol):
    """All that the service asks of a store; every method may be called from many threads."""

    def append(self, events: Sequence[Event]) -> int:
        """Stores all events or none; how many were new. A user's `event_id` counts once while its event is kept."""
        ...

    def history(self, user_id: str) -> list[str]:
        """Item ids of the kept events by (timestamp, arrival), oldest first; empty for unknown users."""
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


class SqliteState:
    """One SQLite file in WAL mode: readers never wait for the writer; several processes may share it.

    An answered `append` survives the death of the process; of a power cut, all but the last moments.
    """

    def __init__(self, path: Path, history_limit: int) -> None:
        self._limit = history_limit
        try:
            self._writer, self._reader = connect(path), connect(path)
            with self._writer:
                self._writer.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise ConfigError(
                f"{path}: cannot keep user state there ({error}); choose another file with --state or RECSYS_STATE."
            ) from None
        self._writing, self._reading = Lock(), Lock()

    def append(self, events: Sequence[Event]) -> int:
        """Stores all events or none; how many were new."""
        rows = [(event.user_id, event.item_id, event.timestamp, event.event_id) for event in events]
        users = dict.fromkeys(event.user_id for event in events)
        with self._writing, answering(), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            stored = self._writer.executemany(INSERT, rows).rowcount
            self._writer.executemany(FORGET, [(user_id, self._limit) for user_id in users])
        return stored

    def history(self, user_id: str) -> list[str]:
        """Item ids of the user's newest events, oldest first."""
        with self._reading, answering():
            newest_first = self._reader.execute(HISTORY, (user_id, self._limit)).fetchall()
        return [item_id for (item_id,) in reversed(newest_first)]

    def close(self) -> None:
        """Closes both connections."""
        self._reader.close()
        self._writer.close()


def connect(path: Path) -> sqlite3.Connection:
    """In WAL mode, to be shared by threads under a lock."""
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


@contextmanager
def answering() -> Iterator[None]:
    """What SQLite fails with inside becomes a `StateError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise StateError(f"user state does not answer: {error}") from error
