"""Events on disk: `part-00000.parquet`, ... hash-partitioned by user, so that a user's events lie in one part."""

import zlib
from pathlib import Path

import polars as pl

EVENTS_PER_PART = 5_000_000


def write_events(events: pl.DataFrame, folder: Path, events_per_part: int = EVENTS_PER_PART) -> int:
    """Writes ordered events into a new folder and returns the number of parts; the order holds inside each part."""
    folder.mkdir()
    num_parts = -(-len(events) // events_per_part)
    if num_parts == 1:
        events.write_parquet(_part(folder, 0))
        return 1
    users = events["user_id"].unique()
    part = pl.col("user_id").replace_strict(users, [user_part(user, num_parts) for user in users])
    for number in range(num_parts):
        events.filter(part == number).write_parquet(_part(folder, number))
    return num_parts


def user_part(user_id: str, num_parts: int) -> int:
    """CRC-32 of the id modulo the number of parts: the same in every run, on every machine and engine."""
    return zlib.crc32(user_id.encode()) % num_parts


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"
