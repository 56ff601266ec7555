"""Item attributes: one row an item, `title` as text, `categories` as a list, everything else as text."""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import ConfigError, DataError
from recsys.roles import item_roles
from recsys.schema import Items
from recsys.sequence_files import JSON_STRING, json_texts
from recsys.source_files import PROBLEM, RawTable, as_integers

NO_CATEGORY = "(no genres listed)"
CATEGORY_DELIMITER = "|"
EXAMPLES = 10


def sibling_item_table(sources: Sequence[Path]) -> Path | None:
    """The RecBole `.item` file (may be gzip) beside a `.inter` source of the same stem."""
    found = []
    for source in sources:
        name = source.name.removesuffix(".gz")
        if name.endswith(".inter"):
            beside = [source.with_name(name.removesuffix(".inter") + suffix) for suffix in (".item", ".item.gz")]
            found += [path for path in beside if path.is_file()][:1]
    if len(found) > 1:
        raise ConfigError(f"{found[0]} and {found[1]}: two item tables beside the sources; choose one with --items.")
    return found[0] if found else None


def read_items(table: RawTable, mapping: Mapping[str, str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """One row an item (the first where an id comes twice), and how many rows were left out for which reason."""
    roles = item_roles(table.columns, mapping, str(table.path))
    readable = table.frame.filter(pl.col(PROBLEM).is_null())
    others = [column for column in table.columns if column not in roles.values() and not column.startswith("field_")]
    names = {**roles, **{_free_name(column, roles): column for column in others}}
    columns = {
        name: as_categories(readable[column]) if name == "categories" else as_text(readable[column])
        for name, column in names.items()
    }
    items = pl.DataFrame(columns)
    with_id = items.filter(pl.col("item_id").str.strip_chars() != "")
    unique = with_id.unique("item_id", keep="first", maintain_order=True)
    if unique.is_empty():
        raise DataError(f"{table.path}: the item table has no row with an item id; check --items-map item_id=COLUMN.")
    return unique, {
        "rows": len(table.frame),
        "unreadable": len(table.frame) - len(readable),
        "missing_id": len(readable) - len(with_id),
        "repeated_id": len(with_id) - len(unique),
    }


def all_items(seen: pl.DataFrame, table: pl.DataFrame | None) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Every item of the events (`seen`: column `item_id`) or of the table, by item_id, and how the two match.

    An item has attributes where at least one is there.
    """
    if table is None:
        return Items.validate(seen.sort("item_id")), {}
    items = table.join(seen, on="item_id", how="full", coalesce=True).sort("item_id")
    Items.validate(items.select("item_id"))
    has_any = pl.any_horizontal(pl.exclude("item_id").is_not_null()) if table.width > 1 else pl.lit(value=False)
    described = items.filter(has_any).select("item_id")
    without = seen.join(described, on="item_id", how="anti").sort("item_id")["item_id"]
    unseen = described.join(seen, on="item_id", how="anti")["item_id"]
    return items, {
        "items_with_attributes": len(seen) - len(without),
        "items_without_attributes": len(without),
        "attributes_without_events": len(unseen),
        "examples_without_attributes": without.head(EXAMPLES).to_list(),
        "examples_without_events": unseen.head(EXAMPLES).to_list(),
    }


def described_items(known: pl.DataFrame, table: pl.DataFrame | None) -> pl.DataFrame:
    """What is known of items, with the rows of a later table in place of the earlier ones."""
    if table is None:
        return known
    earlier = known.join(table, on="item_id", how="anti")
    lists = {name for frame in (known, table) for name, kind in frame.schema.items() if isinstance(kind, pl.List)}
    return pl.concat([_with_lists(frame, lists) for frame in (table, earlier)], how="diagonal")


def _with_lists(table: pl.DataFrame, names: set[str]) -> pl.DataFrame:
    columns = [name for name in table.columns if name in names and not isinstance(table.schema[name], pl.List)]
    return table.with_columns(as_categories(table[name]) for name in columns)


def as_text(values: pl.Series) -> pl.Series:
    """Text; a token sequence is joined by blanks, a JSON list of texts by commas, bytes in base64; blank is null."""
    if values.dtype == pl.Binary:
        return values.bin.encode("base64")
    if _is_flat_list(values):
        return _blank_is_null(values.cast(pl.List(pl.String)).list.join(" "))
    if values.dtype.is_nested():
        return _as_json(values)
    if values.dtype.is_float():
        values = as_integers(values.fill_nan(None))
    if values.dtype != pl.String:
        return values.cast(pl.String)
    values = _literals_as_json(values)
    is_list = _is_json_list(values)
    if is_list.any():
        values = values.zip_with(~is_list, _json_strings(values.set(~is_list, None)).list.join(", "))
    return _blank_is_null(values)


def as_categories(values: pl.Series) -> pl.Series:
    """Distinct category names in order [list of text], from lists, JSON lists (nested ones flattened) or `a|b` text."""
    if _is_flat_list(values):
        names = values.cast(pl.List(pl.String))
    else:
        texts = (
            _as_json(values) if values.dtype.is_nested() else _literals_as_json(_blank_is_null(values.cast(pl.String)))
        )
        is_list = _is_json_list(texts)
        names = texts.str.split(CATEGORY_DELIMITER)
        if is_list.any():
            names = names.zip_with(~is_list, _json_strings(texts.set(~is_list, None)))
    stripped = names.list.eval(pl.element().str.strip_chars())
    kept = stripped.list.filter(~pl.element().is_in(["", NO_CATEGORY]))
    return kept.list.unique(maintain_order=True)


def _is_flat_list(values: pl.Series) -> bool:
    return isinstance(values.dtype, pl.List) and not values.dtype.inner.is_nested()


def _as_json(values: pl.Series) -> pl.Series:
    """Nested values of any type as JSON text; null stays null."""
    wrapped = values.to_frame("value").select(pl.struct("value").struct.json_encode()).to_series()
    texts = wrapped.str.strip_prefix('{"value":').str.strip_suffix("}")
    return texts.set(values.is_null(), None)


def _is_json_list(texts: pl.Series) -> pl.Series:
    """Which texts are JSON lists of texts or of lists of texts; numbers and objects stay as they are written."""
    if not texts.str.starts_with("[").any():
        return pl.repeat(False, len(texts), eager=True)
    compact = json_texts(texts)
    outside = compact.str.replace_all(JSON_STRING, "")
    return outside.str.contains(r"^[\[\],]+$").fill_null(value=False)


def _literals_as_json(texts: pl.Series) -> pl.Series:
    """Python literals of lists of texts as JSON; everything else as it is."""
    odd = (texts.str.starts_with("[") & texts.str.contains("'", literal=True)).fill_null(value=False)
    odd &= json_texts(texts).is_null()
    if not odd.any():
        return texts
    return texts.scatter(odd.arg_true(), pl.Series([_as_json_text(text) for text in texts.filter(odd)]))


def _as_json_text(text: str) -> str:
    try:
        return json.dumps(ast.literal_eval(text.strip()), ensure_ascii=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _json_strings(texts: pl.Series) -> pl.Series:
    """All strings of a JSON text at any depth, in order [list of text]."""
    quoted = texts.str.extract_all(JSON_STRING).list.join(",")
    return ("[" + quoted + "]").str.json_decode(pl.List(pl.String))


def _blank_is_null(values: pl.Series) -> pl.Series:
    return values.set((values.str.strip_chars() == "").fill_null(value=False), None)


def _free_name(column: str, roles: Mapping[str, str]) -> str:
    """A column whose own name is taken by a role keeps its content under `name_2`."""
    return f"{column}_2" if column in roles else column
