"""How many bits about a click stand where in a history, and how many bits two sortings of the same rows share.

A row is a candidate item after a history, clicked or not. For candidates of category c, X says "the event at position p
is of category b" and Y "there was a click"; their mutual information is the ground truth of what a search of histories
should attend to (DARE, Feng et al., ICLR 2025; thuml/DARE, analysis). Logarithms are to the base 2.
Deviates on purpose: a cell without rows adds nothing, where the released code puts 1e-5 rows into it.
Dimensions: N rows, P positions (position 1, the newest event, is place 0), K categories.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from recsys.sequences import IntArray, SequenceStore

NO_EVENT = -1
"""Category of positions that a short history does not have: neither a category's nor that of items without one."""
CELLS_AT_ONCE = 1 << 22
FEWEST_ROWS = 50


@dataclass(frozen=True)
class CategoryCounts:
    """Rows by category of the candidate, of the event, and position; and rows by category of the candidate alone."""

    clicked: Int[np.ndarray, "K K P"]
    other: Int[np.ndarray, "K K P"]
    clicks: Int[np.ndarray, " K"]
    others: Int[np.ndarray, " K"]

    @classmethod
    def of(
        cls,
        candidates: Int[np.ndarray, " N"],
        labels: Int[np.ndarray, " N"],
        events: Int[np.ndarray, "N P"],
        num_categories: int,
    ) -> "CategoryCounts":
        """From categories of candidates, 1 where they were clicked, and categories of events, newest first."""
        kinds = labels * num_categories + candidates
        length = events.shape[1]
        cells = np.zeros(2 * num_categories**2 * length, dtype=np.int64)
        step = max(1, CELLS_AT_ONCE // max(1, length))
        for first in range(0, len(kinds), step):
            part = events[first : first + step]
            places = (kinds[first : first + step, None] * num_categories + part) * length + np.arange(length)
            cells += np.bincount(places[part != NO_EVENT], minlength=len(cells))
        other, clicked = cells.reshape(2, num_categories, num_categories, length)
        others, clicks = np.bincount(kinds, minlength=2 * num_categories).reshape(2, num_categories)
        return cls(clicked, other, clicks, others)

    def information(self) -> Float[np.ndarray, "K K P"]:
        """Bits of each cell. Chance alone gives 1 / (2 rows ln 2) on average (Miller, 1955)."""
        return information_of_counts(self.clicked, self.other, self.clicks[:, None, None], self.others[:, None, None])

    def counted(self, fewest: int = FEWEST_ROWS) -> Bool[np.ndarray, "K K P"]:
        """Cells with at least so many rows of either label."""
        return (self.clicked >= fewest) & (self.other >= fewest)


def information_of_counts(
    clicked: np.ndarray, other: np.ndarray, clicks: np.ndarray, others: np.ndarray
) -> Float[np.ndarray, "*shape"]:
    """Bits about a click in X, which `clicked` of all `clicks` have and `other` of all `others`; any shapes."""
    table = np.stack(np.broadcast_arrays(clicked, other, clicks - clicked, others - other)).astype(np.float64)
    return bits(table.reshape(2, 2, *table.shape[1:]))


def shared_information(one: IntArray, two: IntArray) -> float:
    """Bits that two labels of the same rows tell of each other; both count from 0."""
    return float(bits(_contingency(one, two)))


def normalised_information(one: IntArray, two: IntArray) -> float:
    """The same over the mean of their entropies: 1 where one tells the other, 0 where they are independent."""
    table = _contingency(one, two)
    mean = (entropy(table.sum(axis=0)) + entropy(table.sum(axis=1))) / 2
    return float(bits(table)) / mean if mean else 0.0


def bits(table: Float[np.ndarray, "A B *cells"]) -> Float[np.ndarray, "*cells"]:
    """Mutual information of a table of counts: the sum of P(x, y) log2(P(x, y) / (P(x) P(y))); 0 without any."""
    total = table.sum(axis=(0, 1))
    expected = table.sum(axis=0, keepdims=True) * table.sum(axis=1, keepdims=True)
    ratio = np.divide(table * total, expected, out=np.ones_like(table), where=table > 0)
    return np.asarray((table * np.log2(ratio)).sum(axis=(0, 1)) / np.maximum(total, 1))


def entropy(counts: Float[np.ndarray, " A"]) -> float:
    """Bits."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _contingency(one: IntArray, two: IntArray) -> Float[np.ndarray, "A B"]:
    shape = (int(one.max()) + 1, int(two.max()) + 1)
    return np.bincount(one * shape[1] + two, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)


def newest_categories(
    store: SequenceStore, users: IntArray, positions: IntArray, category_of: IntArray, length: int
) -> Int[np.ndarray, "N P"]:
    """Categories of the `length` events before each place of its user's history, newest first."""
    back = positions[:, None] - np.arange(1, length + 1)
    places = store.offsets[users][:, None] + np.maximum(back, 0)
    return np.where(back >= 0, category_of[store.item_idx[places]], NO_EVENT)
