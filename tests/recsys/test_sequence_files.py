"""The three public forms of sequence files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import ConfigError, DataError
from recsys.sequence_files import read_sequences
from recsys.source_files import RawTable, ReadOptions

IDS = st.text(st.characters(codec="utf-8"), min_size=1)


def read(tmp_path: Path, text: str, columns: tuple[str, ...] = (), delimiter: str | None = None) -> RawTable:
    """`text` as a file, read."""
    path = tmp_path / "log.txt"
    path.write_text(text, encoding="utf-8")
    return read_sequences(path, ReadOptions(columns=columns, delimiter=delimiter))


def events(table: RawTable) -> list[tuple[str, str, int]]:
    """Rows that could be read."""
    return table.frame.filter(table.frame["#problem"].is_null()).select("user_id", "item_id", "#row").rows()


def problems(table: RawTable) -> list[tuple[int, str, str]]:
    """Rows that could not."""
    return table.frame.drop_nulls("#problem").select("#row", "#problem", "line").rows()


def test_two_fields_on_every_line_are_one_event_a_line(tmp_path: Path) -> None:
    table = read(tmp_path, "7 31\n8\t4\n\n7  12\n")
    assert table.layout == "sequences, one event a line"
    assert events(table) == [("7", "31", 1), ("8", "4", 2), ("7", "12", 4)]
    assert problems(table) == [(3, "wrong number of fields", "")]


def test_one_longer_line_makes_it_one_user_a_line(tmp_path: Path) -> None:
    table = read(tmp_path, "7 31 12\n8 4\n9\n7 5\n")
    assert table.layout == "sequences, one user a line"
    assert events(table) == [("7", "31", 1), ("7", "12", 1), ("8", "4", 2), ("7", "5", 4)]
    assert problems(table) == [(3, "wrong number of fields", "9")]


def test_columns_override_the_layout(tmp_path: Path) -> None:
    assert events(read(tmp_path, "7 31\n8 4\n", ("user_id", "item_ids"))) == [("7", "31", 1), ("8", "4", 2)]
    assert problems(read(tmp_path, "7 31\n8 4 5\n", ("user_id", "item_id"))) == [(2, "wrong number of fields", "8 4 5")]
    items_only = read(tmp_path, "7 31\n8\n", ("item_ids",))
    assert items_only.users_are_lines
    assert events(items_only) == [("1", "7", 1), ("1", "31", 1), ("2", "8", 2)]
    with pytest.raises(ConfigError, match="--columns a,b: sequence files have one of: user_id,item_id; "):
        read(tmp_path, "7 31\n", ("a", "b"))


def test_a_delimiter_keeps_blanks_in_ids(tmp_path: Path) -> None:
    assert events(read(tmp_path, "a b,c d,e\n", delimiter=",")) == [("a b", "c d", 1), ("a b", "e", 1)]


def test_json_lists_are_users_by_line(tmp_path: Path) -> None:
    table = read(tmp_path, '["31", 12, "x [y]"]\n[["nested"]]\n["cut"\n{"a": 1}\n\n["4"]\n[]\n')
    assert table.users_are_lines
    assert events(table) == [("1", "31", 1), ("1", "12", 1), ("1", "x [y]", 1), ("6", "4", 6), ("7", None, 7)]
    assert problems(table) == [
        (2, "not a JSON list of items", '[["nested"]]'),
        (3, "not a JSON list of items", '["cut"'),
        (4, "not a JSON list of items", '{"a": 1}'),
        (5, "wrong number of fields", ""),
    ]


@given(st.lists(st.lists(IDS, min_size=1), min_size=1))
def test_json_ids_go_round_trip(tmp_path_factory: pytest.TempPathFactory, users: list[list[str]]) -> None:
    table = read(tmp_path_factory.mktemp("log"), "\n".join(json.dumps(items) for items in users))
    assert table.frame["item_id"].to_list() == [item for items in users for item in items]


def test_no_list_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no line is a JSON list of items \(first: '\[oops'\)"):
        read(tmp_path, "[oops\n")
