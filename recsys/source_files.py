"""What lies in a source file before its format matters: bytes, text, and rows as they were written."""

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.exposures import is_exposure_log, log_parts

GZIP_MAGIC = b"\x1f\x8b"
ROW = "#row"
PROBLEM = "#problem"
EXACT_IN_FLOAT = 2**53
BAD_FIELD_COUNT = "wrong number of fields"


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a source: names for files without a header, field delimiter (None: sniffed), text encoding."""

    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str = "utf-8"


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """The rows of one source, nothing dropped and nothing cast.

    `frame` holds the source's own columns, `ROW` (1-based data row: a header is not counted; of a sequence file,
    the line) and `PROBLEM` (why the row could not be read, or null). `users_are_lines`: the source has no user
    ids, so line numbers stand in for them.
    """

    path: Path
    layout: str
    frame: pl.DataFrame
    users_are_lines: bool = False

    @property
    def columns(self) -> list[str]:
        """The source's own columns."""
        return [column for column in self.frame.columns if column not in {ROW, PROBLEM}]


def with_rows(frame: pl.DataFrame, problem: pl.Expr | None = None) -> pl.DataFrame:
    """`frame` with `ROW` counted from 1 and `PROBLEM` (none unless given)."""
    no_problem = pl.lit(None, pl.String)
    return frame.with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW),
        (no_problem if problem is None else problem).alias(PROBLEM),
    )


def expand_sources(sources: Iterable[Path]) -> list[Path]:
    """Files in the order given; a folder stands for the Parquet files below it, an exposure log for its outcomes."""
    files: list[Path] = []
    for source in sources:
        if is_exposure_log(source):
            files += _outcomes_of(source)
        elif source.is_dir():
            parts = sorted(source.rglob("*.parquet"))
            if not parts:
                raise DataError(f"{source}: a folder without *.parquet files; name the log files themselves.")
            files += parts
        elif source.is_file():
            files.append(source)
        else:
            raise DataError(
                f"{source}: no such file; check the path, or quote patterns so that the shell expands them."
            )
    if twice := sorted({str(file) for file in files if files.count(file) > 1}):
        raise ConfigError(f"{twice[0]}: given more than once; name each source a single time.")
    return files


def _outcomes_of(folder: Path) -> list[Path]:
    """The events in a service's exposure log; what was shown there is no event."""
    parts = log_parts(folder, "outcomes")
    if not parts:
        raise DataError(f"{folder}: an exposure log without outcomes: no client has sent an event yet.")
    return parts


def plain_suffix(path: Path) -> str:
    """Lower-case suffix without `.gz`: `.csv` of `clicks.csv.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_bytes(path: Path) -> bytes:
    """Content of `path`, unpacked if it is gzip."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from None
    if not content:
        raise DataError(f"{path}: the file is empty; there is nothing to ingest.")
    if not content.startswith(GZIP_MAGIC):
        if path.suffix.lower() == ".gz":
            raise DataError(f"{path}: named .gz, but not a gzip file; rename it or fetch it again.")
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error}); fetch it again.") from None


def read_text(path: Path, encoding: str, fallback: str | None = None) -> bytes:
    """Content as UTF-8 with `\\n` line ends and no byte order mark; `fallback` is tried where `encoding` fails."""
    content = read_bytes(path)
    text = _decode(path, content, encoding, fallback).removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"{path}: the file holds only blank lines; there is nothing to ingest.")
    return text.encode().replace(b"\r\n", b"\n")


def _decode(path: Path, content: bytes, encoding: str, fallback: str | None) -> str:
    try:
        return content.decode(encoding)
    except LookupError:
        raise ConfigError(f"encoding={encoding!r} is not known; use a name such as utf-8, latin-1 or cp1252.") from None
    except UnicodeDecodeError as error:
        if fallback is not None:
            return _decode(path, content, fallback, None)
        raise DataError(
            f"{path}: not {encoding}: byte 0x{content[error.start]:02x} at offset {error.start} cannot be decoded; "
            "name the right encoding, for instance --encoding latin-1."
        ) from None


def first_line(path: Path) -> str:
    """First line that is not blank (of the first 64 KiB), undecodable bytes replaced."""
    with path.open("rb") as handle:
        packed = handle.read(2) == GZIP_MAGIC
    try:
        with gzip.open(path) if packed else path.open("rb") as handle:
            head = handle.read(1 << 16).decode("utf-8", errors="replace")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error}); fetch it again.") from None
    lines = [line for line in head.removeprefix("\ufeff").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: the file is empty or begins with blank lines only; there is nothing to ingest.")
    return lines[0]


def as_integers(values: pl.Series) -> pl.Series:
    """Floats that are all whole numbers as integers (readers of integers with gaps make floats of them)."""
    if not values.dtype.is_float():
        return values
    numbers = values.fill_nan(None).drop_nulls()
    whole = (numbers == numbers.round()) & (numbers.abs() <= EXACT_IN_FLOAT)
    return values.fill_nan(None).cast(pl.Int64) if whole.all() else values


def text_lines(text: bytes) -> pl.Series:
    """Lines of a text; blank ones at its end are left out."""
    return pl.read_lines(text.rstrip(b"\n"))["line"]
