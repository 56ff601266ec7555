"""What a filter asks of items, and which rows pass it: worked out once, kept for the next request.

    {"categories": {"any": ["Tools", "Tapes"], "none": ["Toys"]}, "price": {"max": 20}, "available": {"any": [true]}}

An item passes where every condition holds. Of a field that an item has no value in, only `none` and `known: false`
can hold.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np

from recsys.allowed import Allowed, Mask
from recsys.index import RowArray
from serving.fields import Field, FieldError, Fields, Value


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Of one field; what is None asks nothing.

    `any`: one of the item's values is among these; `none`: none of them is. `min`, `max`: bounds, both included.
    `known`: whether the item has a value at all.
    """

    any: Sequence[Value] | None = None
    none: Sequence[Value] | None = None
    min: float | None = None
    max: float | None = None
    known: bool | None = None


Filter = Mapping[str, Condition]


@dataclass(frozen=True)
class Passing:
    """Which rows pass: of the bundle, and of the N items that came later."""

    known: Allowed
    later: Mask

    @classmethod
    def all(cls, num_rows: int, num_later: int) -> "Passing":
        """Every item."""
        return cls(Allowed(np.arange(num_rows) > 0), np.ones(num_later, dtype=np.bool_))

    def __and__(self, other: "Passing") -> "Passing":
        """What passes both."""
        both = min(len(self.later), len(other.later))  # an item may have come in between
        return Passing(self.known & other.known, self.later[:both] & other.later[:both])

    def without(self, other: "Passing") -> "Passing":
        """What passes this one and not the other."""
        both = min(len(self.later), len(other.later))
        return Passing(self.known.without(other.known), self.later[:both] & ~other.later[:both])

    @property
    def any(self) -> bool:
        """Whether anything passes."""
        return self.known.count > 0 or bool(self.later.any())

    def holds(self, rows: RowArray) -> Mask:
        """[len(rows)], whether each of these rows passes."""
        return np.concatenate([self.known.mask, self.later])[rows]


class Filters:
    """Filters over a bundle's items and those that came later; safe to share between threads.

    What passes is kept; beyond `max_bytes` the longest unused goes first. The bundle's items never change; where others
    came, only these are looked at anew.
    """

    def __init__(self, fields: Fields, max_bytes: int) -> None:
        self.fields = fields
        self._max_bytes, self._bytes = max_bytes, 0
        self._kept: OrderedDict[str, tuple[Passing, Mapping[str, Field]]] = OrderedDict()
        self._lock = Lock()

    def passing(self, asked: Filter) -> Passing:
        """Which rows pass; a `FieldError` where a field does not exist, or holds other values."""
        for name, condition in asked.items():
            _check(condition, name, self.fields)
        key, later = repr(sorted(asked.items())), self.fields.later
        kept = self._find(key)
        if kept is None:
            passing = Passing(Allowed(np.concatenate([[False], _mask(asked, self.fields.known)])), _mask(asked, later))
        elif kept[1] is later:
            return kept[0]
        else:
            passing = replace(kept[0], later=_mask(asked, later))
        self._keep(key, passing, later)
        return passing

    def clear(self) -> None:
        """Keeps nothing of what was asked so far."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _find(self, key: str) -> tuple[Passing, Mapping[str, Field]] | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: str, passing: Passing, later: Mapping[str, Field]) -> None:
        if passing.known.nbytes > self._max_bytes:
            return
        with self._lock:
            self._bytes += passing.known.nbytes - (self._kept.pop(key)[0].known.nbytes if key in self._kept else 0)
            self._kept[key] = passing, later
            while self._bytes > self._max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1][0].known.nbytes


def _check(condition: Condition, name: str, fields: Fields) -> None:
    try:
        field = fields.check(name)
    except FieldError as error:
        raise error.within(name) from None
    for part in ("any", "none"):
        for value in getattr(condition, part) or ():
            if field.like(value) is None:
                raise FieldError((name, part), f"{value!r} compares with nothing: {name} holds {field.kinds}")
    if field.number is None and (condition.min is not None or condition.max is not None):
        raise FieldError((name,), f"min and max compare numbers, and {name} holds {field.kinds}")


def _mask(asked: Filter, fields: Mapping[str, Field]) -> Mask:
    """[N], which rows of the fields hold every condition; there is at least one."""
    return np.logical_and.reduce([_held(condition, fields[name]) for name, condition in asked.items()])


def _held(condition: Condition, field: Field) -> Mask:
    held = np.ones(len(field), dtype=np.bool_)
    if condition.any is not None:
        held &= field.among(condition.any)
    if condition.none is not None:
        held &= ~field.among(condition.none)
    if condition.min is not None or condition.max is not None:
        held &= field.between(condition.min, condition.max)
    if condition.known is not None:
        held &= field.present == condition.known
    return held
