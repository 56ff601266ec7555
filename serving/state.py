"""What users did since the bundle was trained: a bounded history per user, behind one protocol.

Item ids are stored as they came, known to the bundle or not: a later bundle may know them. `SqliteState` is here,
`RedisState` beside it gives the same answers (tested), and `stores.open_state` chooses (docs/decisions/state.md).
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
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
CREATE TABLE IF NOT EXISTS forgotten (user_id TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS forgotten_next ON forgotten (at);
CREATE TABLE IF NOT EXISTS deletions (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL);
INSERT INTO deletions VALUES (1, 0) ON CONFLICT DO NOTHING;
"""
INSERT = """
INSERT INTO events (user_id, item_id, timestamp, event_id) VALUES (?, ?, ?, ?)
ON CONFLICT (user_id, event_id) WHERE event_id IS NOT NULL DO NOTHING
"""
TRIM = """
DELETE FROM events WHERE number IN (
    SELECT number FROM events WHERE user_id = ? ORDER BY timestamp DESC, number DESC LIMIT -1 OFFSET ?
)
"""
FORGET_AT = "INSERT INTO forgotten (user_id, at) VALUES (?, ?) ON CONFLICT (user_id) DO UPDATE SET at = excluded.at"
OVERDUE = "SELECT user_id FROM forgotten WHERE at <= ? ORDER BY at LIMIT ?"
NEWEST = """
SELECT item_id, timestamp, event_id FROM events WHERE user_id = ?1
AND NOT EXISTS (SELECT 1 FROM forgotten WHERE user_id = ?1 AND at <= ?2) ORDER BY timestamp DESC, number DESC LIMIT ?3
"""
DELETIONS = "SELECT count FROM deletions"
SWEPT = 16
"""Overdue users that an append forgets beside its own, so that they go as fast as they came."""
SECONDS_TO_DELETE = 600
"""A deletion rewrites the file, and rather waits for others than leaves something behind."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One interaction; `timestamp` is microseconds since 1970 UTC, not negative."""

    user_id: str
    item_id: str
    timestamp: int
    event_id: str | None = None


class StateError(Exception):
    """The store does not answer; the request may be repeated later."""


class UserState(Protocol):
    """All that the service asks of a store; every method may be called from many threads, or fail with a `StateError`.

    A user to whom no event was sent for `forget_seconds` (of the store's opening; 0: never) is unknown again.
    """

    @property
    def deletions(self) -> int:
        """How often any process had deleted users when this one asked last: what is made of older answers may go."""
        ...

    def append(self, events: Sequence[Event]) -> int:
        """Stores all events or none; how many were new. A user's `event_id` counts once while its event is kept."""
        ...

    def history(self, user_id: str) -> list[str]:
        """Item ids of the kept events by (timestamp, arrival), oldest first; empty for unknown users."""
        ...

    def events(self, user_id: str) -> list[Event]:
        """The kept events in the same order: all that is known of a user."""
        ...

    def delete(self, user_id: str) -> int:
        """Forgets the user so that nothing is left in the store's files; how many events there were."""
        ...

    def check(self) -> None:
        """A `StateError` where the store does not answer."""
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


class SqliteState:
    """One SQLite file in WAL mode: readers never wait for the writer; several processes may share it.

    An answered `append` survives the death of the process; of a power cut, all but the last moments. What waits longer
    than `wait_seconds` for another writer gives up.
    """

    def __init__(
        self,
        path: Path,
        history_limit: int,
        forget_seconds: float = 0,
        wait_seconds: float = 5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._limit = path, history_limit
        self._forget_seconds, self._wait_seconds, self._clock = forget_seconds, wait_seconds, clock
        try:
            self._writer, self._reader = connect(path, wait_seconds), connect(path, wait_seconds)
            with self._writer:
                self._writer.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise ConfigError(
                f"{path}: cannot keep user state there ({error}); choose another file with --state or RECSYS_STATE."
            ) from None
        self._writing, self._reading = Lock(), Lock()
        self._deletions = 0

    @property
    def deletions(self) -> int:
        """As of the last call that read or deleted."""
        return self._deletions

    def append(self, events: Sequence[Event]) -> int:
        """Stores all events or none; how many were new."""
        rows = [(event.user_id, event.item_id, event.timestamp, event.event_id) for event in events]
        users = list(dict.fromkeys(event.user_id for event in events))
        with self._alone(self._writing), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._forget_overdue(users)
            stored = self._writer.executemany(INSERT, rows).rowcount
            self._writer.executemany(TRIM, [(user_id, self._limit) for user_id in users])
            self._expect_silence(users)
        return stored

    def history(self, user_id: str) -> list[str]:
        """Item ids of the user's newest events, oldest first."""
        return [item_id for item_id, _, _ in self._newest(user_id)]

    def events(self, user_id: str) -> list[Event]:
        """The user's newest events, oldest first."""
        return [
            Event(user_id=user_id, item_id=item_id, timestamp=timestamp, event_id=event_id)
            for item_id, timestamp, event_id in self._newest(user_id)
        ]

    def delete(self, user_id: str) -> int:
        """Takes the user's rows out and rewrites the file: SQLite's freed and moved cells would keep the id."""
        with self._alone(self._writing), patient(self._path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            deleted = connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount
            connection.execute("DELETE FROM forgotten WHERE user_id = ?", (user_id,))
            connection.execute("UPDATE deletions SET count = count + 1")
            connection.execute("COMMIT")
            self._deletions = connection.execute(DELETIONS).fetchone()[0]
            connection.execute("VACUUM")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise StateError(f"{self._path}: others hold old pages of the deleted user; delete again")
        return deleted

    def check(self) -> None:
        """Reads."""
        self._newest("")

    def close(self) -> None:
        """Closes both connections."""
        self._reader.close()
        self._writer.close()

    def _newest(self, user_id: str) -> list[tuple[str, int, str | None]]:
        """Item, time and event id, oldest first."""
        with self._alone(self._reading):
            newest_first = self._reader.execute(NEWEST, (user_id, self._now(), self._limit)).fetchall()
            self._deletions = self._reader.execute(DELETIONS).fetchone()[0]
        return newest_first[::-1]

    def _forget_overdue(self, users: Sequence[str]) -> None:
        """Those who are written to, before they are known again, and a few others."""
        now = self._now()
        overdue = [user_id for (user_id,) in self._writer.execute(OVERDUE, (now, SWEPT)).fetchall()]
        known = "SELECT user_id FROM forgotten WHERE user_id = ? AND at <= ?"
        overdue += [user_id for user_id in users if self._writer.execute(known, (user_id, now)).fetchone()]
        for table in ("events", "forgotten"):
            self._writer.executemany(f"DELETE FROM {table} WHERE user_id = ?", [(user_id,) for user_id in overdue])

    def _expect_silence(self, users: Sequence[str]) -> None:
        """Notes when they are to be forgotten, if no further event comes."""
        if self._forget_seconds:
            at = self._now() + round(self._forget_seconds * 1_000)
            self._writer.executemany(FORGET_AT, [(user_id, at) for user_id in users])
        else:
            self._writer.executemany("DELETE FROM forgotten WHERE user_id = ?", [(user_id,) for user_id in users])

    def _now(self) -> int:
        """Milliseconds since 1970."""
        return int(self._clock() * 1_000)

    @contextmanager
    def _alone(self, lock: Lock) -> Iterator[None]:
        """Under `lock`, if it is to be had in time; what SQLite fails with becomes a `StateError`."""
        if not lock.acquire(timeout=self._wait_seconds):
            raise StateError(f"{self._path}: waited {self._wait_seconds:g} s for other requests")
        try:
            with answering():
                yield
        finally:
            lock.release()


def connect(path: Path, wait_seconds: float = 5) -> sqlite3.Connection:
    """In WAL mode, to be shared by threads under a lock; waits so long for other processes."""
    connection = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


@contextmanager
def patient(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of its own for work that takes longer than a request."""
    connection = connect(path, SECONDS_TO_DELETE)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def answering() -> Iterator[None]:
    """What SQLite fails with inside becomes a `StateError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise StateError(f"user state does not answer: {error}") from error
