"""What was shown and what came of it, written to Parquet by a thread of its own; `recsys.exposures` reads it.

Rows wait in a bounded queue: where it is full, they are dropped and counted, and no request waits. A part is written
when its rows are old or large enough, and at the end; a process that is killed loses the rows in its memory.
"""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import polars as pl

from recsys.errors import ConfigError
from recsys.exposures import SCHEMAS, Kind, erase_user, write_part
from serving.metrics import Metrics
from serving.settings import Settings
from serving.shown import Shown

LOG = logging.getLogger("uvicorn.error")
SECONDS_TO_RETRY = 1
Row = tuple[Any, ...]


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
        except OSError as error:
            raise ConfigError(f"{folder}: cannot log there ({error.strerror}); set RECSYS_EXPOSURES.") from None
        self._process, self._parts = secrets.token_hex(4), 0
        self._queue: Queue[tuple[Kind, Row]] = Queue(settings.exposure_waiting)
        self._forgotten: Queue[str] = Queue()
        self._waiting: dict[Kind, list[Row]] = {kind: [] for kind in SCHEMAS}
        self._size, self._oldest = 0, 0.0
        self._closing = Event()
        self._thread = Thread(target=self._run, name="exposures", daemon=True)
        self._thread.start()

    def answer(self, shown: Shown, kind: Kind = "answers") -> None:
        """An answer that went out, or of a shadow."""
        history = shown.answer.history
        newest = history[max(0, len(history) - self._history) :]
        self._put(
            kind,
            (
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
            ),
        )

    def outcomes(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Events that were stored."""
        for event in events:
            self._put("outcomes", tuple(event.get(name) for name in SCHEMAS["outcomes"].column_names()))

    def forget(self, user_id: str) -> None:
        """Soon nothing of the user is left here, neither in parts nor in what waits."""
        self._forgotten.put(user_id)

    def close(self) -> None:
        """Ends when everything is written, or cannot be."""
        self._closing.set()
        self._thread.join()

    def _put(self, kind: Kind, row: Row) -> None:
        try:
            self._queue.put_nowait((kind, row))
        except Full:
            self._metrics.exposures_lost(kind, "dropped", 1)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._gather(self._until_due())
            self._forget()
            if self._until_due() <= 0 and not self._write():
                self._closing.wait(SECONDS_TO_RETRY)  # rows wait, and the queue fills up
        self._finish()

    def _finish(self) -> None:
        """Writes all that waits, or counts what cannot be."""
        while not self._queue.empty() or self._size:
            self._gather(0)
            self._forget()
            if not self._write():
                self._size = 0
                for kind, rows in self._waiting.items():
                    self._metrics.exposures_lost(kind, "unwritten", len(rows))
                    self._waiting[kind] = []
        self._forget()

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
                kind, row = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except Empty:
                return
            if not self._size:
                self._oldest = time.monotonic()
            self._waiting[kind].append(row)
            self._size += _size(row)

    def _write(self) -> bool:
        """A part of each kind; False where the disk refuses, and rows wait on."""
        for kind, rows in self._waiting.items():
            if not rows:
                continue
            name = f"part-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{self._process}-{self._parts:06}.parquet"
            try:
                frame = pl.DataFrame(rows, schema=SCHEMAS[kind].create_empty().schema, orient="row")
                write_part(frame, self._folder / kind / name)
            except OSError as error:
                LOG.error("%s: cannot be written, tried again: %s", self._folder / kind, error)
                return False
            self._parts += 1
            self._metrics.exposures_written(kind, len(rows))
            self._waiting[kind] = []
        self._size = 0
        return True

    def _forget(self) -> None:
        while True:
            try:
                user_id = self._forgotten.get_nowait()
            except Empty:
                return
            for kind, rows in self._waiting.items():
                place = SCHEMAS[kind].column_names().index("user_id")
                self._waiting[kind] = [row for row in rows if row[place] != user_id]
            try:
                erase_user(self._folder, user_id)
            except OSError as error:
                LOG.error("%s: a user could not be erased, tried again: %s", self._folder, error)
                self._forgotten.put(user_id)
                return


def _size(row: Row) -> int:
    """About so many bytes."""
    return sum(
        len(value) if isinstance(value, str) else sum(map(_length, value)) if isinstance(value, list) else 8
        for value in row
    )


def _length(value: object) -> int:
    return len(value) if isinstance(value, str) else 8
