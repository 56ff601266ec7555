"""The only door to PySpark and Arrow (extra `spark`): a session, and what tables look like on either side.

`recsys ingest|prepare --engine spark` let Spark read, count and bring all events of a user to one place; there the
functions of the Polars engine work on them (`mapInArrow`), so that both engines write the same files, to the byte.
Tasks write whole files and rename them: one that runs again, after its executor was lost, leaves what it left before.

Folders are named to executors by path: on several machines they lie on a file system that all of them see.
"""

import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.partitions import write_table

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame as DataFrame
    from pyspark.sql import SparkSession as SparkSession

    Batches = Iterable[pa.RecordBatch]
    Results = Iterator[pa.RecordBatch]

EVENTS_PER_TASK = 1_000_000
SECONDS_TO_REACH = 5.0
ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def spark_session(master: str) -> Iterator["SparkSession"]:
    """A session at `master`; one that runs already is used, and left running."""
    if os.environ.get("JAVA_HOME") is None and shutil.which("java") is None:
        raise ConfigError(
            "engine spark: no Java was found; install JDK 17 (apt-get install openjdk-17-jre-headless), or set "
            "JAVA_HOME."
        )
    _refuse_unreachable(master)
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    running = SparkSession.getActiveSession()
    builder = SparkSession.builder.appName("recsys").master(master)
    for name, value in _settings(master).items():
        builder = builder.config(name, value)
    try:
        session = running or builder.getOrCreate()
    except Exception as error:
        raise ConfigError(f"engine spark: no session at --master {master}: {_first_line(error)}.") from None
    session.sparkContext.setLogLevel("OFF")
    try:
        yield session
    except PySparkException as error:
        raise DataError(f"engine spark: a job at {master} failed: {_first_line(error)}.") from error
    finally:
        if running is None:
            session.stop()


def _settings(master: str) -> dict[str, str]:
    """Settings of our own; executors on this machine run this Python and these packages."""
    shared = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "200000",
    }
    if not master.startswith("local"):
        return shared
    return shared | {
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": "8",
        "spark.executorEnv.PYTHONPATH": str(ROOT),
        "spark.executorEnv.POLARS_MAX_THREADS": "1",
    }


def _refuse_unreachable(master: str) -> None:
    """Asks a master of Spark's own kind for a connection, which Spark itself would try for a minute."""
    if not master.startswith("spark://"):
        return
    for address in master.removeprefix("spark://").split(","):
        parts = urlsplit(f"//{address}")
        try:
            socket.create_connection((parts.hostname or "", parts.port or 7077), SECONDS_TO_REACH).close()
            return
        except (OSError, ValueError) as error:
            reason = str(error)
    raise ConfigError(f"engine spark: cannot reach --master {master} ({reason}); is it running, and the address right?")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1 if "Traceback" in str(error) else 0].rstrip(".")[:300]


def write_whole(frame: pl.DataFrame, path: Path) -> None:
    """Never seen half-written, whichever attempt of a task it is that writes."""
    partial_file = path.with_name(f".{path.name}.{os.getpid()}")
    write_table(frame, partial_file)
    partial_file.replace(path)


def slices(session: "SparkSession", things: int) -> int:
    """Partitions of a list of things to read: a few for each core."""
    return max(1, min(things, 4 * session.sparkContext.defaultParallelism))


def partition_id() -> int:
    """Number of the partition that a task works on."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    return context.partitionId()


def tasks_for(session: "SparkSession", events: int) -> int:
    """Partitions of a shuffle of so many events."""
    return max(session.sparkContext.defaultParallelism, -(-events // EVENTS_PER_TASK))


def on_driver(rows: "DataFrame") -> pl.DataFrame:
    """Rows on the driver, partition after partition."""
    found = pl.from_arrow(rows.toArrow())
    assert isinstance(found, pl.DataFrame)
    return found


def numbers_of(batches: "Batches") -> Iterator[int]:
    """What `session.range` counts."""
    for batch in batches:
        yield from batch.column(0).to_pylist()


def whole(batches: "Batches") -> pl.DataFrame | None:
    """A partition as one table; None where it is empty."""
    import pyarrow as pa

    found = list(batches)
    if not sum(batch.num_rows for batch in found):
        return None
    frame = pl.from_arrow(pa.Table.from_batches(found))
    assert isinstance(frame, pl.DataFrame)
    return frame.rechunk()


def as_batches(frame: pl.DataFrame, columns: str) -> "Results":
    """A table as Spark takes it: the columns of a schema, in its types."""
    import pyarrow as pa

    kinds = {"string": pa.string(), "long": pa.int64(), "float": pa.float32(), "boolean": pa.bool_()}
    named = dict(column.strip().replace("`", "").split(" ", 1) for column in columns.split(","))
    missing = [pl.lit(None).alias(name) for name in named if name not in frame.columns]
    table = frame.with_columns(missing).select(*named).to_arrow(compat_level=pl.CompatLevel.oldest())
    yield from table.cast(pa.schema([(name, kinds[kind]) for name, kind in named.items()])).to_batches()
