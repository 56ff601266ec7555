"""Events on disk, by user."""

from pathlib import Path

import polars as pl
import pytest

from recsys.partitions import user_part, write_events


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
