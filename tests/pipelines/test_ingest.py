"""From log files to a validated dataset: what is written, what is refused, and what a killed run leaves."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
from command_line import run_recsys
from hypothesis import given
from hypothesis import strategies as st

from pipelines import ingest as ingest_module
from pipelines.ingest import IngestConfig, ingest
from recsys.cleaning import REASONS
from recsys.errors import ConfigError, DataError, RecsysError
from recsys.json_files import BAD_JSON
from recsys.partitions import num_parts
from recsys.readers import SourceFormat
from recsys.schema import ROLES, Dataset, Events, Items, Rejected
from recsys.sequence_files import BAD_LIST
from recsys.source_files import BAD_FIELD_COUNT

LOG = "user,item,ts,rating\nb,x,20,1\na,y,10,2\na,x,10,3\na,y,10,2\n,x,5,1\na,z,soon,1\n"
IDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x1e"), min_size=1).filter(str.strip)


def write(folder: Path, text: str, name: str = "log.csv") -> Path:
    """`text` as a file."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def ingested(*sources: Path, **settings: Any) -> Dataset:
    """Ingests beside the first source."""
    return ingest(IngestConfig(sources=sources, out=sources[0].parent / "out", **settings))


def test_what_is_written(tmp_path: Path) -> None:
    dataset = ingested(write(tmp_path, LOG))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]
    assert sorted(path.name for path in dataset.folder.iterdir()) == [
        "events",
        "items.parquet",
        "manifest.json",
        "rejected.parquet",
    ]
    events = Events.validate(dataset.events())
    assert tuple(events.columns) == ROLES
    assert events.select("user_id", "item_id", "timestamp", "value").rows() == [
        ("a", "y", 10_000_000, 2.0),
        ("a", "x", 10_000_000, 3.0),
        ("b", "x", 20_000_000, 1.0),
    ]
    assert Items.validate(dataset.items()).rows() == [("x",), ("y",)]
    rejected = Rejected.validate(pl.read_parquet(dataset.folder / "rejected.parquet"))
    assert rejected.select("row", "reason").rows() == [
        (5, "missing user_id"),
        (6, "unreadable timestamp"),
        (4, "duplicate"),
    ]
    assert json.loads(rejected["content"][1]) == {"user": "a", "item": "z", "ts": "soon", "rating": "1"}


@pytest.mark.parametrize(
    ("name", "text", "settings", "line"),
    [
        ("l.csv", '\n\nuser,item,ts\n"a\nb",x,1\nc,x,2\n,x,3\n', {}, 7),
        ("l.csv", "a,x,1\n,x,2\n", {"columns": ("user_id", "item_id", "timestamp")}, 2),
        ("l.tsv", "user\titem\tts\na\tx\t1\n\tx\t2\n", {}, 3),
        ("l.inter", "user_id:token\titem_id:token\na\tx\n\tx\n", {}, 3),
        ("l.dat", "1::2::5::7\n1::2::5\n", {}, 2),
        ("l.jsonl", '{"user":"a","item":"x"}\n\n{"user":"","item":"x"}\n', {}, 3),
        ("l.txt", "a x\na y\nb\n", {"format": "sequences", "columns": ("user_id", "item_id")}, 3),
        ("l.json", '{"a": ["x"], "b": []}', {"format": "json"}, None),
    ],
)
def test_rejected_rows_name_file_line_and_reason(
    tmp_path: Path, name: str, text: str, settings: dict[str, Any], line: int | None
) -> None:
    source = write(tmp_path, text, name)
    rejected = ingested(source, **settings).rejected()
    last = rejected.row(-1, named=True)
    assert (last["source"], last["line"]) == (str(source), line)
    if line is not None:
        assert "x" not in text.splitlines()[line - 1] or "missing user_id" in last["reason"]


def test_too_many_rejected_rows_end_the_step(tmp_path: Path) -> None:
    source = write(tmp_path, LOG)  # of six rows two are no events, and one comes twice
    kept = tmp_path / "out.rejected.parquet"
    arguments = ("ingest", source, "--out", tmp_path / "out", "--max-rejected")
    code, _, errors = run_recsys(*arguments, "33%")
    assert code == 3
    assert "2 of 6 rows are no events, more than --max-rejected 33% allows; 1 of them for: missing user_id" in errors
    assert f"({source}, line 6: " in errors
    assert pl.read_parquet(kept)["reason"].to_list() == ["missing user_id", "unreadable timestamp"]
    assert sorted(os.listdir(tmp_path)) == ["log.csv", "out.rejected.parquet"]
    assert run_recsys(*arguments, "1")[0] == 3
    assert run_recsys(*arguments, "34%")[0] == 0
    assert run_recsys(*arguments, "2", "--overwrite")[0] == 0
    more = write(tmp_path, "user,item,ts\nb,x,soon\nb,z,30\n", "more.csv")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    code, _, errors = run_recsys("ingest", more, "--append", "--out", tmp_path / "out", "--max-rejected", "10%")
    assert (code, "1 of 2 rows are no events" in errors) == (3, True)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("limit", ["some", "-1", "101%", "nan", "%"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, limit: str) -> None:
    with pytest.raises(ConfigError, match=f"--max-rejected {limit}: expected a share such as 1%"):
        IngestConfig(sources=(tmp_path / "log.csv",), out=tmp_path / "out", max_rejected=limit)


def test_the_manifest_says_where_it_came_from(tmp_path: Path) -> None:
    source = write(tmp_path, LOG)
    manifest = ingested(source).manifest
    assert [entry["path"] for entry in manifest["inputs"]] == [str(source)]
    assert manifest["config"]["duplicates"] == "drop"
    counts = manifest["counts"]
    assert counts["rejected"] == {"missing user_id": 1, "unreadable timestamp": 1, "duplicate": 1}
    assert (counts["rows"], counts["accepted"], counts["time"], counts["time_unit"]) == (6, 3, "timestamp", "s")
    assert counts["roles"] == {"user_id": "user", "item_id": "item", "timestamp": "ts", "value": "rating"}
    assert counts["layouts"] == {"csv, delimiter ','": 1}


def test_duplicates_can_be_kept(tmp_path: Path) -> None:
    assert ingested(write(tmp_path, LOG), duplicates="keep").manifest["counts"]["accepted"] == 4


def test_sources_without_times_keep_order_and_repeats(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a y\na x\n", "1.txt"), write(tmp_path, "b x\na x\na x\n", "2.txt")
    dataset = ingested(first, second)
    assert dataset.time == "order"
    assert dataset.events().select("user_id", "item_id", "timestamp").rows() == [
        ("a", "y", 1),
        ("a", "x", 2),
        ("a", "x", 4),
        ("a", "x", 5),
        ("b", "x", 3),
    ]


def test_ties_keep_the_order_of_the_sources_as_given(tmp_path: Path) -> None:
    late, early = (
        write(tmp_path, "user,item,ts\na,p,7\na,q,7\n", "z.csv"),
        write(tmp_path, "ts,item,user\n7,o,a\n", "a.csv"),
    )
    assert ingested(late, early).events()["item_id"].to_list() == ["p", "q", "o"]
    again = ingest(IngestConfig(sources=(early, late), out=tmp_path / "again"))
    assert again.events()["item_id"].to_list() == ["o", "p", "q"]


def test_the_first_source_with_numbers_decides_the_unit(tmp_path: Path) -> None:
    header_only = write(tmp_path, "user,item,ts\n", "0.csv")
    milliseconds = write(tmp_path, "user,item,ts\na,p,1600000000000\n", "1.csv")
    small = write(tmp_path, "user,item,ts\na,q,5\n", "2.csv")
    dataset = ingested(header_only, milliseconds, small)
    assert dataset.manifest["counts"]["time_unit"] == "ms"
    assert dataset.events()["timestamp"].to_list() == [5_000, 1_600_000_000_000_000]
    texts = ingest(IngestConfig(sources=(write(tmp_path, "user,item,ts\na,p,2020-01-02\n"),), out=tmp_path / "texts"))
    assert texts.manifest["counts"]["time_unit"] == "iso"


@given(st.lists(st.tuples(IDS, IDS, st.integers(0, 3)), min_size=1, max_size=30))
def test_ids_go_round_trip_in_the_order_of_a_plain_sort(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]]
) -> None:
    source = tmp_path_factory.mktemp("log") / "log.csv"
    with source.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, quoting=csv.QUOTE_ALL).writerows([("user", "item", "ts"), *rows])
    events = ingested(source, duplicates="keep", time_unit="us").events()
    by_hand = sorted(rows, key=lambda row: (row[0].encode(), row[2]))
    assert events.select("user_id", "item_id", "timestamp").rows() == by_hand


def test_an_item_table_is_joined(tmp_path: Path) -> None:
    items = write(tmp_path, "movie,label,tags\nx,Heat,Action|Crime\nw,Babe,\n", "movies.csv")
    mapping = {"item_id": "movie", "title": "label", "categories": "tags"}
    dataset = ingested(write(tmp_path, LOG), items=items, items_mapping=mapping)
    assert dataset.items().rows() == [("w", "Babe", None), ("x", "Heat", ["Action", "Crime"]), ("y", None, None)]
    table = dataset.manifest["counts"]["item_table"]
    assert table["path"] == str(items)
    assert (table["items_with_attributes"], table["items_without_attributes"], table["attributes_without_events"]) == (
        1,
        1,
        1,
    )


def test_parts_together_are_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"u{place % 7},i{place % 5},{place % 3}\n" for place in range(60))
    source = write(tmp_path, "user,item,ts\n" + rows)
    whole = ingested(source, duplicates="keep").events()
    monkeypatch.setattr(ingest_module, "num_parts", lambda events: num_parts(events, 20))
    parted = ingest(IngestConfig(sources=(source,), out=tmp_path / "parted", duplicates="keep"))
    assert parted.manifest["counts"]["parts"] == 4
    assert not parted.events().equals(whole)
    assert parted.events().sort("user_id", maintain_order=True).equals(whole)


@pytest.mark.parametrize(
    ("text", "settings", "error", "message"),
    [
        ("user,item,ts\n", {}, DataError, "log.csv: a header and no data rows"),
        (
            "user,item,ts\na,x,?\n,x,?\nb,y,?\n",
            {},
            DataError,
            r"all 3 rows were rejected, 2 of them for: unreadable timestamp",
        ),
        ("who,item\na,x\n", {}, ConfigError, r"no column for user_id; it has 'who', 'item'.*--map user_id=COLUMN"),
        (
            "user,item\na,x\n",
            {"mapping": {"uid": "user"}},
            ConfigError,
            "--map uid=...: not a role; choose from user_id, ",
        ),
        ("user,item\na,x\n", {"mapping": {"value": "v"}}, ConfigError, "--map value=v: no such column"),
        ("1,x\n", {"columns": ("user_id", "item_id", "ts")}, ConfigError, "--columns names 3 columns"),
        ("user,item\na,x\n", {"format": "xls"}, ConfigError, "format='xls' is not known; choose from auto, recbole"),
        ("user,item\na,x\n", {"time_unit": "h"}, ConfigError, "time_unit='h' is not known"),
        ("user,item\na,x\n", {"duplicates": "merge"}, ConfigError, "duplicates='merge' is not known"),
        ("user,item\na,x\n", {"delimiter": ""}, ConfigError, "delimiter='' splits nothing"),
        ("user,item\na,x\n", {"items": Path("none.csv")}, DataError, "none.csv: no such file"),
        ("user,item\na,x\n", {"items_mapping": {"item_id": "i"}}, ConfigError, "--items-map needs an item table"),
        ("user,item,ts\na,x,1600000000000\n", {"time_unit": "s"}, DataError, "name the right --time-unit"),
        ('["x"]\n', {"format": "npy"}, DataError, "not a plain numeric .npy matrix"),
    ],
)
def test_refusals_leave_nothing_behind(
    tmp_path: Path, text: str, settings: dict[str, Any], error: type[RecsysError], message: str
) -> None:
    source = write(tmp_path, text)
    with pytest.raises(error, match=message) as caught:
        ingested(source, **settings)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["log.csv"]


def test_sources_must_agree(tmp_path: Path) -> None:
    timed, untimed = write(tmp_path, "user,item,ts\na,x,1\n", "1.csv"), write(tmp_path, "user,item\na,x\n", "2.csv")
    with pytest.raises(DataError, match=r"2\.csv: has no timestamp column, while the sources before it have a"):
        ingested(timed, untimed)
    lists = [write(tmp_path, f'["{name}"]\n', name) for name in ("1.jsonl", "2.jsonl")]
    with pytest.raises(DataError, match=r"its users are line numbers, which repeat in the other 1 sources"):
        ingested(*lists)
    with pytest.raises(ConfigError, match="no source was named"):
        IngestConfig(sources=(), out=tmp_path / "out")


def test_an_existing_dataset_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source = write(tmp_path, LOG)
    ingested(source)
    write(tmp_path, "user,item\nnew,x\n")
    with pytest.raises(DataError, match="out exists already"):
        ingested(source)
    assert ingested(source, overwrite=True).events()["user_id"].to_list() == ["new"]
    with pytest.raises(ConfigError, match="holds the source"):
        ingest(IngestConfig(sources=(tmp_path / "out" / "events",), out=tmp_path / "out", overwrite=True))


WRITES_AND_WAITS = """
import sys, time
from dataclasses import fields
from pathlib import Path
from pipelines import ingest as module
write_parts = module.write_parts
def write_and_wait(*arguments):
    write_parts(*arguments)
    print("written", flush=True)
    time.sleep(120)
module.write_parts = write_and_wait
module.ingest(module.IngestConfig(sources=(Path(sys.argv[1]),), out=Path(sys.argv[2])))
"""


def test_a_killed_run_leaves_no_dataset_and_the_next_starts_over(tmp_path: Path) -> None:
    source, out = write(tmp_path, LOG), tmp_path / "out"
    command = [sys.executable, "-c", WRITES_AND_WAITS, str(source), str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(ingest_module.__file__).parents[1]
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "written\n"
        run.send_signal(signal.SIGKILL)
    assert not out.exists()
    partial = tmp_path / ".out.partial"
    assert (partial / "events" / "part-00000.parquet").exists()
    (partial / "stale").touch()
    assert len(ingested(source).events()) == 3
    assert sorted(os.listdir(tmp_path)) == ["log.csv", "out"]
    assert not (out / "stale").exists()


def check(dataset: Dataset, users: int, items: int, rows: int, **rejected: int) -> None:
    """Published sizes, and that no row is lost."""
    counts = dataset.manifest["counts"]
    assert (counts["users"], counts["items"], counts["rows"]) == (users, items, rows)
    assert counts["rejected"] == rejected
    assert counts["accepted"] == rows - sum(rejected.values()) == len(dataset.events())


def test_movielens_1m(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("ml-1m")
    source = folder / "ml-1m.txt.gz"
    dataset = ingest(IngestConfig(sources=(source,), out=tmp_path / "order"))
    check(dataset, 6040, 3416, 999_611)
    with gzip.open(source, "rt") as handle:
        lines = [line.split() for line in handle]
    by_hand = sorted(lines, key=lambda line: line[0])
    assert dataset.events().select("user_id", "item_id").rows() == [tuple(line) for line in by_hand]
    joined = IngestConfig(
        sources=(folder / "interactions_joined.csv.gz",),
        out=tmp_path / "joined",
        mapping={"timestamp": ""},
        items=folder / "movies.dat",
    )
    with_titles = ingest(joined)
    check(with_titles, 6040, 3416, 999_611)
    assert with_titles.items().row(0) == ("1", "Toy Story (1995)", ["Animation", "Children's", "Comedy"])
    known = ingest(IngestConfig(sources=joined.sources, out=tmp_path / "known"))
    check(known, 5398, 3407, 999_611, **{"missing timestamp": 432_932})


def test_amazon_beauty(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("amazon-beauty-2014")
    config = IngestConfig(sources=(folder / "Beauty.txt",), out=tmp_path / "out", items=folder / "items.jsonl.gz")
    dataset = ingest(config)
    check(dataset, 22_363, 12_101, 198_502)
    first = dataset.items().filter(pl.col("item_id") == "1").row(0, named=True)
    assert first["title"] == "OPI Nail Lacquer, Simmer and Shimmer, 0.5-Fluid Ounce"
    assert first["categories"] == ["Beauty", "Makeup", "Nails", "Nail Polish"]
    assert dataset.manifest["counts"]["item_table"]["items_with_attributes"] == 12_101


def test_online_retail(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_data("online-retail-sequences") / "sequences.jsonl.gz"
    dataset = ingest(IngestConfig(sources=(source,), out=tmp_path / "out"))
    check(dataset, 4234, 3684, 406_632)
    assert round(dataset.manifest["counts"]["repeat_share"], 3) == 0.342


def test_foursquare(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_data("foursquare-nyc") / "NYC.npy"
    columns = ("user_id", "item_id", "timestamp")
    dataset = ingest(IngestConfig(sources=(source,), out=tmp_path / "out", columns=columns, time_unit="min"))
    check(dataset, 1083, 5135, 147_938, duplicate=458)
    assert dataset.manifest["counts"]["last_timestamp"] == 458_435 * 60_000_000


def test_movielens_100k_atomic(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("ml-100k-atomic")
    dataset = ingest(IngestConfig(sources=(folder / "ml-100k.inter",), out=tmp_path / "out"))
    check(dataset, 943, 1682, 100_000)
    assert dataset.manifest["counts"]["item_table"]["path"] == str(folder / "ml-100k.item")
    first = dataset.items().row(0, named=True)
    assert first == {
        "item_id": "1",
        "title": "Toy Story",
        "categories": ["Animation", "Children's", "Comedy"],
        "release_year": "1995",
    }


def test_movielens_latest_small(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("ml-latest-small-2016")
    config = IngestConfig(sources=(folder / "ratings.csv.gz",), out=tmp_path / "out", items=folder / "movies.csv")
    dataset = ingest(config)
    check(dataset, 671, 9066, 100_004)
    assert len(dataset.items()) == 9125
    assert dataset.items().filter(pl.col("categories").list.len() == 0).height == 18


def test_serenade_sessions(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("sessions-serenade")
    sources = tuple(folder / name for name in ("train.txt.gz", "valid.txt", "test.txt"))
    dataset = ingest(IngestConfig(sources=sources, out=tmp_path / "out", mapping={"user_id": "SessionId"}))
    check(dataset, 24_385, 18_009, 116_285)


def test_globo_hours(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("globo-clicks")
    sources = tuple(folder / f"clicks_hour_{hour:03d}.csv.gz" for hour in range(97, 102))  # 100 holds a header only
    dataset = ingest(IngestConfig(sources=sources, out=tmp_path / "out"))
    lines = sum(len(gzip.decompress(source.read_bytes()).splitlines()) - 1 for source in sources)
    counts = dataset.manifest["counts"]
    assert (counts["rows"], counts["accepted"], counts["time_unit"]) == (lines, lines, "ms")
    assert dataset.events()["session_id"].null_count() == 0


def test_every_setting_reason_and_role_is_documented() -> None:
    text = (Path(ingest_module.__file__).parents[1] / "docs" / "ingest.md").read_text(encoding="utf-8")
    options = {"sources": "SOURCE", "mapping": "--map ", "items_mapping": "--items-map "}
    names = [options.get(field.name, f"--{field.name.replace('_', '-')}") for field in fields(IngestConfig)]
    problems = (*REASONS, BAD_FIELD_COUNT, BAD_JSON, BAD_LIST)
    formats = [f"`{name}`" for name in get_args(SourceFormat) if name != "auto"]
    missing = [name for name in (*names, *problems, *ROLES, *formats) if name not in text]
    assert not missing
