"""Source files larger than they may be in memory, one piece after the other.

Text whose rows are lines (CSV, atomic files, `::` files, JSON lines) is cut behind line ends outside of quotes, each
piece under the header; Parquet by rows. A piece is a file in a scratch folder, which the reader of its format reads as
any other. Formats that only make sense whole (sequences, whole-file JSON, npy) come in one piece.
"""

import gzip
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import polars as pl
import zstandard

from recsys.errors import ConfigError, DataError
from recsys.readers import (
    READERS,
    WINDOWS,
    Recognised,
    SourceFormat,
    read_table,
    recognise,
    sniff_delimiter,
    with_partition_columns,
)
from recsys.source_files import (
    GZIP_MAGIC,
    LINE,
    PACKING_ERRORS,
    ROW,
    ZSTD_MAGIC,
    RawTable,
    ReadOptions,
    first_line,
    holds_list_texts,
)

OF_LINES = frozenset({"csv", "jsonl", "movielens", "recbole"})
ASCII_LIKE = ("utf-8", "utf8", "utf-8-sig", "latin-1", "iso-8859-1", "cp1252", "ascii")
"""Encodings in which a byte of a line end or quote is nothing else."""
PACKED_RATIO = 12
BYTES_A_CELL = 64
LONGEST_ROW = 16 << 20


def read_pieces(
    path: Path, source_format: SourceFormat, options: ReadOptions, most_bytes: int | None, scratch: Path
) -> Iterator[RawTable]:
    """All rows of a source in their order, in tables of about `most_bytes` bytes of text; None: in one."""
    if most_bytes is None or path.stat().st_size * PACKED_RATIO < most_bytes:
        yield read_table(path, source_format, options)
        return
    found = recognise(path, options.encoding) if source_format == "auto" else Recognised(source_format, "")
    if found.format == "parquet":
        pieces = _slices(path, most_bytes, scratch)
    elif found.format in OF_LINES and options.encoding.lower() in ASCII_LIKE:
        if found.format == "csv":
            options = replace(options, delimiter=options.delimiter or sniff_delimiter(first_line(path)))
        pieces = _cuts(path, found.format, options, most_bytes, scratch)
    else:
        yield read_table(path, source_format, options)
        return
    rows, lines, lists = 0, 0, None
    for piece, breaks in pieces:
        try:
            table = READERS[found.format](piece, options)
        except (DataError, ConfigError) as error:
            begins = "" if found.format == "parquet" else f" (from line {lines + 1} on)"
            raise type(error)(str(error).replace(str(piece), f"{path}{begins}")) from None
        if found.format != "parquet":
            options = _as_begun(table, found.format, options)
        table = with_partition_columns(table, path)
        if lists is None:
            lists = tuple(name for name in table.columns if holds_list_texts(table.frame[name]))
        yield replace(_moved(table, path, rows, lines, found.reason), lists=lists)
        rows += table.frame.select(pl.col(ROW).max().fill_null(0)).item()
        lines += breaks
        piece.unlink()


def _as_begun(table: RawTable, source_format: str, options: ReadOptions) -> ReadOptions:
    """How to read what follows a first piece, which tells the columns: its first line need not be like that of the
    source."""
    if options.further:
        return options
    columns = options.columns
    if source_format == "movielens":
        columns = tuple(name for name in table.columns if not name.startswith("field_"))
    keys = tuple(table.columns) if source_format == "jsonl" else ()
    return replace(options, columns=columns, keys=keys, further=True)


def _moved(table: RawTable, path: Path, rows: int, lines: int, reason: str) -> RawTable:
    """A piece's table as rows of its source."""
    numbered = table.lines() + lines
    frame = table.frame.with_columns(pl.col(ROW) + rows, numbered.alias(LINE))
    return replace(table, path=path, frame=frame, told_by=reason)


def _slices(path: Path, most_bytes: int, scratch: Path) -> Iterator[tuple[Path, int]]:
    """Pieces of a Parquet file, which has no lines."""
    try:
        scan = pl.scan_parquet(path)
        width, total = len(scan.collect_schema()), int(scan.select(pl.len()).collect().item())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: damaged, or not a Parquet file ({str(error)[:120]}); write it again.") from None
    step = max(1, most_bytes // (width * BYTES_A_CELL))
    for start in range(0, max(1, total), step):
        piece = scratch / "piece.parquet"
        scan.slice(start, step).collect().write_parquet(piece)
        yield piece, 0


def _cuts(
    path: Path, source_format: str, options: ReadOptions, most_bytes: int, scratch: Path
) -> Iterator[tuple[Path, int]]:
    """Pieces of a text, each with how many lines of the text it holds besides the header."""
    has_header = source_format == "recbole" or (source_format == "csv" and not options.columns)
    quoted = source_format == "csv" and options.delimiter != "\t"
    piece = scratch / "piece.txt"
    try:
        with _opened(path) as stream:
            header = _header(stream) if has_header else b""
            if WINDOWS.encode() in header:
                stream.seek(0)
                piece.write_bytes(stream.read())
                yield piece, 0
                return
            rest, is_first = b"", True
            while (block := stream.read(most_bytes)) or rest:
                text = rest + block
                cut = len(text) if not block else _last_end(text, quoted=quoted)
                if cut == 0 and block:
                    if quoted:
                        _refuse_endless(path, text)
                    rest = text
                    continue
                if is_first or text[:cut].strip():
                    piece.write_bytes(header + text[:cut])
                    yield piece, text.count(b"\n", 0, cut)
                is_first, rest = False, text[cut:]
    except PACKING_ERRORS as error:
        raise DataError(f"{path}: truncated or damaged packed file ({error}); fetch it again.") from None


def _refuse_endless(path: Path, text: bytes) -> None:
    """Raises where a row that has no end is longer than any row."""
    if len(text) > LONGEST_ROW and (row := text.lstrip()):
        raise DataError(
            f"{path}: no row ends in the {len(text)} bytes from {row[:60].decode('latin-1')!r} on; "
            "look for a quote that is never closed, or name the delimiter with --delimiter."
        )


def _header(stream: IO[bytes] | Any) -> bytes:
    """The lines up to and with the first that is not blank."""
    lines = b""
    while line := stream.readline():
        lines += line
        if line.strip():
            break
    return lines


def _last_end(text: bytes, *, quoted: bool) -> int:
    """Behind the last line end that no open quote holds, and before blank lines, which belong to what follows; 0 where
    there is none."""
    end = text.rfind(b"\n") + 1
    is_open = quoted and text.count(b'"', 0, end) % 2
    while is_open:
        opened = text.rfind(b'"', 0, end)
        end = text.rfind(b"\n", 0, opened) + 1
        is_open = text.count(b'"', end, opened) % 2
    content = len(text[:end].rstrip(b"\r\n"))
    return text.find(b"\n", content) + 1 if content else 0


def _opened(path: Path) -> Any:
    with path.open("rb") as handle:
        magic = handle.read(4)
    if magic.startswith(GZIP_MAGIC):
        return gzip.open(path)
    return io.BufferedReader(zstandard.open(path)) if magic.startswith(ZSTD_MAGIC) else path.open("rb")
