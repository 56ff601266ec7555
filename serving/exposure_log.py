"""What was shown and what came of it, written to Parquet by a thread of its own; `recsys.exposures` reads it.

Rows wait in a queue bounded in rows and bytes: where it is full, they are dropped and counted, and no request waits. A
part is written when its rows are old or large enough, and at the end; a process that is killed loses the rows in its
memory. Who was deleted is left out (`serving.deletions`).
"""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread
from typing import Any

import polars as pl

from recsys.errors import ConfigError
from recsys.exposures import SCHEMAS, Kind, write_part
from serving.deletions import Deletions, Noted, hashed
from serving.metrics import Metrics
from serving.settings import Settings
from serving.shown import Shown

LOG = logging.getLogger("uvicorn.error")
SECONDS_TO_RETRY = 1
SECONDS_TO_CLOSE = 4
"""With what drains before, less than the grace period of deploy/."""
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """`began`: when its request did, in microseconds since 1970 UTC; of about `size` bytes."""

    kind: Kind
    row: Row
    user_id: str | None
    began: int
    size: int


class ExposureLog:
    """Threads may share it; `close` writes what waits."""

    def __init__(self, folder: Path, settings: Settings, metrics: Metrics) -> None:
        self._folder, self._metrics = folder, metrics
        self._seconds, self._bytes, self._history = (
            settings.exposure_seconds,
            settings.exposure_bytes,
            settings.exposure_history,
        )
        try:
            for kind in SCHEMAS:
                (folder / kind).mkdir(parents=True, exist_ok=True)
            probe = folder / f".{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
            self._deletions = Deletions(folder)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot log there ({error.strerror}); set RECSYS_EXPOSURES.") from None
        self._process, self._parts = secrets.token_hex(4), 0
        self._queue: Queue[_Entry] = Queue(settings.exposure_waiting)
        self._queueing, self._queued, self._most_queued = Lock(), 0, settings.exposure_waiting_bytes
        self._waiting: dict[Kind, list[_Entry]] = {kind: [] for kind in SCHEMAS}
        self._size, self._oldest = 0, 0.0
        self._closing = Event()
        self._thread = Thread(target=self._run, name="exposures", daemon=True)
        self._thread.start()

    def answer(self, shown: Shown, kind: Kind = "answers") -> None:
        """An answer that went out, or of a shadow."""
        history = shown.answer.history
        newest = history[max(0, len(history) - self._history) :]
        row = (
            shown.request_id,
            shown.timestamp,
            shown.user_id,
            shown.session_id,
            shown.variant,
            shown.propensity,
            shown.model_version,
            shown.answer.source,
            len(shown.query.shown) + 1,
            shown.item_ids,
            shown.answer.scores.tolist(),
            None,
            newest,
            shown.wishes,
        )
        self._put(_Entry(kind, row, shown.user_id, shown.assigned.began, _size(row)))

    def outcomes(self, events: Sequence[Mapping[str, Any]], began: int) -> None:
        """Events that were stored, of a request that began then."""
        for event in events:
            row = tuple(event.get(name) for name in SCHEMAS["outcomes"].column_names())
            self._put(_Entry("outcomes", row, event["user_id"], began, _size(row)))

    def forget(self, user_id: str) -> None:
        """Soon nothing is left here of what the user did before, whatever happens to this process; or an `OSError`."""
        self._deletions.note(user_id)

    def close(self) -> None:
        """Ends when everything is written, or cannot be in time."""
        until = time.monotonic() + SECONDS_TO_CLOSE
        self._closing.set()
        self._thread.join(SECONDS_TO_CLOSE)
        if self._thread.is_alive():
            LOG.error("%s: the disk is too slow; rows that wait are lost", self._folder)
        self._deletions.close(until - time.monotonic())

    def _put(self, entry: _Entry) -> None:
        try:
            with self._queueing:
                if self._queued >= self._most_queued or self._closing.is_set():
                    raise Full
                self._queue.put_nowait(entry)
                self._queued += entry.size
        except Full:
            self._metrics.exposures_lost(entry.kind, "dropped", 1)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._gather(self._until_due())
                if self._until_due() <= 0 and not self._write():
                    self._closing.wait(SECONDS_TO_RETRY)  # rows wait, and the queue fills up
            except Exception as error:  # this thread must live as long as the process
                LOG.error("%s: %s, tried again: %s", self._folder, type(error).__name__, error)
                self._closing.wait(SECONDS_TO_RETRY)
        self._finish()

    def _finish(self) -> None:
        """Writes all that waits, or counts what cannot be."""
        while not self._queue.empty() or self._size:
            self._gather(0)
            if not self._write():
                self._size = 0
                for kind, entries in self._waiting.items():
                    self._metrics.exposures_lost(kind, "unwritten", len(entries))
                    self._waiting[kind] = []

    def _until_due(self) -> float:
        """Seconds until rows must be written; at most the time after which one looks for other work."""
        if self._size >= self._bytes:
            return 0
        return (
            min(SECONDS_TO_RETRY, self._oldest + self._seconds - time.monotonic()) if self._size else SECONDS_TO_RETRY
        )

    def _gather(self, seconds: float) -> None:
        """Takes what waits in the queue, for so long at most, until there is enough for a part."""
        until = time.monotonic() + seconds
        while self._size < self._bytes:
            try:
                left = until - time.monotonic()
                entry = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except Empty:
                return
            with self._queueing:
                self._queued -= entry.size
            if not self._size:
                self._oldest = time.monotonic()
            self._waiting[entry.kind].append(entry)
            self._size += entry.size

    def _write(self) -> bool:
        """A part of each kind; False where the disk refuses, and rows wait on."""
        try:
            with self._deletions.writing() as deleted:
                for kind, entries in self._waiting.items():
                    self._write_part(kind, [entry.row for entry in entries if not _is_gone(entry, deleted)])
                    self._waiting[kind] = []
        except OSError as error:
            LOG.error("%s: cannot be written, tried again: %s", self._folder, error)
            return False
        self._size = 0
        return True

    def _write_part(self, kind: Kind, rows: list[Row]) -> None:
        """An `OSError` where the disk refuses; rows that make no part are dropped."""
        if not rows:
            return
        name = f"part-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{self._process}-{self._parts:06}.parquet"
        try:
            frame = pl.DataFrame(rows, schema=SCHEMAS[kind].create_empty().schema, orient="row")
            write_part(frame, self._folder / kind / name)
        except OSError:
            raise
        except Exception as error:  # tried again, they would keep out all that come later
            LOG.error("%s: %d rows are lost: %s", self._folder / kind, len(rows), error)
            self._metrics.exposures_lost(kind, "unwritten", len(rows))
            return
        self._parts += 1
        self._metrics.exposures_written(kind, len(rows))


def _is_gone(entry: _Entry, deleted: Noted) -> bool:
    """Whether the user was deleted since."""
    return bool(deleted) and entry.user_id is not None and entry.began <= deleted.get(hashed(entry.user_id), -1)


def _size(row: Row) -> int:
    """About so many bytes."""
    return sum(
        len(value) if isinstance(value, str) else sum(map(_length, value)) if isinstance(value, list) else 8
        for value in row
    )


def _length(value: object) -> int:
    return len(value) if isinstance(value, str) else 8
