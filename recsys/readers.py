"""Source files of every supported format -> `RawTable`: all rows, all columns, as they were written.

Text formats come out as text columns, so a column of mixed types cannot break reading; Parquet keeps its types.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.roles import looks_like_log
from recsys.sequence_files import json_texts, read_lists_by_user, read_sequences
from recsys.source_files import (
    BAD_FIELD_COUNT,
    LINE,
    PROBLEM,
    ROW,
    RawTable,
    ReadOptions,
    first_line,
    plain_suffix,
    read_bytes,
    read_text,
    text_lines,
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
BAD_JSON = "not a JSON object"
WINDOWS = "item_id_list"
LINES_SEARCHED_FOR_KEYS = 10_000


def read_table(path: Path, source_format: SourceFormat, options: ReadOptions) -> RawTable:
    """All rows of one source file."""
    if source_format == "auto":
        source_format = detect_format(path, options.encoding)
    return READERS[source_format](path, options)


def detect_format(path: Path, encoding: str = "utf-8") -> SourceFormat:
    """By suffix; for other names by the first line: JSON, `::`, delimiters, or blanks (sequences)."""
    if known := FORMAT_OF_SUFFIX.get(plain_suffix(path)):
        return known
    line = first_line(path).strip()
    if plain_suffix(path) == ".json" and _spans_lines(line) and _is_keyed(_whole_object(path, encoding)):
        return "json"
    if line[:1] in {"{", "["}:
        return "jsonl" if line.startswith("{") else "sequences"
    if MOVIELENS_DELIMITER in line:
        return "movielens"
    if any(delimiter in line for delimiter in DELIMITERS) or looks_like_log(line.split()):
        return "csv"
    if " " in line:
        return "sequences"
    raise DataError(
        f"{path}: cannot tell its format from the first line {line[:60]!r}; "
        f"name it with --format ({', '.join(get_args(SourceFormat)[1:])})."
    )


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
        _check_width(path, options.columns, fields, delimiter)
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
    _check_width(path, names, fields, delimiter)
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


def read_jsonl(path: Path, options: ReadOptions) -> RawTable:
    """One JSON object a line; columns are the keys of the first 10,000 lines, nested values stay JSON text."""
    lines = text_lines(read_text(path, options.encoding))
    good = json_texts(lines).str.starts_with("{").fill_null(value=False)
    if not good.any():
        raise DataError(f"{path}: no line is a JSON object (first: {lines[0][:60]!r}); check --format.")
    objects = _joined(lines.filter(good))
    searched = _joined(lines.filter(good).head(LINES_SEARCHED_FOR_KEYS))
    try:
        keys = pl.read_ndjson(searched, infer_schema_length=None).columns
        values = pl.read_ndjson(objects, schema=dict.fromkeys(keys, pl.String))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read as JSON lines ({_first(error)}); check --format.") from None
    parts = [values.with_columns(pl.Series(ROW, good.arg_true() + 1), pl.lit(None, pl.String).alias(PROBLEM))]
    if not good.all():
        bad = pl.DataFrame({"line": lines.filter(~good), ROW: (~good).arg_true() + 1})
        parts.append(bad.with_columns(pl.lit(BAD_JSON).alias(PROBLEM)))
    frame = pl.concat(parts, how="diagonal").sort(ROW).with_columns(pl.col(ROW).cast(pl.Int64))
    return RawTable(path=path, layout="jsonl", frame=frame, lines_before=0)


def read_json(path: Path, options: ReadOptions) -> RawTable:
    """One JSON object for the whole file: lists of items by user, or attributes by item (the key is `item_id`)."""
    content = _whole_object(path, options.encoding)
    if not content:
        raise DataError(f"{path}: is not one JSON object with entries; for an object a line use --format jsonl.")
    if all(isinstance(value, list) for value in content.values()):
        return read_lists_by_user(path, content)
    wrong = [key for key, value in content.items() if not isinstance(value, dict)]
    if wrong:
        raise DataError(
            f"{path}: entry {wrong[0]!r} is neither a list of items nor an object of attributes as others are; all "
            "entries must be of one kind."
        )
    if clash := [key for key, value in content.items() if value.get("item_id", key) != key]:
        raise DataError(
            f"{path}: entry {clash[0]!r} names another item_id, {content[clash[0]]['item_id']!r}; the key is the "
            "item's id here, so rename or drop that attribute."
        )
    lines = [json.dumps({**value, "item_id": key}) for key, value in content.items()]
    keys = {"item_id": None} | {name: None for value in content.values() for name in value}
    try:
        values = pl.read_ndjson("\n".join(lines).encode(), schema=dict.fromkeys(keys, pl.String))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read as attributes by item ({_first(error)}); is it strict JSON?") from None
    return RawTable(path=path, layout="json, attributes by item", frame=with_rows(values))


def _spans_lines(line: str) -> bool:
    """Whether a first line may be the beginning of one large object, or the whole of one: not a row of JSON lines."""
    try:
        return _is_keyed(json.loads(line))
    except ValueError:
        return line.startswith("{")


def _is_keyed(content: dict[str, Any] | None) -> bool:
    """Whether an object has an entry a user or item, and is not itself a row."""
    return (
        content is not None and len(content) > 0 and all(isinstance(value, list | dict) for value in content.values())
    )


def _whole_object(path: Path, encoding: str) -> dict[str, Any] | None:
    """The file as one JSON object, None where it is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            doubled = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: names {doubled!r} twice in one object; one of the two would be lost.")
        return entries

    try:
        content = json.loads(read_text(path, encoding), object_pairs_hook=once)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


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
    except ValueError as error:
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
    return next(csv.reader([header], delimiter=delimiter), [])


def _header_names(path: Path, fields: list[str]) -> list[str]:
    names = [field.strip() or f"column_{place}" for place, field in enumerate(fields, start=1)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: its header names {twice!r} twice; rename one of them.")
    return names


def _check_width(path: Path, columns: tuple[str, ...], fields: list[str], delimiter: str) -> None:
    if len(columns) != len(fields):
        raise ConfigError(
            f"--columns names {len(columns)} columns, but the first line of {path} has {len(fields)} fields "
            f"between {delimiter!r}; name every field, or set --delimiter."
        )


def _joined(lines: pl.Series) -> bytes:
    return "\n".join(lines).encode()


def _first(error: Exception) -> str:
    return re.split(r"\n|;", str(error), maxsplit=1)[0][:120]
