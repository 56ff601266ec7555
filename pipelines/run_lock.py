"""One `recsys run` at a time: a lock that the kernel takes back when its holder ends, however it ends."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from recsys.errors import DataError


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Holds the lock while the block runs; a second caller is told who holds it and since when.

    The file stays, so that nobody locks one that was just removed; its text only counts while it is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"run: {path.parent} is being worked on by {holder(path)}; wait for it to end, or end it: what it has "
                "done is kept."
            ) from None
        handle.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        handle.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
        handle.flush()
        yield


def holder(path: Path) -> str:
    """Who wrote the lock's text."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return "another run that has just begun"
    return f"process {entry['pid']} on {entry['host']} since {entry['since']}"
