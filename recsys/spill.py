"""Cleaned rows of a log that may not fit into memory: what is too much lies on disk, in buckets by user.

scratch/events-00012-0003.parquet    users of bucket 12 (CRC-32 of the id modulo 256), written fourth
scratch/rejected-0003.parquet
"""

from pathlib import Path

import polars as pl

from recsys.cleaning import CleanRows, no_rows
from recsys.partitions import of_part, part_numbers

BUCKETS = 256


class Spill:
    """Rows in source order: kept in memory up to `most_bytes` (None: without limit), then written below `scratch`."""

    def __init__(self, scratch: Path, most_bytes: int | None = None) -> None:
        self.scratch, self.most_bytes = scratch, most_bytes
        self.num_events = self.num_rejected = self.held = self.flushes = 0
        self._kept = [no_rows()]

    @property
    def num_rows(self) -> int:
        """All rows so far."""
        return self.num_events + self.num_rejected

    def add(self, rows: CleanRows) -> None:
        """Takes rows that come after all others."""
        self._kept.append(rows)
        self.num_events += len(rows.events)
        self.num_rejected += len(rows.rejected)
        self.held += int(rows.events.estimated_size() + rows.rejected.estimated_size())
        if self.most_bytes is not None and self.held > self.most_bytes:
            self._flush()

    def part(self, number: int, parts: int) -> pl.DataFrame:
        """Events of a part, in no order; where they stand in the sources is `ORDER`."""
        names = [f"events-{bucket:05d}-*.parquet" for bucket in range(number % BUCKETS, BUCKETS, parts)]
        written = [pl.read_parquet(path) for name in names for path in self.scratch.glob(name)]
        if parts > BUCKETS:  # a bucket holds users of several parts
            written = [of_part(table, number, parts) for table in written]
        return pl.concat([*written, *(of_part(rows.events, number, parts) for rows in self._kept)], rechunk=True)

    def rejected(self) -> pl.DataFrame:
        """Rows that are no events, in source order."""
        files = sorted(self.scratch.glob("rejected-*.parquet"), key=lambda path: int(path.stem.rsplit("-")[-1]))
        return pl.concat([*map(pl.read_parquet, files), *(rows.rejected for rows in self._kept)])

    def _flush(self) -> None:
        """Writes what is held, a file a bucket."""
        self.scratch.mkdir(exist_ok=True)
        events = pl.concat([rows.events for rows in self._kept])
        rejected = pl.concat([rows.rejected for rows in self._kept])
        self._kept, self.held = [no_rows()], 0
        rejected.write_parquet(self.scratch / f"rejected-{self.flushes:04d}.parquet", compression="lz4")
        buckets = events.with_columns(part_numbers(events["user_id"], BUCKETS).alias("#bucket"))
        for (bucket,), table in buckets.partition_by("#bucket", as_dict=True, include_key=False).items():
            name = f"events-{bucket:05d}-{self.flushes:04d}.parquet"
            table.write_parquet(self.scratch / name, compression="lz4")
        self.flushes += 1
