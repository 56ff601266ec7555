"""Answers kept by what was asked: a second run makes no call, and a killed one has lost none that had arrived.

One SQLite file. A row is an answer under the SHA-256 of its call (`Call.key`), or the reason why there is none; the
prompts themselves are not kept. A row is written once; those of failures expire. A process that is killed has lost
nothing; a machine that loses its power may lose the latest answers, for not each of them waits for the disk.
"""

import json
import os
import sqlite3
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from recsys.errors import ConfigError
from recsys.llm.calls import Answer, Usage
from recsys.llm.clock import Clock

SCHEMA = """CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, usage TEXT NOT NULL, finish_reason TEXT NOT NULL,
    engine TEXT NOT NULL, seconds REAL NOT NULL, refusal TEXT, created REAL NOT NULL, expires REAL
)"""
COLUMNS = "text, usage, finish_reason, engine, seconds, refusal"
PUT = f"""INSERT INTO answers (key, model, created, expires, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET model = excluded.model, created = excluded.created, expires = excluded.expires,
    text = excluded.text, usage = excluded.usage, finish_reason = excluded.finish_reason, engine = excluded.engine,
    seconds = excluded.seconds, refusal = excluded.refusal
WHERE answers.expires IS NOT NULL AND answers.expires <= excluded.created"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What came of a call: an answer with its usage, or a `refusal`."""

    answer: Answer | None = None
    refusal: str | None = None


class AnswerCache:
    """Shared by threads and by processes."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path, self.clock = path, clock or Clock()
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            with self._connection:
                self._connection.execute(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from None

    def get(self, key: bytes) -> Entry | None:
        """What is known of a call, unless it has expired."""
        query = f"SELECT {COLUMNS} FROM answers WHERE key = ? AND (expires IS NULL OR expires > ?)"
        try:
            with self._lock:
                row = self._connection.execute(query, (key, self.clock.now())).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from None
        return None if row is None else _entry(*row)

    def put(self, key: bytes, model: str, entry: Entry, keep_seconds: float | None = None) -> Entry:
        """Keeps it, for good or for so many seconds, unless another was first; what is kept now."""
        now = self.clock.now()
        answer = entry.answer or Answer(text="", usage=None)
        usage = "" if answer.usage is None else json.dumps(asdict(answer.usage))
        expires = None if keep_seconds is None else now + keep_seconds
        told = (answer.text, usage, answer.finish_reason, answer.engine, answer.seconds, entry.refusal)
        try:
            with self._lock, self._connection:
                self._connection.execute(PUT, (key, model, now, expires, *told))
        except sqlite3.Error as error:
            raise self._failed(error) from None
        return self.get(key) or entry

    def forget_failures(self, model: str) -> None:
        """Failures of this model are asked again before they expire."""
        with self._lock, self._connection:
            self._connection.execute("DELETE FROM answers WHERE model = ? AND expires IS NOT NULL", (model,))

    def close(self) -> None:
        """No use afterwards."""
        self._connection.close()

    def _failed(self, error: Exception) -> ConfigError:
        return ConfigError(f"{self.path}: cannot keep answers there ({error}); set RECSYS_LLM_ANSWERS to another file.")


def default_cache() -> Path:
    """RECSYS_LLM_ANSWERS, or a file in the user's cache folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("RECSYS_LLM_ANSWERS", folder / "recsys" / "llm-answers.sqlite"))


def _entry(text: str, usage: str, finish_reason: str, engine: str, seconds: float, refusal: str | None) -> Entry:
    if refusal is not None:
        return Entry(refusal=refusal)
    counted = Usage(**json.loads(usage)) if usage else None
    return Entry(answer=Answer(text=text, usage=counted, finish_reason=finish_reason, engine=engine, seconds=seconds))
