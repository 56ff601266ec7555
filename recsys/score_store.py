"""What detectors said of windows, kept by content: nothing is judged twice, and a killed run keeps what it has.

A window's probabilities stand under the SHA-256 of the detector's key (its settings, seed and all it learned from) and
of the window. One SQLite file. N windows, L positions.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from jaxtyping import Float

from recsys.errors import ConfigError
from recsys.noise import Judged, NoiseDetector

WINDOWS_AT_ONCE = 256
KEYS_PER_QUERY = 500
SCHEMA = "CREATE TABLE IF NOT EXISTS naming (key BLOB PRIMARY KEY, probabilities BLOB NOT NULL)"


def default_folder() -> Path:
    """RECSYS_NOISE, or a folder in the user's cache: scores, and the detectors that were trained."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("RECSYS_NOISE", cache / "recsys" / "noise"))


def window_keys(key: str, windows: Judged) -> list[bytes]:
    """A digest for each window, of what the detector's answer depends on; padding is no part of it."""
    shown = zip(windows.items, windows.lengths.tolist(), windows.blocks.tolist(), strict=True)
    return [
        hashlib.sha256(f"{key}\0{block}\0{items[:length].tolist()}".encode()).digest() for items, length, block in shown
    ]


def kept_naming(
    key: str, detector: Callable[[], NoiseDetector], windows: Judged, folder: Path, advance: Callable[[int], None]
) -> Float[np.ndarray, "N L"]:
    """`NoiseDetector.naming` of all windows; `detector` is asked for only where an answer is missing.

    `advance` hears of windows that are done, known ones included.
    """
    keys = window_keys(key, windows)
    result = np.zeros(windows.items.shape, dtype=np.float32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(folder / "scores.sqlite", timeout=60)) as connection:
            connection.execute(SCHEMA)
            known = _stored(connection, keys)
            for first in range(0, len(keys), WINDOWS_AT_ONCE):  # fixed batches: a run that goes on computes the same
                part = np.arange(first, min(first + WINDOWS_AT_ONCE, len(keys)))
                missing = part[[keys[row] not in known for row in part]]
                if len(missing):
                    judged = windows.rows(missing)
                    known |= dict(zip([keys[row] for row in missing], _judge(detector(), judged), strict=True))
                    rows = [(keys[row], known[keys[row]].tobytes()) for row in missing]
                    with connection:
                        connection.executemany("INSERT OR IGNORE INTO naming VALUES (?, ?)", rows)
                for row in part:
                    result[row, : windows.lengths[row]] = known[keys[row]]
                advance(len(part))
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(
            f"{folder}: cannot keep scores there ({error}); set RECSYS_NOISE to another folder."
        ) from None
    return result


def _judge(detector: NoiseDetector, windows: Judged) -> list[Float[np.ndarray, " _"]]:
    """Of each window the probabilities of its events, without padding."""
    named = detector.naming(windows).astype(np.float32)
    return [row[:length].copy() for row, length in zip(named, windows.lengths.tolist(), strict=True)]


def _stored(connection: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, Float[np.ndarray, " _"]]:
    found = {}
    for first in range(0, len(keys), KEYS_PER_QUERY):
        part = keys[first : first + KEYS_PER_QUERY]
        query = f"SELECT key, probabilities FROM naming WHERE key IN ({','.join('?' * len(part))})"
        for key, probabilities in connection.execute(query, part):
            found[key] = np.frombuffer(probabilities, dtype=np.float32)
    return found
