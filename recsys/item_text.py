"""What an item's text is: all text columns of the item table, in their order."""

import re

import polars as pl

WORD = re.compile(r"\w+")


def item_texts(items: pl.DataFrame) -> list[str]:
    """All text of each item in one string, "" where there is none."""
    columns = [
        pl.col(name).list.join(" ") if dtype == pl.List(pl.String) else pl.col(name)
        for name, dtype in items.schema.items()
        if name not in {"item_id", "image"} and dtype in {pl.String, pl.List(pl.String)}
    ]
    if not columns:
        return [""] * len(items)
    text = pl.concat_str(columns, separator=" ", ignore_nulls=True).fill_null("").str.strip_chars()
    return items.select(text).to_series().to_list()


def has_text(items: pl.DataFrame) -> bool:
    """Whether any item is described by at least one word."""
    return any(map(WORD.search, item_texts(items)))
