"""Events on disk, by user."""

from pathlib import Path

import polars as pl
import pytest

from recsys.partitions import user_part, write_events, write_table


def test_the_hash_of_a_user_never_changes() -> None:
    assert user_part("123456789", 2**32) == 0xCBF43926  # the published check value of CRC-32
    assert user_part("123456789", 1000) == 262


@pytest.mark.parametrize(("events_per_part", "num_parts"), [(100, 1), (30, 2), (7, 8)])
def test_parts_hold_whole_users_in_order(tmp_path: Path, events_per_part: int, num_parts: int) -> None:
    events = pl.DataFrame({"user_id": [f"u{place // 4:02d}" for place in range(56)], "timestamp": range(56)})
    assert write_events(events, tmp_path / "events", events_per_part) == num_parts
    parts = [pl.read_parquet(path) for path in sorted((tmp_path / "events").iterdir())]
    assert len(parts) == num_parts
    for number, part in enumerate(parts):
        assert {user_part(user, num_parts) for user in part["user_id"]} <= {number}
        assert part["timestamp"].is_sorted()
    assert pl.concat(parts).sort("timestamp").equals(events)


def test_the_bytes_of_a_table_depend_on_its_rows_alone(tmp_path: Path) -> None:
    """Spark and Polars hold the same rows in different pieces; several row groups, several pieces."""
    rows = pl.select(number=pl.int_range(600_000), text=pl.int_range(600_000).cast(pl.String))
    pieces = pl.concat([rows[:7], rows[7:300_001], rows[300_001:]], rechunk=False)
    assert (rows.n_chunks(), pieces.n_chunks()) == (1, 3)
    for name, table in (("whole", rows), ("pieces", pieces)):
        write_table(table, tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()
