"""Every format as written by others, and every way such a file can be broken."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import ConfigError, DataError, RecsysError
from recsys.readers import SourceFormat, read_table, recognise
from recsys.source_files import PROBLEM, ROW, RawTable, ReadOptions, expand_sources

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x1e"), min_size=1)


def read(path: Path, content: str | bytes, source_format: SourceFormat = "auto", **options: object) -> RawTable:
    """`content` written to `path`, read."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, source_format, ReadOptions(**options))  # type: ignore[arg-type]


def cells(table: RawTable) -> list[tuple[object, ...]]:
    """The source's own columns of rows that could be read."""
    return table.frame.filter(table.frame["#problem"].is_null()).select(table.columns).rows()


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    """`array` as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def parquet(frame: pl.DataFrame) -> bytes:
    """`frame` as the bytes of a .parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.inter.gz", gzip.compress(b"user_id:token\titem_id:token\n", mtime=0), "recbole"),
        ("a.CSV", b"user,item\n", "csv"),
        ("a.npy", b"", "npy"),
        ("a.parquet", b"", "parquet"),
        ("a.json.gz", gzip.compress(b'\n {"user": 1}\n', mtime=0), "jsonl"),
        ("a.json", b'{"user": 1, "items": [2]}\n{"user": 2, "items": [3]}', "jsonl"),
        ("a.json", b'{"7": [1, 2],\n "8": []}', "json"),
        ("a.json.gz", gzip.compress(b'{"7": {"title": "a"}}', mtime=0), "json"),
        ("a.jsonl", b'["1", "2"]\n', "sequences"),
        ("ratings.dat", b"1::2::3::4\n", "movielens"),
        ("u.data", b"196\t242\t3\t881250949\n", "csv"),
        ("a.txt", b"user item\n1 2\n", "csv"),
        ("a.txt", b"\xef\xbb\xbf1 2 3\n", "sequences"),
    ],
)
def test_formats_are_told_apart(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert recognise(tmp_path / name).format == found


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "::", " "])
def test_csv_delimiters_are_sniffed(tmp_path: Path, delimiter: str) -> None:
    text = "user,item,note\nu1,i1,a\nu2,i2,b\n".replace(",", delimiter)
    table = read(tmp_path / "log.csv", text)
    assert table.columns == ["user", "item", "note"]
    assert cells(table) == [("u1", "i1", "a"), ("u2", "i2", "b")]


def test_csv_rows_of_another_width_keep_all_their_fields(tmp_path: Path) -> None:
    table = read(tmp_path / "log.csv", 'user,item\nu1,i1\r\nu2\n\n"u,3",i3,x,y,z\r\nu4,"line\r\nbreak"\r\nu5,\n\n')
    assert cells(table) == [("u1", "i1", *[None] * 4), ("u4", "line\nbreak", *[None] * 4), ("u5", *[None] * 5)]
    bad = table.frame.drop_nulls("#problem")
    assert bad["#row"].to_list() == [2, 3, 4]
    assert bad["#problem"].unique().to_list() == ["wrong number of fields"]
    assert bad.row(2)[:5] == ("u,3", "i3", "x", "y", "z")


def test_tabs_switch_quotes_off(tmp_path: Path) -> None:
    assert cells(read(tmp_path / "log.tsv", 'user\titem\n"u1\ti"1\n')) == [('"u1', 'i"1')]


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1))
def test_csv_cells_go_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]) -> None:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    pl.DataFrame(rows, schema=["user", "item", "note"], orient="row").write_csv(path, quote_style="always")
    assert cells(read_table(path, "csv", ReadOptions())) == rows


def test_columns_name_the_fields_of_a_file_without_header(tmp_path: Path) -> None:
    table = read(tmp_path / "u.data", "196\t242\t3\n186\t302\t4\n", columns=("user_id", "item_id", "value"))
    assert table.frame.select("user_id", "item_id", "value", "#row").rows() == [
        ("196", "242", "3", 1),
        ("186", "302", "4", 2),
    ]


def test_other_encodings_and_byte_order_marks(tmp_path: Path) -> None:
    assert cells(read(tmp_path / "a.csv", "user,item\né,1\n".encode("latin-1"), encoding="latin-1")) == [("é", "1")]
    assert cells(read(tmp_path / "b.csv", "user,item\né,1\n".encode("utf-16"), encoding="utf-16")) == [("é", "1")]
    assert read(tmp_path / "c.csv", "\ufeffuser,item\né,1\n").columns == ["user", "item"]


def test_movielens_files_are_utf8_or_else_latin1(tmp_path: Path) -> None:
    assert cells(read(tmp_path / "ratings.dat", "1::1193::5::978300760\n")) == [("1", "1193", "5", "978300760")]
    for encoding in ("utf-8", "latin-1"):
        table = read(tmp_path / "movies.dat", '7::"Les Misérables" (1995)::Drama|Musical\n'.encode(encoding))
        assert table.columns == ["item_id", "title", "genres"]
        assert cells(table) == [("7", '"Les Misérables" (1995)', "Drama|Musical")]


def test_recbole_sequences_become_lists(tmp_path: Path) -> None:
    table = read(tmp_path / "a.item", 'item_id:token\ttitle:token_seq\tyear:float\n1\tToy  "Story\t1995\n2\t\t1996\n')
    assert cells(table) == [("1", ["Toy", '"Story'], "1995"), ("2", [], "1996")]


def test_json_columns_of_mixed_types_become_text(tmp_path: Path) -> None:
    lines = [
        '{"user": 1, "item": "a"}',
        "oops",
        '{"user": "x\\u00e9", "late": [1]}',
        "",
        '{"user": 12345678901234567890}',
        "[1]",
    ]
    table = read(tmp_path / "log.jsonl", "\n".join(lines), "jsonl")
    assert cells(table) == [
        ("1", "a", None, None),
        ("xé", None, "[1]", None),
        ("12345678901234567890", None, None, None),
    ]
    bad = table.frame.drop_nulls("#problem").select("#row", "#problem", "line").rows()
    assert bad == [(2, "not a JSON object", "oops"), (4, "not a JSON object", ""), (6, "not a JSON object", "[1]")]
    assert table.frame["#row"].to_list() == [1, 2, 3, 4, 5, 6]


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_json_texts_go_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_text("\n".join(json.dumps({"user": text}, ensure_ascii=False) for text in texts), encoding="utf-8")
    assert read_table(path, "jsonl", ReadOptions()).frame["user"].to_list() == texts


def test_parquet_keeps_types_and_folders_stand_for_their_files(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 2], "item": ["a", None]})
    for part in ("b", "a"):
        (tmp_path / part).mkdir()
        frame.write_parquet(tmp_path / part / "part.parquet")
    files = expand_sources([tmp_path])
    assert files == [tmp_path / "a" / "part.parquet", tmp_path / "b" / "part.parquet"]
    assert read_table(files[0], "auto", ReadOptions()).frame.drop("#row", "#problem").equals(frame)
    assert cells(read(tmp_path / "c.parquet.gz", gzip.compress(parquet(frame)))) == [(1, "a"), (2, None)]


def test_npy_columns_are_named_or_numbered(tmp_path: Path) -> None:
    matrix = npy(np.array([[1, 2], [3, 4], [5, 6]]))
    assert read(tmp_path / "a.npy", matrix).columns == ["column_1", "column_2"]
    assert cells(read(tmp_path / "a.npy.gz", gzip.compress(matrix, mtime=0), columns=("user", "item"))) == [
        (1, 2),
        (3, 4),
        (5, 6),
    ]


TRUNCATED = gzip.compress(b"user,item\n" * 1000, mtime=0)[:-20]


@pytest.mark.parametrize(
    ("name", "content", "options", "error", "message"),
    [
        ("a.csv", b"", {}, DataError, "a.csv: the file is empty; there is nothing to ingest"),
        ("a.txt", b"", {}, DataError, r"a\.txt: the file is empty or begins with blank lines only"),
        ("a.csv", b" \n\n", {}, DataError, "a.csv: the file holds only blank lines"),
        ("a.csv", b"user,item\n\xff,1\n", {}, DataError, r"not utf-8: byte 0xff at offset 10 .*--encoding latin-1"),
        ("a.csv", b"u,i\n", {"encoding": "klingon"}, ConfigError, "encoding='klingon' is not known"),
        ("a.csv.gz", TRUNCATED, {}, DataError, "a.csv.gz: truncated or damaged packed file"),
        ("a.csv.gz", b"user,item\n", {}, DataError, "a.csv.gz: named .gz, but not packed so"),
        ("a.txt.gz", TRUNCATED[:15], {}, DataError, "a.txt.gz: truncated or damaged packed file"),
        ("a.csv", b"user,item,user\n", {}, DataError, "its header names 'user' twice"),
        ("a.csv", b'user,item\nu1,"open\nu2,i2\n', {}, DataError, "a quote that is never closed"),
        (
            "a.csv",
            b"1,2,3\n",
            {"columns": ("u", "i")},
            ConfigError,
            "--columns names 2 columns, but .* has 3 fields between ','",
        ),
        ("a.dat", b"1::2\n", {}, ConfigError, "the first line has 2 fields between '::'; ratings have 4"),
        ("a.txt", b"one\n", {}, DataError, r"cannot tell its format from the first line 'one'; name it with --format"),
        (
            "a.inter",
            b"user_id,item_id\n",
            {},
            DataError,
            "not a RecBole atomic file: its first line is 'user_id,item_id'",
        ),
        (
            "a.inter",
            b"user_id:token\titem_id_list:token_seq\titem_id:token\n1\t5 6\t7\n1\t5\t6\n",
            {},
            DataError,
            r"holds windows cut beforehand \(item_id_list\), several of a user",
        ),
        ("a.jsonl", b"{oops\n", {}, DataError, "no line is a JSON object"),
        ("a.parquet", b"PAR1 not really", {}, DataError, "a.parquet: damaged, or not a Parquet file"),
        ("a.npy", b"nonsense", {}, DataError, "a.npy: not a plain numeric .npy matrix"),
        ("a.npy", npy(np.arange(3)), {}, DataError, r"an array of int64\[3\]; a numeric matrix is needed"),
        ("a.npy", npy(np.ones((2, 3))), {"columns": ("u",)}, ConfigError, "--columns names 1 columns, but .* has 3"),
    ],
)
def test_broken_files_are_named_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, options: dict[str, object], error: type[RecsysError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        read(tmp_path / name, content, **options)
    assert "\n" not in str(caught.value)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    pickled = npy(np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled arrays are never loaded"):
        read(tmp_path / "a.npy", pickled)


def test_missing_doubled_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        expand_sources([tmp_path / "nowhere.csv"])
    with pytest.raises(DataError, match=r"a folder without log files \(\.csv, "):
        expand_sources([tmp_path])
    (tmp_path / "a.csv").touch()
    with pytest.raises(ConfigError, match=r"a\.csv: given more than once"):
        expand_sources([tmp_path / "a.csv"] * 2)


def test_an_object_of_lists_is_a_sequence_a_user(tmp_path: Path) -> None:
    table = read(tmp_path / "log.json", '{"7": [31, "12", null], "8": [[1]], "9": [5]}', "json")
    rows = table.frame.select("user_id", "item_id", ROW, PROBLEM).rows()
    assert rows == [
        ("7", "31", 1, None),
        ("7", "12", 1, None),
        ("7", "", 1, None),
        ("8", None, 2, "not a JSON list of items"),
        ("9", "5", 3, None),
    ]


def test_an_object_of_objects_is_an_item_table(tmp_path: Path) -> None:
    content = '{"3": {"title": "saw", "categories": ["a", "b"]}, "4": {"title": null, "brand": "x"}}'
    frame = read(tmp_path / "items.json", content, "json").frame
    assert frame.select("item_id", "title", "categories", "brand").rows() == [
        ("3", "saw", '["a", "b"]', None),
        ("4", None, None, "x"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[1, 2]",
            "is not one JSON object with entries, nor a row of objects .*; for an object a line",
        ),
        ("{}", "is not one JSON object with entries"),
        ('{"7": [1], "7": [2]}', "names '7' twice in one object; one of the two would be lost"),
        (
            '{"3": {"item_id": "B00X", "title": "saw"}}',
            "entry '3' names another item_id, 'B00X'; the key is the item's id",
        ),
        ('{"3": {"price": NaN}}', "cannot be read as attributes by item .*is it strict JSON"),
        ('{"a": [1], "b": {}}', "entry 'a' is neither a list of items nor an object of attributes as others are"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "log.json", content, "json")


def test_one_window_a_user_is_the_whole_history(tmp_path: Path) -> None:
    content = "user_id:token\titem_id_list:token_seq\titem_id:token\n1\t5 6\t7\n2\t\t9\n"
    table = read(tmp_path / "log.inter", content)
    assert table.frame.select("user_id", "item_id", ROW).rows() == [
        ("1", "5", 1),
        ("1", "6", 1),
        ("1", "7", 1),
        ("2", "9", 2),
    ]


def test_json_lines_in_another_encoding_are_told_from_one_object(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_bytes('{"user": "é", "item": "1"}\n{"user": "b", "item": "2"}'.encode("latin-1"))
    assert recognise(path, "latin-1").format == "jsonl"
    assert read_table(path, "auto", ReadOptions(encoding="latin-1")).frame["user"].to_list() == ["é", "b"]


def test_zstd_is_unpacked_and_damage_is_named(tmp_path: Path) -> None:
    packed = zstandard.compress(b"user,item\na,x\n")
    assert cells(read(tmp_path / "a.csv.zst", packed)) == [("a", "x")]
    assert recognise(tmp_path / "a.csv.zst").format == "csv"
    assert cells(read(tmp_path / "a.txt", zstandard.compress(b"a x y\n"))) == [("a", "x"), ("a", "y")]
    for name in ("b.csv.zst", "b.txt.zst"):
        with pytest.raises(DataError, match=f"{name}: truncated or damaged packed file"):
            read(tmp_path / name, packed[:-6])
    with pytest.raises(DataError, match=r"c\.csv\.zst: named \.zst, but not packed so"):
        read(tmp_path / "c.csv.zst", b"user,item\n")


OBJECTS = [{"user": "é}", "item": "x", "n": [1, {"a": 2}]}, {"item": "y\n", "user": "b"}]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("".join(map(json.dumps, OBJECTS)), [1, 1]),
        ("\n".join(json.dumps(entry, indent=2) for entry in OBJECTS), [1, 11]),
        (json.dumps(OBJECTS), [1, 1]),
        (json.dumps(OBJECTS, indent=1), [2, 12]),
        ("[\n" + ",\n".join(map(json.dumps, OBJECTS)) + "\n]\n", [2, 3]),
    ],
)
@pytest.mark.parametrize("name", ["log", "log.json"])
def test_objects_come_in_a_row_in_any_layout(tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    table = read(tmp_path / name, text)
    assert table.frame.select("user", "item", ROW).rows() == [("é}", "x", 1), ("b", "y\n", 2)]
    assert table.frame["n"].to_list() == ['[1, {"a": 2}]', None]
    assert table.lines().to_list() == lines
    assert (table.layout, table.told_by) == ("json, objects in a row", "an object or list goes over the whole file")


def test_a_broken_object_among_others_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"object 2, which begins in line 4, cannot be read .*mend or cut it"):
        read(tmp_path / "log.json", '{\n"user": 1}\n\n{"user": 2,, "item": 3}', "json")


def test_python_literals_are_read_line_by_line(tmp_path: Path) -> None:
    text = (
        "{'reviewerID': \"O'Hara\", 'asin': '0001', 'helpful': [0, 1], 'vote': None}\n"
        "{'reviewerID': open('x')}\n"
        '{"reviewerID": "b", "asin": "2"}\n'
    )
    table = read(tmp_path / "reviews.json", text)
    assert table.frame.select("reviewerID", "asin", "helpful", PROBLEM).rows() == [
        ("O'Hara", "0001", "[0, 1]", None),
        (None, None, None, "not a JSON object"),
        ("b", "2", None, None),
    ]
    assert table.layout == "jsonl, literals"


def test_baskets_and_parts_of_one_object(tmp_path: Path) -> None:
    baskets = {"train": {"u": [[5, 6], [5]], "v": [[7]]}, "test": {"w": [[], [8]], "x": [[]]}}
    table = read(tmp_path / "baskets.json", json.dumps(baskets))
    assert table.frame.select("user_id", "item_id", "session_id", ROW).rows() == [
        ("u", "5", "1", 1),
        ("u", "6", "1", 1),
        ("u", "5", "2", 1),
        ("v", "7", "1", 2),
        ("w", "8", "2", 3),
        ("x", None, "0", 4),
    ]
    assert table.layout == "json, baskets by user, below train, test"
    flat = read(tmp_path / "parts.json", '{"a": {"u": [1]}, "b": {"v": [2, 3]}}')
    assert flat.frame.select("user_id", "item_id").rows() == [("u", "1"), ("v", "2"), ("v", "3")]
    twice = read(tmp_path / "twice.json", '{"a": {"u": [1]}, "b": {"u": [2]}}')
    assert twice.frame.select("user_id", "item_id").rows() == [("a/u", "1"), ("b/u", "2")]
    assert twice.layout == "json, items by user, below and behind a, b"


def test_folders_patterns_and_partitions(tmp_path: Path) -> None:
    for day in ("2026-03-02", "2026-03-01"):
        folder = tmp_path / "logs" / f"date={day}" / "shop=a%20b"
        folder.mkdir(parents=True)
        (folder / "hour_00.csv").write_text(f"user,item,shop\n{day[-1]},x,own\n")
        (folder / "_SUCCESS.csv").touch()
        (folder / "notes.md").touch()
    found = expand_sources([tmp_path / "logs"])
    assert found == expand_sources([tmp_path / "logs" / "**" / "hour*.csv"])
    assert [path.parts[-3] for path in found] == ["date=2026-03-01", "date=2026-03-02"]
    table = read_table(found[0], "auto", ReadOptions())
    assert table.frame.select("user", "item", "shop", "date").rows() == [("1", "x", "own", "2026-03-01")]
    with pytest.raises(DataError, match="no file matches it as a pattern"):
        expand_sources([tmp_path / "*.csv"])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.tsv", b"user\titem\n", "the name ends in .tsv"),
        ("a", b"user;item\n", "';' parts the first line"),
        ("a", b"1::2::3::4\n", "'::' parts the first line"),
        ("a", b"user item\n", "the first line names a user and an item column"),
        ("a", b"1 2\n", "blanks part the first line"),
        ("a", b'{"user": 1}\n', "the first line is an object"),
        ("a", b'["1"]\n', "the first line is a list"),
    ],
)
def test_what_told_the_format_is_said(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert recognise(tmp_path / name).reason == reason
