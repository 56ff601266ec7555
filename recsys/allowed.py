"""Which item rows an answer may hold, in the forms that searching asks for."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Allowed:
    """`mask` [V]: True for each item row that may be returned; padding is not. Never changes, so it can be kept."""

    mask: Mask

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def count(self) -> int:
        """How many rows."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8]:
        """Bit r - 1, counted from the lowest of the first byte, is row r: item rows as an index numbers them."""
        return np.packbits(self.mask[1:], bitorder="little")

    def __and__(self, other: "Allowed") -> "Allowed":
        """What both allow."""
        return Allowed(self.mask & other.mask)

    def without(self, other: "Allowed") -> "Allowed":
        """What this one allows, and the other does not."""
        return Allowed(self.mask & ~other.mask)

    @property
    def nbytes(self) -> int:
        """Memory at most: mask, bits, and rows."""
        return len(self.mask) + len(self.mask) // 8 + 8 * self.count
