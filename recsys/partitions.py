"""Events on disk: `part-00000.parquet`, ... hash-partitioned by user, so that a user's events lie in one part.

What was appended since lies beside the parts in `added-00001.parquet`, ..., one file an append, until it is worth
writing all parts anew. Whoever wants all events of a part reads `read_part`.
"""

import os
import shutil
import zlib
from pathlib import Path

import polars as pl

EVENTS_PER_PART = 5_000_000
ROWS_PER_GROUP = 1 << 18
MOST_ADDED_FILES = 100
MOST_ADDED_SHARE = 0.25


def num_parts(num_events: int, events_per_part: int = EVENTS_PER_PART) -> int:
    """The least power of two that leaves a part about `events_per_part` events: halves of a part are parts again."""
    return 1 << (-(-num_events // events_per_part) - 1).bit_length()


def event_files(folder: Path) -> list[Path]:
    """Parts, then what was appended to them."""
    return [*part_files(folder), *added_files(folder)]


def item_ids(folder: Path) -> pl.DataFrame:
    """Distinct `item_id` of all events, in no order."""
    scans = [pl.scan_parquet(path).select("item_id").unique() for path in event_files(folder)]
    return pl.concat([scan.collect() for scan in scans]).unique()


def write_events(events: pl.DataFrame, folder: Path, events_per_part: int = EVENTS_PER_PART) -> int:
    """Writes ordered events into a new folder and returns the number of parts; the order holds inside each part."""
    folder.mkdir()
    parts = num_parts(len(events), events_per_part)
    if parts == 1:
        write_table(events, part_path(folder, 0))
        return 1
    numbers = part_numbers(events["user_id"], parts)
    for number in range(parts):
        write_table(events.filter(numbers == number), part_path(folder, number))
    return parts


def write_table(rows: pl.DataFrame, path: Path) -> None:
    """Writes Parquet whose bytes depend on the rows alone, not on the pieces that they lie in in memory."""
    rows.write_parquet(path, row_group_size=ROWS_PER_GROUP)


def rewrite_events(folder: Path, num_events: int) -> int:
    """Writes all events of a folder as parts again, one part after the other, and returns how many parts there are.

    The files are new ones: those of another dataset, which shares the old ones, stay as they are.
    """
    fresh, before = folder.with_name(f"{folder.name}.fresh"), len(part_files(folder))
    parts = max(before, num_parts(num_events))
    fresh.mkdir()
    for number in range(before):
        events = read_part(folder, number)
        for finer in range(number, parts, before):
            write_table(of_part(events, finer, parts), part_path(fresh, finer))
    while num_parts(num_events) < len(part_files(fresh)):
        halve_parts(fresh)
    shutil.rmtree(folder)
    fresh.rename(folder)
    return len(part_files(folder))


def halve_parts(folder: Path) -> None:
    """Makes half as many parts, each of two."""
    files = part_files(folder)
    half = len(files) // 2
    for one, other in zip(files[:half], files[half:], strict=True):
        write_table(in_order(pl.concat([pl.read_parquet(one), pl.read_parquet(other)])), one)
        other.unlink()


def part_numbers(user_ids: pl.Series, parts: int) -> pl.Series:
    """The part of each of `user_ids`."""
    if parts == 1:
        return pl.repeat(0, len(user_ids), dtype=pl.Int64, eager=True)
    users = user_ids.unique()
    return user_ids.replace_strict(users, [user_part(user, parts) for user in users], return_dtype=pl.Int64)


def of_part(events: pl.DataFrame, number: int, parts: int) -> pl.DataFrame:
    """Events of a part's users."""
    return events.filter(part_numbers(events["user_id"], parts) == number) if parts > 1 else events


def user_part(user_id: str, parts: int) -> int:
    """CRC-32 of the id modulo the number of parts: the same in every run, on every machine and engine."""
    return zlib.crc32(user_id.encode()) % parts


def keep_events(old: Path, new: Path) -> list[str]:
    """Gives the files of `old` a second name in the new folder `new` (or a copy), and returns their names."""
    new.mkdir()
    names = sorted(path.name for path in old.glob("*.parquet"))
    for name in names:
        try:
            os.link(old / name, new / name)
        except OSError:  # another file system, or one without links
            (new / name).write_bytes((old / name).read_bytes())
    return names


def write_added(events: pl.DataFrame, folder: Path) -> str:
    """Writes ordered events beside the parts of `folder`, and returns the file's name."""
    path = folder / f"added-{len(added_files(folder)) + 1:05d}.parquet"
    write_table(events, path)
    return path.name


def is_worth_rewriting(folder: Path, num_events: int) -> bool:
    """Whether so much was added that all `num_events` events should be written as parts again: when another number of
    parts is due, a quarter of the events lie beside the parts, or 100 files do."""
    added = added_files(folder)
    beside = sum(num_rows(path) for path in added)
    return (
        num_parts(num_events) != len(part_files(folder))
        or beside > MOST_ADDED_SHARE * (num_events - beside)
        or len(added) > MOST_ADDED_FILES
    )


def part_files(folder: Path) -> list[Path]:
    """Parts by number."""
    return sorted(folder.glob("part-*.parquet"))


def added_files(folder: Path) -> list[Path]:
    """What was appended, oldest first."""
    return sorted(folder.glob("added-*.parquet"))


def num_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pl.scan_parquet(path).select(pl.len()).collect().item())


def read_part(folder: Path, number: int) -> pl.DataFrame:
    """All events of a part by (user, timestamp, source order), appended ones in their places."""
    parts, added = part_files(folder), added_files(folder)
    events = pl.read_parquet(parts[number])
    if not added:
        return events
    beside = pl.concat([pl.read_parquet(path) for path in added])
    beside = beside.filter(part_numbers(beside["user_id"], len(parts)) == number)
    return in_order(pl.concat([events, beside.select(events.columns)]))


def in_order(events: pl.DataFrame, *ties: str) -> pl.DataFrame:
    """By user (their ids' UTF-8 bytes), timestamp and `ties`; what is equal in these keeps its order."""
    users = pl.Enum(events["user_id"].unique().sort())
    return events.sort(pl.col("user_id").cast(users).to_physical(), "timestamp", *ties, maintain_order=True)


def events_of_users(folder: Path, user_ids: pl.Series) -> pl.DataFrame:
    """All events of some users (distinct ids; of every part), in order."""
    files = event_files(folder)
    wanted = user_ids.to_frame("user_id").lazy()
    found = [pl.scan_parquet(path).join(wanted, on="user_id", how="semi").collect() for path in files]
    return in_order(pl.concat(found))


def part_path(folder: Path, number: int) -> Path:
    """File of a part."""
    return folder / f"part-{number:05d}.parquet"
