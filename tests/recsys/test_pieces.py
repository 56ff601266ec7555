"""A source read in pieces is the source read at once."""

import gzip
import inspect
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipelines import ingest as ingest_module
from pipelines.ingest import IngestConfig, as_bytes, ingest
from recsys import json_files, partitions, pieces, source_files, spill, steps
from recsys.cleaning import CleanRows, clean
from recsys.errors import ConfigError, DataError
from recsys.pieces import read_pieces
from recsys.readers import read_table
from recsys.source_files import PROBLEM, ROW, RawTable, ReadOptions, with_rows

CSV = 'user,item,ts\n"a\nb",x,1\n\nc,"y ""z""\n\n",2\nd,x\n\n\ne,"\n",3\n' + "".join(
    f"u{row},i,{row}\n" for row in range(40)
)
LINES = "".join(f'{{"user": "u{row}", "item": "i"}}\n' + ("broken\n" if row % 7 == 0 else "") for row in range(40))
FILES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a.csv": (CSV.encode(), {}),
    "crlf.csv": (b"\n\nuser,item\r\n" + b"a,x\r\nb\r\n\r\n" * 20, {}),
    "bare.csv": (b"a,x\nb,y\n" * 30, {"columns": ("user_id", "item_id")}),
    "a.csv.gz": (gzip.compress(CSV.encode(), mtime=0), {}),
    "a.csv.zst": (zstandard.compress(CSV.encode()), {}),
    "a.tsv": (b'user\titem\na\t5" pipe\n' + b'b\tx\nc\t"y\n' * 30, {}),
    "bare.tsv": (b'a\t5" pipe\n' + b"b\tx\nc\t,\n" * 30, {"columns": ("user_id", "item_id")}),
    "tab.csv": (b'user\titem,\n"a\tx\n' + b"b\ty,,\n" * 30, {"delimiter": "\t"}),
    "a.dat": (b"1::2::3::4\n1::2::3\n" * 30, {}),
    "a.inter": (b"user_id:token\titem_id:token\n" + b"a\tx\nb\n" * 30, {}),
    "whole.inter": (b"user_id:token\titem_id_list:token_seq\titem_id:token\n" + b"a\tx y\tz\n", {}),
    "a.jsonl": (LINES.encode(), {}),
    "day=7/a.csv": (b"user,item\n" + b"a,x\n" * 30, {}),
    "day=a%20b/a.jsonl": (LINES.encode(), {}),
    "day=a/ts=7/a.jsonl": (b'{"user": "a", "item": "x", "ts": 8}\n' + b'{"user": "b", "item": "y"}\n' * 30, {}),
    "a.txt": (b"a x y\nb z\n" * 30, {}),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("most_bytes", [1, 37, 200, 10**6])
def test_pieces_together_are_the_whole(
    tmp_path: Path, name: str, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PACKED_RATIO", 1)
    content, form = FILES[name]
    path, scratch = tmp_path / name, tmp_path / "hour=1" / "scratch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    scratch.mkdir(parents=True)
    options = ReadOptions(**form)
    whole = read_table(path, "auto", options)
    tables = list(read_pieces(path, "auto", options, most_bytes, scratch))
    columns = [column for column in whole.columns if not column.startswith("field_") and column != "line"]
    together = pl.concat([table.frame for table in tables], how="diagonal").select(*columns, ROW, PROBLEM)
    assert together.equals(whole.frame.select(*columns, ROW, PROBLEM))
    assert pl.concat([table.lines() for table in tables]).to_list() == whole.lines().to_list()
    assert {table.path for table in tables} == {path}
    assert not list(scratch.iterdir())
    if most_bytes == 37 and name not in {"whole.inter", "a.txt"}:
        assert len(tables) > 2


def last_end_by_hand(text: bytes) -> int:
    """Behind the last line end outside of quotes, and before the blank lines at its end."""
    ends = [place + 1 for place in range(len(text)) if text[place : place + 1] == b"\n"]
    outside = [end for end in ends if text[:end].count(b'"') % 2 == 0]
    content = len(text[: max(outside, default=0)].rstrip(b"\r\n"))
    return min((end for end in ends if end > content), default=0) if content else 0


@given(st.text(alphabet='ab"\r\n', max_size=40))
def test_the_cut_is_behind_the_last_line_end_outside_of_quotes(text: str) -> None:
    assert pieces._last_end(text.encode(), quoted=True) == last_end_by_hand(text.encode())


def test_a_quote_that_is_never_closed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LONGEST_ROW", 500)
    path = tmp_path / "a.csv"
    path.write_text('user,item\na,x\nb,"5 pipe\n' + "c,y\n" * 1_000)
    found = read_pieces(path, "auto", ReadOptions(), 100, tmp_path)
    assert next(found).frame["user"].to_list() == ["a"]
    with pytest.raises(DataError, match=r"a\.csv: no row ends in the \d{3} bytes from 'b,\"5 pipe.*never closed"):
        next(found)
    path.write_text("user,item\n" + "\n" * 1_000 + "c,y\n")
    assert sum(len(table.frame) for table in read_pieces(path, "auto", ReadOptions(), 100, tmp_path)) == 1_001


@pytest.mark.parametrize(
    ("row", "options", "error", "told"),
    [
        (b"\xff,x", {}, DataError, "not utf-8: byte 0xff"),
        (b'a,"x', {}, DataError, "look for a quote that is never closed"),
        (b"", {"columns": ("one",)}, ConfigError, "has 2 fields"),
    ],
)
def test_errors_in_a_piece_name_the_source(
    tmp_path: Path, row: bytes, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    path, scratch = tmp_path / "a.csv", tmp_path / "scratch"
    path.write_bytes(b"user,item\n" + b"a,x\n" * 40 + row)
    scratch.mkdir()
    with pytest.raises(error, match=told) as raised:
        list(read_pieces(path, "auto", ReadOptions(**options), 40, scratch))
    assert re.search(rf"{path} \(from line \d+ on\)", str(raised.value))
    assert str(scratch) not in str(raised.value)


def test_parquet_comes_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PACKED_RATIO", 100)
    frame = pl.DataFrame({"user": range(50), "item": ["x"] * 50})
    path = tmp_path / "day=7" / "a.parquet"
    path.parent.mkdir()
    frame.write_parquet(path)
    tables = list(read_pieces(path, "auto", ReadOptions(), 64 * 2 * 20, tmp_path))
    assert [len(table.frame) for table in tables] == [20, 20, 10]
    assert pl.concat([table.frame["day"] for table in tables]).to_list() == ["7"] * 50
    assert pl.concat([table.frame[ROW] for table in tables]).to_list() == list(range(1, 51))
    (tmp_path / "b.parquet").write_bytes(b"PAR1" * 50)
    with pytest.raises(DataError, match=r"b\.parquet: damaged, or not a Parquet file"):
        list(read_pieces(tmp_path / "b.parquet", "auto", ReadOptions(), 10, tmp_path))


EVENT = st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abc"), st.sampled_from(["1", "2", "3", "?"]))


@given(
    rows=st.lists(EVENT, min_size=5, max_size=60), held=st.sampled_from([40, 3000]), per_part=st.sampled_from([7, 1000])
)
def test_what_went_to_disk_makes_the_same_dataset(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], held: int, per_part: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    for name, part in (("1.csv", [("u", "a", "1"), *rows[::2]]), ("2.jsonl", rows[1::2])):
        keys = ("user", "item", "ts")
        lines = [",".join(keys)] if name == "1.csv" else []
        lines += [",".join(row) if name == "1.csv" else json.dumps(dict(zip(keys, row, strict=True))) for row in part]
        (folder / name).write_text("\n".join(lines))
    config = {"sources": (folder / "1.csv", folder / "2.jsonl"), "time_unit": "s"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "git_commit", lambda: None)
        patch.setattr(inspect.unwrap(partitions.num_parts), "__defaults__", (per_part,))
        whole = ingest(IngestConfig(out=folder / "whole", **config))
        patch.setattr(ingest_module, "as_bytes", lambda _: held * ingest_module.HELD_SHARE)
        patch.setattr(pieces, "PACKED_RATIO", 10**6)
        parted = ingest(IngestConfig(out=folder / "parted", memory="4GB", **config))
    assert parted.events().equals(whole.events())
    assert parted.rejected().equals(whole.rejected())
    assert parted.items().equals(whole.items())
    assert parted.manifest["counts"] == whole.manifest["counts"]
    assert parted.manifest["history"] == whole.manifest["history"]
    assert sorted(path.name for path in parted.folder.iterdir()) == sorted(path.name for path in whole.folder.iterdir())


FIRST = {
    "late.jsonl": '{"user": "a", "item": "x"}\n{"user": "b", "item": "y", "rating": "2", "ts": "7"}\n',
    "lists.csv": "user,item\na,\"[1, 'x']\"\nb,plain\nc,[]\nd,[7]\n",
    "texts.csv": "user,item\na,plain\nb,[7]\nc,[8]\n",
    "lists.jsonl": '{"user": "a", "item": ["x", "y"]}\n{"user": "b", "item": "z"}\n{"user": "c", "item": ["v"]}\n',
}


@pytest.mark.parametrize("name", FIRST)
def test_the_head_of_a_source_tells_what_its_columns_are(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "LINES_SEARCHED_FOR_KEYS", 1)
    monkeypatch.setattr(source_files, "HEAD_ROWS", 1)
    (tmp_path / name).write_text(FIRST[name])
    whole = ingest(IngestConfig(sources=(tmp_path / name,), out=tmp_path / "whole"))
    monkeypatch.setattr(ingest_module, "as_bytes", lambda _: ingest_module.PIECE_SHARE)
    monkeypatch.setattr(pieces, "PACKED_RATIO", 10**6)
    parted = ingest(IngestConfig(sources=(tmp_path / name,), out=tmp_path / "parted", memory="4GB"))
    assert parted.events().equals(whole.events())
    assert parted.rejected().equals(whole.rejected())
    assert parted.manifest["counts"] == whole.manifest["counts"]
    items = {
        "late.jsonl": ["x", "y"],
        "lists.csv": ["1", "x", "plain", "7"],
        "texts.csv": ["plain", "[7]", "[8]"],
        "lists.jsonl": ["x", "y", "z", "v"],
    }
    assert whole.events()["item_id"].to_list() == items[name]
    assert whole.events()["value"].is_null().all()


def test_buckets_divide_into_parts() -> None:
    assert spill.BUCKETS & (spill.BUCKETS - 1) == 0, "a part is a set of whole buckets, or a bucket one of whole parts"


@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize("buckets", [2, 8, 256])
def test_every_spilled_event_lies_in_one_part(
    tmp_path: Path, parts: int, buckets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "BUCKETS", buckets)
    rows = spill.Spill(tmp_path / "spill", most_bytes=0)
    names = [f"u{number}" for number in range(40)]
    rows.add(clean_rows(names[:30]))
    rows.add(clean_rows(names[30:]))
    rows.most_bytes = None
    rows.add(clean_rows(["u1", "v"]))
    found = [rows.part(number, parts)["user_id"] for number in range(parts)]
    assert sorted(user for users in found for user in users) == sorted([*names, "u1", "v"])
    for number, users in enumerate(found):
        assert {partitions.user_part(user, parts) for user in users} <= {number}


def test_rejected_rows_stay_in_order_past_ten_thousand_flushes(tmp_path: Path) -> None:
    rows = spill.Spill(tmp_path / "spill", most_bytes=0)
    for flush, user in ((9_999, ""), (10_000, "")):
        rows.flushes = flush
        rows.add(clean_rows([user, "u"], first_order=flush))
    assert [json.loads(row)["item"] for row in rows.rejected()["content"]] == ["i9999", "i10000"]


def clean_rows(users: list[str], first_order: int = 0) -> CleanRows:
    """Rows of one item each, named by their order."""
    items = [f"i{first_order + place}" for place in range(len(users))]
    frame = with_rows(pl.DataFrame({"user": users, "item": items}))
    table = RawTable(path=Path("a.csv"), layout="csv", frame=frame, lines_before=0)
    return clean(table, {"user_id": "user", "item_id": "item"}, "s", first_order)


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 << 30), ("300 mib", 300 << 20), ("1.5g", 3 << 29), ("1t", 1 << 40)]
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert as_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "-1GB", "100MB", "4 PB", ""])
def test_other_sizes_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=f"--memory {text}: expected a size of at least 256 MB"):
        IngestConfig(sources=(tmp_path / "a.csv",), out=tmp_path / "out", memory=text)
