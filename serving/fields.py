"""The items' fields as columns that can be compared: texts, lists of texts, numbers, yes or no."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.allowed import Mask
from serving.new_items import NewItem

Value = str | bool | int | float
YES_NO = {"true": True, "false": False}
TEXTS = pl.List(pl.String)


class FieldError(Exception):
    """What was asked of a field that this bundle's items cannot answer; `place` is where in the request."""

    def __init__(self, place: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.place, self.message = place, message

    def within(self, *place: str | int) -> "FieldError":
        """The same error of a part of a larger request."""
        return FieldError((*place, *self.place), self.message)


@dataclass(frozen=True)
class Field:
    """One field of N items in each form that its values can be compared in, None where they cannot; null: no value.

    Item tables keep most fields as texts: where all of them are written numbers, they are numbers too, and likewise
    where all are `true` or `false`.
    """

    text: pl.Series | None = None
    texts: pl.Series | None = None
    number: pl.Series | None = None
    flag: pl.Series | None = None

    @classmethod
    def of(cls, values: pl.Series) -> "Field":
        """As many forms as all its values have."""
        if isinstance(values.dtype, pl.List):
            return cls(texts=values.cast(TEXTS))
        if values.dtype == pl.Boolean:
            return cls(flag=values)
        if values.dtype.is_numeric():
            return cls(number=_finite(values))
        texts = values.cast(pl.String)
        numbers, flags = _finite(texts), _flags(texts)
        known = texts.count()
        return cls(
            text=texts,
            number=numbers if known and numbers.count() == known else None,
            flag=flags if known and flags.count() == known else None,
        )

    def written(self, values: pl.Series) -> "Field":
        """Other items' values in the forms that this field has, null where they have not; texts, or lists of them."""
        if self.texts is not None:
            return Field(texts=values)
        return Field(
            text=None if self.text is None else values,
            number=None if self.number is None else _finite(values),
            flag=None if self.flag is None else _flags(values),
        )

    def like(self, value: Value) -> pl.Series | None:
        """The form that a value compares with."""
        if isinstance(value, bool):
            return self.flag
        if isinstance(value, str):
            return self.texts if self.text is None else self.text
        return self.number

    def among(self, values: Sequence[Value]) -> Mask:
        """[N], whether one of the item's values is one of these; each compares with something here."""
        held = np.zeros(len(self), dtype=np.bool_)
        for kind in (bool, str, float):
            asked = [value for value in values if _kind(value) is kind]
            if asked and (column := self.like(asked[0])) is not None:
                held |= _among(column, asked)
        return held

    def between(self, least: float | None, most: float | None) -> Mask:
        """[N], whether the number lies within these bounds."""
        assert self.number is not None
        numbers = self.number.to_numpy()  # NaN without a value, which is within no bounds
        return (numbers >= (-np.inf if least is None else least)) & (numbers <= (np.inf if most is None else most))

    @property
    def present(self) -> Mask:
        """[N], whether the item has a value."""
        if self.texts is not None:
            return (self.texts.list.len() > 0).fill_null(value=False).to_numpy()
        return self._values.is_not_null().to_numpy()

    @property
    def kinds(self) -> str:
        """For people."""
        forms = {"texts": self.text, "lists of texts": self.texts, "numbers": self.number, "true or false": self.flag}
        return ", also ".join(name for name, column in forms.items() if column is not None)

    def names(self, place: int) -> list[str]:
        """An item's values as texts, counted from 0."""
        value = self._values[place]
        if value is None:
            return []
        return [str(value)] if self.texts is None else value.drop_nulls().to_list()

    @property
    def _values(self) -> pl.Series:
        return next(form for form in (self.text, self.texts, self.number, self.flag) if form is not None)

    def __len__(self) -> int:
        return len(self._values)


class Fields:
    """What may be asked of a bundle's items, and of those that came later; by name."""

    def __init__(self, items: pl.DataFrame) -> None:
        self.known: Mapping[str, Field] = {
            name: Field.of(items[name]) for name in items.columns if not _is_nested(items[name])
        }
        self._num_known = len(items)
        self.write([])

    def write(self, items: Sequence[NewItem]) -> None:
        """All items that came later, in the order of their rows."""
        self.later: Mapping[str, Field] = {
            name: field.written(_said(items, name, field)) for name, field in self.known.items()
        }

    def check(self, name: str) -> Field:
        """The bundle's field; a `FieldError` that names those there are, where there is no such one."""
        if name not in self.known:
            raise FieldError((), f"items have no field {name!r}; they have {', '.join(self.known)}")
        return self.known[name]

    def names(self, name: str, row: int) -> list[str]:
        """An item's values of a field, as texts."""
        place = row - 1 - self._num_known
        return self.known[name].names(row - 1) if place < 0 else self.later[name].names(place)

    def item_id(self, row: int) -> str:
        """The raw id."""
        return self.names("item_id", row)[0]


def _said(items: Sequence[NewItem], name: str, field: Field) -> pl.Series:
    said = [item.item_id if name == "item_id" else item.attributes.get(name) for item in items]
    lists = [[values] if isinstance(values, str) else list(values or ()) for values in said]
    if field.texts is not None:
        return pl.Series(lists, dtype=TEXTS)
    return pl.Series([next(iter(values), None) for values in lists], dtype=pl.String)


def _is_nested(values: pl.Series) -> bool:
    """Structures, and lists of them; lists of plain values are not."""
    dtype = values.dtype
    return dtype.inner.is_nested() if isinstance(dtype, pl.List) else dtype.is_nested()


def _finite(values: pl.Series) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _flags(texts: pl.Series) -> pl.Series:
    return texts.str.to_lowercase().replace_strict(YES_NO, default=None, return_dtype=pl.Boolean)


def _kind(value: Value) -> type:
    return type(value) if isinstance(value, bool | str) else float


def _among(column: pl.Series, values: Sequence[Value]) -> Mask:
    if isinstance(column.dtype, pl.List):
        hits = pl.col("values").list.eval(pl.element().is_in(list(values))).list.any()
        return column.to_frame("values").select(hits).to_series().fill_null(value=False).to_numpy()
    return column.is_in(pl.Series(values, dtype=column.dtype).implode()).fill_null(value=False).to_numpy()
