"""Category of each item, as a number: what a ranker's category table is indexed by."""

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.sequences import IntArray

ATTRIBUTE = "categories"


def item_categories(items: pl.DataFrame, column: str) -> IntArray:
    """[V], numbered from 1 by name; padding and items without a category share 0.

    Of a column of lists the first entry counts. Items without `categories` have none, an empty `column` asks for none,
    and any other column must be there.
    """
    if column not in items.columns:
        if column not in {"", ATTRIBUTE}:
            raise DataError(
                f"items: no column {column!r} for model.category; there are {', '.join(items.columns)}. Choose one of "
                "them, or '' for none."
            )
        return np.zeros(len(items) + 1, dtype=np.int64)
    values = items[column]
    names = values.list.first() if isinstance(values.dtype, pl.List) else values.cast(pl.String)
    ranks = names.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    return np.concatenate([[0], ranks])
