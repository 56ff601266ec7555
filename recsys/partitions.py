"""Events on disk: `part-00000.parquet`, ... hash-partitioned by user, so that a user's events lie in one part."""

import zlib
from pathlib import Path

import polars as pl

EVENTS_PER_PART = 5_000_000
ROWS_PER_GROUP = 1 << 18


def write_events(events: pl.DataFrame, folder: Path, events_per_part: int = EVENTS_PER_PART) -> int:
    """Writes ordered events into a new folder and returns the number of parts; the order holds inside each part."""
    folder.mkdir()
    parts = num_parts(len(events), events_per_part)
    if parts == 1:
        write_table(events, part_path(folder, 0))
        return 1
    users = events["user_id"].unique()
    part = pl.col("user_id").replace_strict(users, [user_part(user, parts) for user in users])
    for number in range(parts):
        write_table(events.filter(part == number), part_path(folder, number))
    return parts


def write_table(rows: pl.DataFrame, path: Path) -> None:
    """Writes Parquet whose bytes depend on the rows alone, not on the pieces that they lie in in memory."""
    rows.write_parquet(path, row_group_size=ROWS_PER_GROUP)


def num_parts(num_events: int, events_per_part: int = EVENTS_PER_PART) -> int:
    """Parts that hold about `events_per_part` events each."""
    return -(-num_events // events_per_part)


def user_part(user_id: str, parts: int) -> int:
    """CRC-32 of the id modulo the number of parts: the same in every run, on every machine and engine."""
    return zlib.crc32(user_id.encode()) % parts


def part_path(folder: Path, number: int) -> Path:
    """File of a part."""
    return folder / f"part-{number:05d}.parquet"
