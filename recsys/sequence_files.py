"""Public sequence files, whose order of lines is the only time they have.

one event a line      one user a line        one JSON list a line (the user is its 1-based line number)
    7 31                  7 31 12 5              ["31", "12", "5"]
    7 12                  8 4 31                 ["4", "31"]
    8 4

Blanks or tabs part the fields. A user may come back on a later line: the events are appended in order. A file in
which every line has exactly two fields is read as one event a line; `columns` overrides that: `user_id,item_id`
(one event a line), `user_id,item_ids` (one user a line), `item_ids` (items only; the user is the line number).
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.source_files import BAD_FIELD_COUNT, PROBLEM, ROW, RawTable, ReadOptions, read_text, text_lines

EVENT_A_LINE = ("user_id", "item_id")
USER_A_LINE = ("user_id", "item_ids")
ITEMS_ONLY = ("item_ids",)
LAYOUTS = {EVENT_A_LINE: "one event a line", USER_A_LINE: "one user a line", ITEMS_ONLY: "items only, a user a line"}
BAD_LIST = "not a JSON list of items"
JSON_STRING = r'"(?:[^"\\]|\\.)*"'


def read_sequences(path: Path, options: ReadOptions) -> RawTable:
    """Events in file order: columns `user_id`, `item_id`; `ROW` is the line."""
    if options.columns and options.columns not in LAYOUTS:
        choices = "; ".join(",".join(columns) for columns in LAYOUTS)
        raise ConfigError(f"--columns {','.join(options.columns)}: sequence files have one of: {choices}.")
    lines = text_lines(read_text(path, options.encoding))
    if lines.str.starts_with("[").any():
        return _json_lists(path, lines)
    return _plain_lines(path, lines, options)


def read_lists_by_user(path: Path, lists: Mapping[str, list[Any]]) -> RawTable:
    """Events of one JSON object `{user: [item, ...]}`; `ROW` is the user's place in it.

    Of `{user: [[item, ...], ...]}` the inner lists are baskets, whose place in the list is the events' `session_id`.
    """
    has_baskets = all(isinstance(item, list) for items in lists.values() for item in items) and any(lists.values())
    rows = list[tuple[int, str, str | None, int, str | None]]()
    for row, (user, items) in enumerate(lists.items(), start=1):
        baskets = items if has_baskets else [items]
        if any(isinstance(item, list | dict) for basket in baskets for item in basket):
            rows.append((row, user, None, 0, BAD_LIST))
        elif not any(baskets):
            rows.append((row, user, None, 0, None))
        for place, basket in enumerate(baskets, start=1) if not rows or rows[-1][0] != row else ():
            rows += [(row, user, "" if item is None else str(item), place, None) for item in basket]
    schema = {ROW: pl.Int64, "user_id": pl.String, "item_id": pl.String, "session_id": pl.Int64, PROBLEM: pl.String}
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col("session_id").cast(pl.String))
    layout = "json, baskets by user" if has_baskets else "json, items by user"
    return RawTable(path=path, layout=layout, frame=frame if has_baskets else frame.drop("session_id"))


def json_texts(lines: pl.Series) -> pl.Series:
    """Each line as compact JSON; null where it is not JSON."""
    return lines.str.json_path_match("$")


def _json_lists(path: Path, lines: pl.Series) -> RawTable:
    compact = json_texts(lines)
    nested = compact.str.replace_all(JSON_STRING, "").str.slice(1).str.contains(r"[\[{]")
    good = (compact.str.starts_with("[") & ~nested).fill_null(value=False)
    if not good.any():
        raise DataError(f"{path}: no line is a JSON list of items (first: {lines[0][:60]!r}); check --format.")
    wrapped = '{"item_id":' + compact.filter(good) + "}"
    lists = pl.read_ndjson(io.BytesIO("\n".join(wrapped).encode()), schema={"item_id": pl.List(pl.String)})
    frame = _numbered(lines).with_columns(
        user_id=pl.col(ROW).cast(pl.String),
        item_id=pl.Series(lists["item_id"]).gather(_places(good)),
        problem=pl.when(~good & (lines == "")).then(pl.lit(BAD_FIELD_COUNT)).when(~good).then(pl.lit(BAD_LIST)),
    )
    return _exploded(path, frame, "sequences, one JSON list a line", users_are_lines=True)


def _places(good: pl.Series) -> pl.Series:
    """For each line the place of its list among the good ones, null for bad lines."""
    return good.to_frame("good").select(pl.when("good").then(pl.col("good").cum_sum().cast(pl.Int64) - 1)).to_series()


def _plain_lines(path: Path, lines: pl.Series, options: ReadOptions) -> RawTable:
    fields = _fields(lines, options.delimiter)
    widths = fields.list.len()
    columns = options.columns or (EVENT_A_LINE if widths.filter(widths > 0).eq(2).all() else USER_A_LINE)
    if columns == EVENT_A_LINE:
        return _events(path, lines, fields)
    has_user = columns == USER_A_LINE
    bad = widths < (2 if has_user else 1)
    frame = _numbered(lines).with_columns(
        user_id=fields.list.get(0, null_on_oob=True) if has_user else pl.col(ROW).cast(pl.String),
        item_id=fields.list.slice(1) if has_user else fields,
        problem=pl.when(bad).then(pl.lit(BAD_FIELD_COUNT)),
    )
    return _exploded(path, frame, f"sequences, {LAYOUTS[columns]}", users_are_lines=not has_user)


def _events(path: Path, lines: pl.Series, fields: pl.Series) -> RawTable:
    bad = fields.list.len() != 2
    frame = _numbered(lines).with_columns(
        user_id=fields.list.get(0, null_on_oob=True),
        item_id=fields.list.get(1, null_on_oob=True),
        problem=pl.when(bad).then(pl.lit(BAD_FIELD_COUNT)),
    )
    return _exploded(path, frame, "sequences, one event a line", users_are_lines=False)


def _fields(lines: pl.Series, delimiter: str | None) -> pl.Series:
    """Fields of each line [list]; without a delimiter, runs of blanks and tabs part them."""
    parted = lines.str.replace_all("\t", " ", literal=True) if delimiter is None else lines
    return parted.str.split(delimiter or " ").list.filter(pl.element() != "")


def _numbered(lines: pl.Series) -> pl.DataFrame:
    return lines.to_frame("line").with_row_index(ROW, offset=1).with_columns(pl.col(ROW).cast(pl.Int64))


def _exploded(path: Path, frame: pl.DataFrame, layout: str, *, users_are_lines: bool) -> RawTable:
    """One row an event; `line` is kept only where a line could not be read."""
    rows = frame.rename({"problem": PROBLEM})
    rows = rows.drop("line") if rows[PROBLEM].null_count() == len(rows) else rows
    if "line" in rows.columns:
        rows = rows.with_columns(line=pl.when(pl.col(PROBLEM).is_not_null()).then("line"))
    if rows["item_id"].dtype == pl.List:
        rows = rows.explode("item_id", empty_as_null=True, keep_nulls=True)
    return RawTable(path=path, layout=layout, frame=rows, lines_before=0, users_are_lines=users_are_lines)
