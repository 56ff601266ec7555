"""Source files of every supported format -> `RawTable`: all rows, all columns, as they were written.

Text formats come out as text columns, so a column of mixed types cannot break reading; Parquet keeps its types.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import Literal, NamedTuple, get_args
from urllib.parse import unquote

import numpy as np
import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.json_files import is_json_of_lines, is_list_of_objects, read_json, read_jsonl
from recsys.roles import looks_like_log
from recsys.sequence_files import read_sequences
from recsys.source_files import (
    BAD_FIELD_COUNT,
    LINE,
    ROW,
    RawTable,
    ReadOptions,
    first_line,
    plain_suffix,
    read_bytes,
    read_text,
    with_rows,
)

SourceFormat = Literal["auto", "recbole", "csv", "jsonl", "json", "parquet", "movielens", "sequences", "npy"]

FORMAT_OF_SUFFIX: Mapping[str, SourceFormat] = {
    ".inter": "recbole",
    ".item": "recbole",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".npy": "npy",
}
MOVIELENS_DELIMITER = "::"
DELIMITERS = ("\t", ",", ";", "|", MOVIELENS_DELIMITER)
MOVIELENS_COLUMNS = {
    3: ("item_id", "title", "genres"),
    4: ("user_id", "item_id", "value", "timestamp"),
}
END_OF_ROW = "\x1e"
UNIT_SEPARATOR = "\x1f"
WINDOWS = "item_id_list"


class Recognised(NamedTuple):
    """The format of a file, and what told it."""

    format: SourceFormat
    reason: str


def read_table(path: Path, source_format: SourceFormat, options: ReadOptions) -> RawTable:
    """All rows of one source file; `key=value` folders above it (hive partitions) become columns that it lacks."""
    found = recognise(path, options.encoding) if source_format == "auto" else Recognised(source_format, "")
    return replace(with_partition_columns(READERS[found.format](path, options), path), told_by=found.reason)


def with_partition_columns(table: RawTable, path: Path) -> RawTable:
    """Rows of the source `path` with the keys of its folders that they lack."""
    keys = {name: value for name, value in partition_keys(path).items() if name not in table.columns}
    return replace(table, frame=table.frame.with_columns(pl.lit(value).alias(name) for name, value in keys.items()))


def partition_keys(path: Path) -> dict[str, str]:
    """Names and values of the `key=value` folders that `path` lies in."""
    matches = [re.fullmatch(r"([A-Za-z_]\w*)=(.*)", folder) for folder in path.parts[:-1]]
    return {match[1]: unquote(match[2]) for match in matches if match}


def recognise(path: Path, encoding: str = "utf-8") -> Recognised:
    """By suffix; for other names by the first line: JSON, `::`, delimiters, or blanks (sequences)."""
    suffix = plain_suffix(path)
    if known := FORMAT_OF_SUFFIX.get(suffix):
        return Recognised(known, f"the name ends in {suffix}")
    line = first_line(path).strip()
    if line[:1] in {"{", "["}:
        return _recognised_json(path, line, encoding)
    if MOVIELENS_DELIMITER in line:
        return Recognised("movielens", "'::' parts the first line")
    if delimiter := next((delimiter for delimiter in DELIMITERS if delimiter in line), None):
        return Recognised("csv", f"{delimiter!r} parts the first line")
    if looks_like_log(line.split()):
        return Recognised("csv", "the first line names a user and an item column")
    if " " in line:
        return Recognised("sequences", "blanks part the first line")
    raise DataError(
        f"{path}: cannot tell its format from the first line {line[:60]!r}; "
        f"name it with --format ({', '.join(get_args(SourceFormat)[1:])})."
    )


def _recognised_json(path: Path, line: str, encoding: str) -> Recognised:
    if line.startswith("[") and not is_list_of_objects(line):
        return Recognised("sequences", "the first line is a list")
    if is_json_of_lines(path, line, encoding, keyed=plain_suffix(path) == ".json"):
        return Recognised("jsonl", "the first line is an object")
    return Recognised("json", "an object or list goes over the whole file")


def read_csv(path: Path, options: ReadOptions) -> RawTable:
    """Delimited text with a header, or without one when `options.columns` names the fields.

    Quotes are honoured except where tabs delimit: tab-separated logs hold bare quotes.
    """
    text = read_text(path, options.encoding)
    header, _, body = text.lstrip(b"\n").partition(b"\n")
    lines_before = len(text) - len(text.lstrip(b"\n")) + 1
    delimiter = options.delimiter or sniff_delimiter(header.decode())
    fields = _header_fields(header.decode(), delimiter)
    if options.columns:
        _check_width(path, options, fields, delimiter)
        names, body, lines_before = list(options.columns), text, 0
    else:
        names = _header_names(path, fields)
    table = _delimited_table(path, body, names, delimiter, quoted=delimiter != "\t", layout="csv")
    return _with_lines(table, lines_before, body)


def sniff_delimiter(line: str) -> str:
    """The delimiter that splits `line` into most fields; a blank only where no other occurs."""
    best = max(DELIMITERS, key=line.count)
    if line.count(best):
        return best
    return " " if " " in line.strip() else ","


def read_movielens(path: Path, options: ReadOptions) -> RawTable:
    """`::` files without header: ratings (4 fields) or movies (3); UTF-8, else latin-1 as in the older releases."""
    text = read_text(path, options.encoding, fallback="latin-1" if options.encoding == "utf-8" else None)
    delimiter = options.delimiter or MOVIELENS_DELIMITER
    fields = text.lstrip(b"\n").partition(b"\n")[0].decode().split(delimiter)
    names = options.columns or MOVIELENS_COLUMNS.get(len(fields))
    if names is None:
        raise ConfigError(
            f"{path}: the first line has {len(fields)} fields between {delimiter!r}; ratings have 4. "
            "Name the fields with --columns."
        )
    _check_width(path, replace(options, columns=tuple(names)), fields, delimiter)
    table = _delimited_table(path, text, list(names), delimiter, quoted=False, layout="movielens")
    return replace(table, lines_before=0)


def read_recbole(path: Path, options: ReadOptions) -> RawTable:
    """RecBole atomic file: tab separated under `name:type`; `*_seq` columns come out as lists.

    A file of histories with their next item (`item_id_list`) is a log where it has one row a user, and no other way.
    """
    text = read_text(path, options.encoding)
    header, _, body = text.lstrip(b"\n").partition(b"\n")
    fields = [field.rpartition(":") for field in header.decode().split("\t")]
    if not all(name and kind in {"token", "token_seq", "float", "float_seq"} for name, _, kind in fields):
        raise DataError(
            f"{path}: not a RecBole atomic file: its first line is {header.decode()[:60]!r}, "
            "expected tab separated name:type fields; for plain tables use --format csv."
        )
    names = _header_names(path, [name for name, _, _ in fields])
    table = _delimited_table(path, body, names, "\t", quoted=False, layout="recbole")
    lists = [name for name, _, kind in fields if kind.endswith("_seq")]
    split = pl.col(lists).str.split(" ").list.filter(pl.element() != "")
    frame = table.frame.with_columns(split)
    lines_before = len(text) - len(text.lstrip(b"\n")) + 1
    rows = _whole_histories(path, frame) if WINDOWS in names else frame
    return RawTable(path=path, layout="recbole", frame=rows, lines_before=lines_before)


def _whole_histories(path: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """One row an event, of rows that are a user's history and the item after it."""
    if not {"user_id", "item_id", WINDOWS} <= set(rows.columns) or rows["user_id"].is_duplicated().any():
        raise DataError(
            f"{path}: holds windows cut beforehand ({WINDOWS}), several of a user; ingest the log they were cut from, "
            "or write each user's items on one line and use --format sequences."
        )
    whole = rows.with_columns(pl.concat_list(WINDOWS, "item_id").alias("item_id")).drop(WINDOWS)
    return whole.explode("item_id", empty_as_null=True, keep_nulls=True)


def read_parquet(path: Path, options: ReadOptions) -> RawTable:  # noqa: ARG001 - one signature for all readers
    """A Parquet file with its own types."""
    try:
        frame = pl.read_parquet(io.BytesIO(read_bytes(path)))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: damaged, or not a Parquet file ({_first(error)}); write it again.") from None
    return RawTable(path=path, layout="parquet", frame=with_rows(frame))


def read_npy(path: Path, options: ReadOptions) -> RawTable:
    """A numeric matrix [rows, columns] without pickle; unnamed columns are `column_1`, `column_2`, ..."""
    try:
        matrix = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError, TokenError) as error:
        raise DataError(
            f"{path}: not a plain numeric .npy matrix ({_first(error)}); "
            "pickled arrays are never loaded, since they can run code: save it as numbers or Parquet."
        ) from None
    if matrix.ndim != 2 or matrix.dtype.kind not in "iuf":
        raise DataError(f"{path}: an array of {matrix.dtype}{list(matrix.shape)}; a numeric matrix is needed.")
    if options.columns and len(options.columns) != matrix.shape[1]:
        raise ConfigError(f"--columns names {len(options.columns)} columns, but {path} has {matrix.shape[1]}.")
    names = options.columns or tuple(f"column_{place}" for place in range(1, matrix.shape[1] + 1))
    return RawTable(path=path, layout="npy", frame=with_rows(pl.DataFrame(matrix, schema=list(names))))


READERS: Mapping[str, Callable[[Path, ReadOptions], RawTable]] = {
    "recbole": read_recbole,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "movielens": read_movielens,
    "sequences": read_sequences,
    "npy": read_npy,
}


def _delimited_table(
    path: Path, body: bytes, names: list[str], delimiter: str, *, quoted: bool, layout: str
) -> RawTable:
    """Text rows under `names`; a row of another width is kept with its problem and its surplus fields."""
    quoted = quoted and b'"' in body
    width = len(names) + 1
    while True:
        frame = _split_rows(path, body, [*names, *_surplus(names, width)], delimiter, quoted=quoted)
        if frame[frame.columns[-1]].is_in(["", END_OF_ROW]).all():
            break
        width *= 2
    end = frame.columns[len(names)]
    rows = with_rows(frame, pl.when(pl.col(end) != END_OF_ROW).then(pl.lit(BAD_FIELD_COUNT)))
    if (frame[end] == END_OF_ROW).all():
        rows = rows.drop(_surplus(names, width))
    else:
        texts = pl.col(frame.columns)
        rows = rows.with_columns(pl.when((texts != END_OF_ROW) & (texts != "")).then(texts))
    described = f"{layout}, delimiter {delimiter!r}"
    return RawTable(path=path, layout=described, frame=rows)


def _with_lines(table: RawTable, lines_before: int, body: bytes) -> RawTable:
    """Says which line each row begins in: rows with line breaks inside quoted fields span several."""
    if b'"' not in body:
        return replace(table, lines_before=lines_before)
    breaks = table.frame.select(
        pl.sum_horizontal(pl.col(table.columns).str.count_matches("\n", literal=True).fill_null(0)).cast(pl.Int64)
    ).to_series()
    lines = table.frame[ROW] + lines_before + breaks.cum_sum() - breaks
    return replace(table, frame=table.frame.with_columns(lines.alias(LINE)))


def _surplus(names: list[str], width: int) -> list[str]:
    return [f"field_{place}" for place in range(len(names) + 1, width + 1)]


def _split_rows(path: Path, body: bytes, columns: list[str], delimiter: str, *, quoted: bool) -> pl.DataFrame:
    """Every row gets `END_OF_ROW` as one more field: where it comes to stand tells how many fields the row has."""
    rows = body.rstrip(b"\n")
    if len(delimiter.encode()) > 1:
        rows, delimiter = rows.replace(delimiter.encode(), UNIT_SEPARATOR.encode()), UNIT_SEPARATOR
    mark = delimiter + END_OF_ROW
    marked = rows.replace(b"\n", f"{mark}\n".encode()) + mark.encode() if rows else b""
    try:
        frame = pl.read_csv(
            marked,
            has_header=False,
            schema=dict.fromkeys(columns, pl.String),
            separator=delimiter,
            quote_char='"' if quoted else None,
            empty_string_is_null=False,
            missing_columns="insert",
            extra_columns="ignore",
            raise_if_empty=False,
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{path}: cannot be split into fields between {delimiter!r} ({_first(error)}); "
            "look for a quote that is never closed, or name the delimiter with --delimiter."
        ) from None
    if quoted:  # the mark also went into line breaks inside quoted fields
        return frame.with_columns(pl.all().str.replace_all(f"{mark}\n", "\n", literal=True))
    return frame


def _header_fields(header: str, delimiter: str) -> list[str]:
    if len(delimiter) > 1:
        return header.split(delimiter)
    try:
        return next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:  # a bare carriage return, or a field of more than 128 KiB
        return header.split(delimiter)


def _header_names(path: Path, fields: list[str]) -> list[str]:
    names = [field.strip() or f"column_{place}" for place, field in enumerate(fields, start=1)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: its header names {twice!r} twice; rename one of them.")
    return names


def _check_width(path: Path, options: ReadOptions, fields: list[str], delimiter: str) -> None:
    if len(options.columns) != len(fields) and not options.further:
        raise ConfigError(
            f"--columns names {len(options.columns)} columns, but the first line of {path} has {len(fields)} fields "
            f"between {delimiter!r}; name every field, or set --delimiter."
        )


def _first(error: Exception) -> str:
    return re.split(r"\n|;", str(error), maxsplit=1)[0][:120]
