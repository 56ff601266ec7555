"""JSON in every form that logs come in.

one object a line                  {"user": "a", "item": "x"}        also as Python literals: {'user': 'a', ...}
objects one after the other        {...}{...}, over several lines each, or in one list [{...}, {...}]
lists of items by user             {"a": ["x", "y"], "b": ["x"]}     also of baskets [["x", "y"], ["z"]], also below
attributes by item                 {"x": {"title": "..."}}           names of parts: {"train": {"a": [...]}}
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import DataError
from recsys.sequence_files import json_texts, read_lists_by_user
from recsys.source_files import LINE, PROBLEM, ROW, RawTable, ReadOptions, read_text, text_lines, with_rows

NO_ROWS = "is not one JSON object with entries, nor a row of objects"
BAD_JSON = "not a JSON object"
LINES_SEARCHED_FOR_KEYS = 10_000
BYTES_SEARCHED_FOR_KEYS = 4 << 20
"""Of the source's first lines: less than its first piece holds, however little memory there is."""
LONGEST_LITERAL = 1_000_000
BLANK_OR_COMMA = re.compile(r"[\s,]*")


def read_jsonl(path: Path, options: ReadOptions) -> RawTable:
    """One JSON object a line; columns are the keys of the first 10,000 lines (of the first 4 MiB), nested values stay
    JSON text."""
    lines, layout = text_lines(read_text(path, options.encoding)), "jsonl"
    sizes = lines.head(LINES_SEARCHED_FOR_KEYS).str.len_bytes().cum_sum()
    head = max(1, int((sizes <= BYTES_SEARCHED_FOR_KEYS).sum()))
    compact = json_texts(lines)
    literal = (lines.str.starts_with("{") & compact.is_null()).fill_null(value=False)
    if literal.any():
        texts = pl.Series([_literal_as_json(line) for line in lines.filter(literal)], dtype=pl.String)
        if texts.null_count() < len(texts):
            lines, layout = lines.scatter(literal.arg_true(), texts.fill_null(lines.filter(literal))), "jsonl, literals"
            compact = json_texts(lines)
    good = compact.str.starts_with("{").fill_null(value=False)
    if not good.head(head).any() and not options.further:
        raise DataError(f"{path}: no line is a JSON object (first: {lines[0][:60]!r}); check --format.")
    keys = options.keys or _keys(path, lines.head(head).filter(good.head(head)), "JSON lines")
    values = _values(path, lines.filter(good), keys, "JSON lines") if good.any() else pl.DataFrame()
    parts = [values.with_columns(pl.Series(ROW, good.arg_true() + 1), pl.lit(None, pl.String).alias(PROBLEM))]
    if not good.all():
        bad = pl.DataFrame({"line": lines.filter(~good), ROW: (~good).arg_true() + 1})
        parts.append(bad.with_columns(pl.lit(BAD_JSON).alias(PROBLEM)))
    frame = pl.concat(parts, how="diagonal").sort(ROW).with_columns(pl.col(ROW).cast(pl.Int64))
    return RawTable(path=path, layout=layout, frame=frame, lines_before=0)


def read_json(path: Path, options: ReadOptions) -> RawTable:
    """One JSON object for the whole file: lists of items by user, or attributes by item (the key is `item_id`); or
    rows, which are objects one after the other."""
    text = read_text(path, options.encoding).decode()
    content = whole_object(path, text)
    if content is None or not (_is_keyed(content) or _is_mixed(content)):
        return _rows(path, text)
    if not content:
        raise DataError(f"{path}: {NO_ROWS}; for an object a line use --format jsonl.")
    if all(isinstance(value, list) for value in content.values()):
        return read_lists_by_user(path, content)
    wrong = [key for key, value in content.items() if not isinstance(value, dict)]
    if wrong:
        raise DataError(
            f"{path}: entry {wrong[0]!r} is neither a list of items nor an object of attributes as others are; all "
            "entries must be of one kind."
        )
    if all(value and all(isinstance(items, list) for items in value.values()) for value in content.values()):
        return _parts(path, content)
    return _attributes(path, content)


def is_json_of_lines(path: Path, line: str, encoding: str, keyed: bool) -> bool:
    """Whether a file that begins with `line` (a brace or bracket) holds an object a line; `keyed`: its name allows one
    object of entries by user or item, so that has to be looked for."""
    row = _parsed(line)
    if isinstance(row, dict):
        return not (keyed and _is_keyed(row) and whole_object(path, read_text(path, encoding).decode()) is not None)
    if row is None and _literal_as_json(line) is not None:
        return True
    try:
        return not _rows_or_object(path, read_text(path, encoding).decode())
    except DataError:
        return True


def is_list_of_objects(line: str) -> bool:
    """Whether a first line begins a list of objects, and no list of items."""
    return re.match(r"\[\s*(\{|$)", line) is not None


def whole_object(path: Path, text: str) -> dict[str, Any] | None:
    """The text as one JSON object, None where it is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            doubled = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: names {doubled!r} twice in one object; one of the two would be lost.")
        return entries

    try:
        content = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _rows_or_object(path: Path, text: str) -> bool:
    content = whole_object(path, text)
    return content is not None or len(_objects(path, text)[0]) > 0


def _rows(path: Path, text: str) -> RawTable:
    """A row an object, in the order of the file."""
    objects, places = _objects(path, text)
    if not objects:
        raise DataError(f"{path}: {NO_ROWS}; for an object a line use --format jsonl.")
    rows = pl.Series(objects)
    values = _values(path, rows, _keys(path, rows.head(LINES_SEARCHED_FOR_KEYS), "JSON"), "JSON")
    ends = pl.Series(places)
    breaks = pl.Series([match.start() for match in re.finditer("\n", text)], dtype=pl.Int64)
    lines = pl.Series(breaks.search_sorted(ends, side="left")).cast(pl.Int64) + 1
    frame = with_rows(values).with_columns(lines.alias(LINE))
    return RawTable(path=path, layout="json, objects in a row", frame=frame)


def _objects(path: Path, text: str) -> tuple[list[str], list[int]]:
    """All objects of a text, as compact JSON, and where each begins; blanks and commas part them, a list may hold
    them."""
    decoder, place, end = json.JSONDecoder(), 0, len(text.rstrip())
    stripped = text.lstrip()
    if stripped.startswith("["):
        place = text.index("[") + 1
        end -= text.rstrip().endswith("]")
    objects, places = list[str](), list[int]()
    while (place := BLANK_OR_COMMA.match(text, place, end).end()) < end:  # type: ignore[union-attr]
        try:
            value, stop = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, place) + 1
            raise DataError(
                f"{path}: object {len(objects) + 1}, which begins in line {line}, cannot be read ({str(error)[:80]}); "
                "mend or cut it, or write an object a line (--format jsonl), of which bad ones are set aside."
            ) from None
        if not isinstance(value, dict):
            raise DataError(
                f"{path}: {NO_ROWS} (entry {len(objects) + 1} is none); for an object a line use --format jsonl."
            )
        objects.append(_compact(value))
        places.append(place)
        place = stop
    return objects, places


def _parts(path: Path, content: Mapping[str, Mapping[str, list[Any]]]) -> RawTable:
    """Users of all parts, one part after the other; `part/user` where parts name users alike, who then are others."""
    ids = [user for part in content.values() for user in part]
    alike = len(set(ids)) < len(ids)
    lists = {
        f"{part}/{user}" if alike else user: items for part, users in content.items() for user, items in users.items()
    }
    table = read_lists_by_user(path, lists)
    named = " and behind" if alike else ""
    return replace(table, layout=f"{table.layout}, below{named} {', '.join(content)}")


def _attributes(path: Path, content: Mapping[str, Mapping[str, Any]]) -> RawTable:
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


def _keys(path: Path, objects: pl.Series, form: str) -> tuple[str, ...]:
    """All keys of JSON objects."""
    try:
        return tuple(pl.read_ndjson(_joined(objects), infer_schema_length=None).columns)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read as {form} ({_first(error)}); check --format.") from None


def _values(path: Path, objects: pl.Series, keys: tuple[str, ...], form: str) -> pl.DataFrame:
    """Columns of text of JSON objects, one a row."""
    try:
        return pl.read_ndjson(_joined(objects), schema=dict.fromkeys(keys, pl.String))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read as {form} ({_first(error)}); check --format.") from None


def _literal_as_json(line: str) -> str | None:
    """A Python literal of a dict as JSON; None where it is none."""
    if len(line) > LONGEST_LITERAL:
        return None
    try:
        value = ast.literal_eval(line)
        return _compact(value) if isinstance(value, dict) else None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_keyed(content: Mapping[str, Any]) -> bool:
    """Whether an object has an entry a user or item, and is not itself a row."""
    return len(content) > 0 and all(isinstance(value, list | dict) for value in content.values())


def _is_mixed(content: Mapping[str, Any]) -> bool:
    """Whether an object is empty, or has entries of several kinds, the first of which is a list or an object."""
    return not content or isinstance(next(iter(content.values())), list | dict)


def _joined(lines: pl.Series) -> bytes:
    return "\n".join(lines).encode()


def _first(error: Exception) -> str:
    return re.split(r"\n|;", str(error), maxsplit=1)[0][:120]
