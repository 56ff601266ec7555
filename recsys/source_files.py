"""What lies in a source file before its format matters: bytes, text, and rows as they were written."""

import glob
import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import zstandard

from recsys.errors import ConfigError, DataError
from recsys.exposures import is_exposure_log, log_parts

HEAD_BYTES = 1 << 16
HEAD_ROWS = 1_000
LIST_TEXT = r"^\s*\[.*\]\s*$"
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PACKING_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
LOG_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".inter", ".dat", ".txt", ".npy")
ROW = "#row"
LINE = "#line"
PROBLEM = "#problem"
EXACT_IN_FLOAT = 2**53
BAD_FIELD_COUNT = "wrong number of fields"


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a source: names for files without a header, field delimiter (None: sniffed), text encoding.

    `keys`: columns of JSON lines (none: as their head has them). `further`: the text is a further piece of a source, so
    a first line of another form is one bad row among others.
    """

    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str = "utf-8"
    keys: tuple[str, ...] = ()
    further: bool = False


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """The rows of one source, nothing dropped and nothing cast.

    `frame` holds the source's own columns, `ROW` (1-based data row: a header is not counted; of a sequence file,
    the line), `PROBLEM` (why the row could not be read, or null) and, where rows span lines, `LINE` (that of its
    first line). Elsewhere row r stands in line `lines_before` + r; None: the file is no text of lines.
    `users_are_lines`: the source has no user ids, so line numbers stand in for them. `told_by`: how its format was
    recognised, where it was. `lists`: columns of texts of lists, as the first piece of the source has them; None: this
    table tells.
    """

    path: Path
    layout: str
    frame: pl.DataFrame
    lines_before: int | None = None
    users_are_lines: bool = False
    told_by: str = ""
    lists: tuple[str, ...] | None = None

    @property
    def columns(self) -> list[str]:
        """The source's own columns."""
        return [column for column in self.frame.columns if column not in {ROW, LINE, PROBLEM}]

    def lines(self) -> pl.Series:
        """Number of each row's line in the (unpacked) file, from 1; null where the file has no lines."""
        if LINE in self.frame.columns:
            return self.frame[LINE]
        if self.lines_before is None:
            return pl.repeat(None, len(self.frame), dtype=pl.Int64, eager=True)
        return self.frame[ROW] + self.lines_before


def with_rows(frame: pl.DataFrame, problem: pl.Expr | None = None) -> pl.DataFrame:
    """`frame` with `ROW` counted from 1 and `PROBLEM` (none unless given)."""
    no_problem = pl.lit(None, pl.String)
    return frame.with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW),
        (no_problem if problem is None else problem).alias(PROBLEM),
    )


def expand_sources(sources: Iterable[Path]) -> list[Path]:
    """Files in the order given; a folder stands for the logs below it (of exposures its outcomes), a pattern for its
    matches, by path."""
    files: list[Path] = []
    for source in sources:
        if is_exposure_log(source):
            files += _outcomes_of(source)
        elif source.is_dir():
            files += _logs_below(source)
        elif source.is_file():
            files.append(source)
        elif matches := [Path(match) for match in sorted(glob.glob(str(source), recursive=True))]:
            files += [match for match in matches if match.is_file()]
        else:
            raise DataError(f"{source}: no such file, and no file matches it as a pattern; check the path.")
    if twice := sorted({str(file) for file in files if files.count(file) > 1}):
        raise ConfigError(f"{twice[0]}: given more than once; name each source a single time.")
    return files


def _outcomes_of(folder: Path) -> list[Path]:
    """The events in a service's exposure log; what was shown there is no event."""
    parts = log_parts(folder, "outcomes")
    if not parts:
        raise DataError(f"{folder}: an exposure log without outcomes: no client has sent an event yet.")
    return parts


def _logs_below(folder: Path) -> list[Path]:
    """All Parquet files of a folder, or where it has none, all files named as logs are."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "_")))
    parts = [path for path in files if plain_suffix(path) == ".parquet"]
    logs = parts or [path for path in files if plain_suffix(path) in LOG_SUFFIXES]
    if not logs:
        raise DataError(
            f"{folder}: a folder without log files ({', '.join(LOG_SUFFIXES)}; .gz or .zst too); name them themselves."
        )
    return logs


def plain_suffix(path: Path) -> str:
    """Lower-case suffix without that of a packing: `.csv` of `clicks.csv.gz`."""
    return Path(path.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def read_bytes(path: Path) -> bytes:
    """Content of `path`, unpacked if it is gzip or zstd."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from None
    if not content:
        raise DataError(f"{path}: the file is empty; there is nothing to ingest.")
    try:
        if content.startswith(GZIP_MAGIC):
            return gzip.decompress(content)
        if content.startswith(ZSTD_MAGIC):
            return _all_frames(content)
    except PACKING_ERRORS as error:
        raise DataError(f"{path}: truncated or damaged packed file ({error}); fetch it again.") from None
    if (suffix := path.suffix.lower()) in {".gz", ".zst"}:
        raise DataError(f"{path}: named {suffix}, but not packed so; rename it or fetch it again.")
    return content


def _all_frames(content: bytes) -> bytes:
    """Unpacked zstd, every frame of it whole."""
    parts = list[bytes]()
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(content))
        if not frame.eof:
            raise EOFError("it ends within a frame")
        content = frame.unused_data
    return b"".join(parts)


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
    try:
        head = _head(path).decode("utf-8", errors="replace")
    except PACKING_ERRORS as error:
        raise DataError(f"{path}: truncated or damaged packed file ({error}); fetch it again.") from None
    lines = [line for line in head.removeprefix("\ufeff").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: the file is empty or begins with blank lines only; there is nothing to ingest.")
    return lines[0]


def _head(path: Path) -> bytes:
    with path.open("rb") as handle:
        magic = handle.read(4)
    if magic.startswith(GZIP_MAGIC):
        with gzip.open(path) as unpacked:
            return unpacked.read(HEAD_BYTES)
    with zstandard.open(path) if magic.startswith(ZSTD_MAGIC) else path.open("rb") as stream:
        return bytes(stream.read(HEAD_BYTES))


def holds_list_texts(values: pl.Series) -> bool:
    """Whether the first rows of a column hold nothing but texts of lists (JSON or Python literals)."""
    texts = values.head(HEAD_ROWS).drop_nulls()
    return values.dtype == pl.String and len(texts) > 0 and texts.str.contains(LIST_TEXT).all()


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
