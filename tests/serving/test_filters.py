"""Filters on item fields: what passes, what is kept of it, and what is refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fields import FieldError, Fields
from serving.filters import Condition, Filter, Filters
from serving.new_items import NewItem

ITEMS = pl.DataFrame({
    "item_id": ["a", "b", "c", "d", "e"],
    "title": ["Red shoe", "Hat", None, "Saw", "Lamp"],
    "categories": [["Tools", "Hand"], ["Tapes"], [], None, ["Tools"]],
    "price": ["1.5", "20", None, "-3", "7e1"],
    "available": ["true", "False", None, "true", "TRUE"],
    "year": [1990, None, 1992, 1993, 1994],
    "stock": [True, False, None, True, False],
    "zip": ["007", "7", "8", "9", "10"],
    "maker": [{"name": "x"}] * 5,
})
LATER = [
    NewItem(
        item_id="f", title="Cup", categories=["Tools"], fields={"price": "5", "available": "false", "year": "2000"}
    ),
    NewItem(item_id="g", fields={"price": "cheap", "stock": "true"}),
]


def passing(asked: dict[str, dict[str, Any]], later: Sequence[NewItem] = LATER) -> str:
    """Ids of the items that pass."""
    fields = Fields(ITEMS)
    fields.write(later)
    found = Filters(fields, 0).passing({name: Condition(**condition) for name, condition in asked.items()})
    assert not found.known.mask[0], "padding"
    return "".join(
        item_id for item_id, held in zip("abcdefg", [*found.known.mask[1:], *found.later], strict=False) if held
    )


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ({"categories": {"any": ["Tools"]}}, "aef"),
        ({"categories": {"any": ["Hand", "Tapes"]}}, "ab"),
        ({"categories": {"none": ["Tools"]}}, "bcdg"),
        ({"categories": {"any": ["Tools"], "none": ["Hand"]}}, "ef"),
        ({"categories": {"known": True}}, "abef"),
        ({"categories": {"known": False}}, "cdg"),
        ({"title": {"any": ["Hat", "Cup"]}}, "bf"),
        ({"title": {"any": ["hat"]}}, ""),
        ({"title": {"none": ["Hat"]}}, "acdefg"),
        ({"title": {"known": False}}, "cg"),
        ({"price": {"min": 1.5, "max": 20}}, "abf"),
        ({"price": {"max": 0}}, "d"),
        ({"price": {"min": 20}}, "be"),
        ({"price": {"any": [70, 1.5]}}, "ae"),
        ({"price": {"any": ["7e1", 20]}}, "be"),
        ({"price": {"known": True}}, "abdefg"),
        ({"available": {"any": [True]}}, "ade"),
        ({"available": {"any": [False]}}, "bf"),
        ({"available": {"none": [True]}}, "bcfg"),
        ({"stock": {"any": [True]}}, "adg"),
        ({"year": {"min": 1992, "max": 1993}}, "cd"),
        ({"year": {"min": 1994}}, "ef"),
        ({"year": {"known": False}}, "bg"),
        ({"zip": {"any": ["007"]}}, "a"),
        ({"zip": {"any": [7]}}, "ab"),
        ({"item_id": {"any": ["b", "g"]}}, "bg"),
        ({"categories": {"any": ["Tools"]}, "price": {"min": 5}}, "ef"),
    ],
)
def test_what_passes(asked, ids) -> None:
    assert passing(asked) == ids
    assert passing(asked, []) == ids.replace("f", "").replace("g", "")


@pytest.mark.parametrize(
    ("asked", "place", "message"),
    [
        ({"colour": {"any": ["red"]}}, ("colour",), "no field 'colour'; they have item_id, title, categories, price, "),
        ({"maker": {"known": True}}, ("maker",), "no field 'maker'"),
        ({"title": {"min": 1}}, ("title",), "min and max compare numbers, and title holds texts"),
        ({"categories": {"max": 1}}, ("categories",), "and categories holds lists of texts"),
        ({"title": {"any": ["x", 5]}}, ("title", "any"), "5 compares with nothing: title holds texts"),
        ({"year": {"none": ["1990"]}}, ("year", "none"), "'1990' compares with nothing: year holds numbers"),
        ({"price": {"any": [True]}}, ("price", "any"), "True compares with nothing: price holds texts, also numbers"),
        ({"stock": {"any": [1]}}, ("stock", "any"), "1 compares with nothing: stock holds true or false"),
    ],
)
def test_what_items_cannot_answer_is_refused_with_its_place(asked, place, message) -> None:
    with pytest.raises(FieldError) as error:
        passing(asked)
    assert error.value.place == place
    assert message in error.value.message


VALUES = st.sampled_from(["x", "y", "z"])
TABLES = st.lists(
    st.tuples(st.none() | VALUES, st.none() | st.lists(VALUES, max_size=3), st.none() | st.integers(-3, 3)),
    min_size=1,
    max_size=12,
)
SOME = st.none() | st.lists(VALUES, min_size=1, max_size=2)
BOUND = st.none() | st.integers(-3, 3)


def expected(values: Sequence[Any], any_: Any, none: Any, least: Any, most: Any, known: Any) -> bool:
    return (
        (any_ is None or bool(set(values) & set(any_)))
        and (none is None or not set(values) & set(none))
        and (least is None or any(value >= least for value in values))
        and (most is None or any(value <= most for value in values))
        and (known is None or bool(values) == known)
    )


@given(TABLES, SOME, SOME, SOME, SOME, BOUND, BOUND, st.none() | st.booleans())
def test_random_conditions_hold_as_python_says(table, text_any, text_none, list_any, list_none, least, most, known):
    asked: Filter = {
        "text": Condition(any=text_any, none=text_none),
        "list": Condition(any=list_any, none=list_none, known=known),
        "number": Condition(min=least, max=most),
    }
    items = pl.DataFrame(
        {"text": [row[0] for row in table], "list": [row[1] for row in table], "number": [row[2] for row in table]},
        schema={"text": pl.String, "list": pl.List(pl.String), "number": pl.Int64},
    )
    found = Filters(Fields(items), 0).passing(asked).known.mask[1:].tolist()
    assert found == [
        expected([text] if text else [], text_any, text_none, None, None, None)
        and expected(names or [], list_any, list_none, None, None, known)
        and expected([] if number is None else [number], None, None, least, most, None)
        for text, names, number in table
    ]


def test_what_passes_among_the_bundles_items_is_worked_out_once_and_the_longest_unused_goes_first() -> None:
    one = Filters(Fields(ITEMS), 10**6).passing({"title": Condition(known=True)}).known.nbytes
    filters = Filters(Fields(ITEMS), 2 * one + 20)

    def of(name: str) -> Any:
        return filters.passing({name: Condition(known=True)}).known

    title, stock = of("title"), of("stock")
    assert (of("title"), of("stock")) == (title, stock)
    assert of("title") is title
    of("year")
    assert of("title") is title
    assert of("stock") is not stock


def test_true_is_not_found_under_one() -> None:
    """They are equal in Python."""
    filters = Filters(Fields(pl.DataFrame({"flag": ["true", "true"], "number": ["1", "2"]})), 10**6)
    assert filters.passing({"flag": Condition(any=[True])}).known.rows.tolist() == [1, 2]
    with pytest.raises(FieldError, match="1 compares with nothing"):
        filters.passing({"flag": Condition(any=[1])})


def test_items_that_came_later_are_looked_at_anew_when_others_come() -> None:
    fields = Fields(ITEMS)
    filters, asked = Filters(fields, 10**6), {"title": Condition(any=["Cup"])}
    assert filters.passing(asked).later.tolist() == []
    fields.write(LATER)
    assert filters.passing(asked).later.tolist() == [True, False]
    assert filters.passing(asked) is filters.passing(asked)
    fields.write([NewItem(item_id="f", title="Mug"), LATER[1]])
    assert filters.passing(asked).later.tolist() == [False, False]


def test_fields_know_what_came_later() -> None:
    fields = Fields(ITEMS)
    fields.write(LATER)
    assert [fields.item_id(row) for row in range(1, 8)] == list("abcdefg")
    assert [fields.names("categories", row) for row in (1, 3, 4, 6, 7)] == [["Tools", "Hand"], [], [], ["Tools"], []]
    assert [fields.names("year", row) for row in (1, 2, 6)] == [["1990.0"], [], ["2000.0"]]


def test_parts_of_one_request_may_know_of_different_numbers_of_later_items() -> None:
    fields = Fields(ITEMS)
    filters = Filters(fields, 0)
    fields.write(LATER[:1])
    before = filters.passing({"title": Condition(known=True)})
    fields.write(LATER)
    after = filters.passing({"price": Condition(known=True)})
    assert (before & after).later.tolist() == [True]
    assert before.without(after).later.tolist() == [False]
    assert np.array_equal((before & after).known.rows, [1, 2, 4, 5])
