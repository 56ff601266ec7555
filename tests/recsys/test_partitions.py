"""Events on disk, by user."""

import inspect
from pathlib import Path

import polars as pl
import pytest

from recsys import partitions
from recsys.partitions import in_order, keep_events, rewrite_events, user_part, write_added, write_events, write_table


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


@pytest.mark.parametrize(
    ("per_part_before", "per_part", "num_parts"), [(100, 20, 4), (14, 14, 8), (7, 40, 2), (50, 60, 1)]
)
def test_rewritten_parts_are_those_of_all_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_part_before: int, per_part: int, num_parts: int
) -> None:
    users = [f"u{place // 4:02d}" for place in range(56)]
    old = pl.DataFrame({"user_id": users, "timestamp": range(56), "item_id": "old"})
    new = in_order(pl.DataFrame({"user_id": ["u03", "v", "u03", "u11"], "timestamp": [13, 1, 2, 99], "item_id": "new"}))
    write_events(old, tmp_path / "old", per_part_before)
    before = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    keep_events(tmp_path / "old", tmp_path / "grown")
    write_added(new, tmp_path / "grown")
    monkeypatch.setattr(inspect.unwrap(partitions.num_parts), "__defaults__", (per_part,))
    assert rewrite_events(tmp_path / "grown", 60) == num_parts
    write_events(in_order(pl.concat([old, new])), tmp_path / "whole", per_part)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "grown").iterdir()) == names
    for name in names:
        assert pl.read_parquet(tmp_path / "grown" / name).equals(pl.read_parquet(tmp_path / "whole" / name))
    assert {path: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before, "shared by hard links"
