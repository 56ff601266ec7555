"""Deleted users and the exposure log: noted on disk before a deletion is answered, erased by a thread of its own.

LOG/deleted/HASH-MICROSECONDS   holds the user's id until all parts were gone over, then nothing; removed a day later
LOG/.writing                    locked by all who write parts, and for a moment by who begins to erase
LOG/.erasing                    locked by who erases: one process at a time

Whoever writes a part leaves out rows that began before their user's note: so do processes that were told of nothing. A
process that ends before it has erased leaves the note to the others, and to its next start.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from recsys.exposures import DAY, SCHEMAS, erase_users, write_whole

LOG = logging.getLogger("uvicorn.error")
SECONDS_TO_LOOK = 60
"""Between looks for notes of processes that ended, or parts that a disk did not let go."""
Noted = Mapping[str, int]
"""By hash of the user, when the deletion was asked for, in microseconds since 1970 UTC."""


class Deletions:
    """Threads may share it; the log's folder is there."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._notes = folder, folder / "deleted"
        self._notes.mkdir(exist_ok=True)
        self._wake, self._closing = Event(), Event()
        self._thread = Thread(target=self._run, name="deletions", daemon=True)
        self._thread.start()

    def note(self, user_id: str) -> None:
        """From now on no part is written with what was before, and soon none holds the user; or an `OSError`."""
        write_whole(user_id.encode(), self._notes / f"{hashed(user_id)}-{time.time_ns() // 1_000}")
        self._wake.set()

    @contextmanager
    def writing(self) -> Iterator[Noted]:
        """A part that is written inside leaves out who is noted."""
        with _locked(self._folder / ".writing", fcntl.LOCK_SH):
            noted: dict[str, int] = {}
            for user, at in map(_read_name, _files(self._notes)):
                noted[user] = max(at, noted.get(user, 0))
            yield noted

    def close(self, seconds: float) -> None:
        """Goes over the log once more if somebody is noted; what is not done by then is done after the next start."""
        self._closing.set()
        self._wake.set()
        self._thread.join(max(seconds, 0))

    def _run(self) -> None:
        while True:
            last = self._closing.is_set()
            try:
                self._erase()
            except Exception as error:  # this thread must live as long as the process
                LOG.error("%s: deleted users could not be erased, tried again: %s", self._folder, error)
            if last:
                return
            self._wake.wait(SECONDS_TO_LOOK)
            self._wake.clear()

    def _erase(self) -> None:
        """All who are noted in one pass; nobody else's part is waited for beyond those that are being written."""
        if not _files(self._notes):
            return
        with _locked(self._folder / ".erasing", fcntl.LOCK_EX):
            pending = self._pending()
            if pending and self._went_over(set(pending.values())):
                for note in pending:
                    os.truncate(note, 0)

    def _pending(self) -> dict[Path, str]:
        """Ids that are still to be erased, by their notes; drops old notes."""
        held = {note: note.read_bytes().decode() for note in _files(self._notes)}
        for note, user_id in held.items():
            if not user_id and _read_name(note)[1] < time.time_ns() // 1_000 - DAY:
                note.unlink()
        return {note: user_id for note, user_id in held.items() if user_id}

    def _went_over(self, user_ids: set[str]) -> bool:
        """Whether nothing is left of the users in parts that can be read."""
        with _locked(self._folder / ".writing", fcntl.LOCK_EX):
            for kind in SCHEMAS:  # nobody writes now, so these are of processes that were killed
                for unfinished in (self._folder / kind).glob(".part-*"):
                    unfinished.unlink()
        left = erase_users(self._folder, user_ids)
        for part, error in left.items():
            LOG.error("%s: may hold rows of a deleted user, and cannot be gone over: %s", part, error)
        return not any(isinstance(error, OSError) for error in left.values())


def hashed(user_id: str) -> str:
    """Stands for the user in names of files."""
    return hashlib.sha256(user_id.encode()).hexdigest()


def _files(notes: Path) -> list[Path]:
    return [path for path in notes.iterdir() if not path.name.startswith(".")]


def _read_name(note: Path) -> tuple[str, int]:
    user, _, at = note.name.partition("-")
    return user, int(at)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, how)
        yield
