"""A dataset that grew part by part is the one that a single ingest of the same files makes, and so is what is prepared
import inspect
from it."""

import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command_line import run_recsys
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipelines import append as append_module
from pipelines import prepare as prepare_module
from pipelines.append import append
from pipelines.ingest import IngestConfig, ingest
from pipelines.prepare import PrepareConfig, prepare
from recsys import partitions, steps
from recsys.errors import ConfigError, DataError
from recsys.schema import Dataset, open_dataset

LOG_COUNTS = ("rows", "accepted", "users", "items", "first_timestamp", "last_timestamp", "tied_events")
LOG_COUNTS += ("repeated_events", "tied_share", "repeat_share", "time", "time_unit", "roles", "layouts", "parts")
ROW = st.tuples(
    st.sampled_from(["ann", "bob", "cho", "dan", "ümi", "z"]),
    st.sampled_from("abcdefg"),
    st.sampled_from([*map(str, range(1, 9)), "soon", ""]),
)


def write(folder: Path, rows: list[tuple[str, str, str]], name: str) -> Path:
    """A CSV log."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text("user,item,ts\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    return path


def added(source: Path, base: Path, **changes: Any) -> Dataset:
    """`source` after what `base` holds."""
    return append(IngestConfig(sources=(source,), out=base, **changes), base)


def same(grown: Dataset, whole: Dataset) -> None:
    """Same events, items, rejected rows, counts and inputs."""
    assert grown.events().equals(whole.events())
    assert grown.items().equals(whole.items())
    assert grown.rejected().equals(whole.rejected())
    counts = grown.manifest["counts"]
    assert {name: counts[name] for name in LOG_COUNTS} == {name: whole.manifest["counts"][name] for name in LOG_COUNTS}
    assert dict(counts["rejected"]) == dict(whole.manifest["counts"]["rejected"])
    assert grown.manifest["inputs"] == whole.manifest["inputs"]


@settings(max_examples=10, phases=[Phase.generate])
@given(
    rows=st.lists(ROW, min_size=12, max_size=60),
    cuts=st.lists(st.integers(1, 59), min_size=1, max_size=2),
    seed=st.integers(0, 5),
    per_part=st.sampled_from([5, 15, 5_000_000]),
    rewrite=st.booleans(),
)
def test_any_split_of_a_log_into_parts_in_any_order_makes_the_same_data(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    cuts: list[int],
    seed: int,
    per_part: int,
    rewrite: bool,
) -> None:
    folder = tmp_path_factory.mktemp("log")
    start = [
        ("ann", "a", "1"),
        ("ann", "b", "2"),
        ("bob", "b", "3"),
        ("cho", "c", "5"),
        ("dan", "a", "9"),
        ("ann", "c", "9"),
    ]
    bounds = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    pieces = [[*rows[low:high], ("ann", "a", str(1 + low % 9))] for low, high in pairwise(bounds)]  # each has an event
    random.Random(seed).shuffle(pieces)
    pieces.insert(1, pieces[0])  # the same content again, under another name
    files = [write(folder, part, f"{number}.csv") for number, part in enumerate([start, *pieces])]
    out = folder / "grown"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "git_commit", lambda: None)  # three processes a step
        patch.setattr(inspect.unwrap(partitions.num_parts), "__defaults__", (per_part,))
        patch.setattr(partitions, "MOST_ADDED_SHARE", 0.0 if rewrite else 1e9)
        grown = ingest(IngestConfig(sources=(files[0],), out=out, time_unit="s"))
        before = prepared(grown, folder / "p0")
        for number, file in enumerate(files[1:], start=1):
            grown = added(file, out)
            whole = ingest(IngestConfig(sources=tuple(files[: number + 1]), out=folder / f"w{number}", time_unit="s"))
            same_but_inputs(grown, whole)
            now = prepared(grown, folder / f"p{number}", before)
            patch.setattr(prepare_module, "grown_histories", lambda *_: None)
            assert content(now) == content(prepared(whole, folder / f"q{number}", before))
            patch.setattr(prepare_module, "grown_histories", GROWN)
            before = now


GROWN = prepare_module.grown_histories


def same_but_inputs(grown: Dataset, whole: Dataset) -> None:
    """As `same`: a file that is a copy is listed by the call that has others as well."""
    inputs = whole.manifest["inputs"]
    grown.manifest["inputs"] = inputs
    same(grown, whole)


def prepared(dataset: Dataset, out: Path, extend: Path | None = None) -> Path:
    """Prepared data by leave-one-out and by time."""
    prepare(PrepareConfig(dataset=dataset.folder, out=out, extend=extend, split="last-item"))
    return out


def content(folder: Path) -> dict[str, str]:
    """Hashes of all files, and the counts."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["files"] | {"counts": json.dumps(manifest["counts"], sort_keys=True)}


BASE = [("ann", "a", "10"), ("ann", "b", "20"), ("bob", "a", "20"), ("bob", "c", "30"), ("ann", "c", "40")]
PART = [("ann", "z", "20"), ("ann", "a", "15"), ("bob", "a", "20"), ("cho", "d", "50"), ("", "a", "1")]


@pytest.fixture
def shop(tmp_path: Path) -> Dataset:
    """A dataset of one file."""
    return ingest(IngestConfig(sources=(write(tmp_path, BASE, "1.csv"),), out=tmp_path / "shop", time_unit="s"))


def test_late_events_and_ties_come_to_stand_in_their_places(shop: Dataset, tmp_path: Path) -> None:
    grown = added(write(tmp_path, PART, "2.csv"), shop.folder)
    assert [
        (user, item, time // 1_000_000)
        for user, item, time in grown.events().select("user_id", "item_id", "timestamp").rows()
    ] == [
        ("ann", "a", 10),
        ("ann", "a", 15),
        ("ann", "b", 20),
        ("ann", "z", 20),
        ("ann", "c", 40),
        ("bob", "a", 20),
        ("bob", "c", 30),
        ("cho", "d", 50),
    ]
    assert grown.rejected()["reason"].to_list() == ["missing user_id", "duplicate"]
    assert sorted(os.listdir(grown.folder / "events")) == ["part-00000.parquet"]  # three of five events: written anew


def test_the_same_content_again_changes_nothing(shop: Dataset, tmp_path: Path) -> None:
    before = (shop.folder / "manifest.json").read_bytes()
    copy = tmp_path / "copy.csv"
    shutil.copy(tmp_path / "1.csv", copy)
    code, output, errors = run_recsys("ingest", copy, tmp_path / "1.csv", "--append", "--out", shop.folder, "--json")
    assert code == 0, errors
    assert "nothing new: the content of all 2 files is in it already" in errors
    assert json.loads(output)["counts"]["rows"] == len(BASE)
    assert (shop.folder / "manifest.json").read_bytes() == before
    part = write(tmp_path, PART, "2.csv")
    grown = append(IngestConfig(sources=(copy, part), out=shop.folder), shop.folder)
    assert grown.manifest["history"][-1]["left_out"] == [str(copy)]
    assert grown.manifest["counts"]["rows"] == len(BASE) + len(PART)
    twice = ingest(IngestConfig(sources=(tmp_path / "1.csv", copy, part), out=tmp_path / "whole", time_unit="s"))
    same_but_inputs(grown, twice)


def test_small_parts_lie_beside_until_it_is_worth_writing_all_anew(shop: Dataset, tmp_path: Path) -> None:
    one = added(write(tmp_path, [("ann", "x", "5")], "2.csv"), shop.folder)
    old = one.folder / "events" / "part-00000.parquet"
    assert sorted(os.listdir(old.parent)) == ["added-00001.parquet", "part-00000.parquet"]
    inode = old.stat().st_ino
    two = added(write(tmp_path, [("bob", "x", "5")], "3.csv"), shop.folder)  # now two beside five
    assert sorted(os.listdir(old.parent)) == ["part-00000.parquet"]
    assert old.stat().st_ino != inode
    assert [entry["file"] for entry in two.manifest["history"]] == [None, "added-00001.parquet", None]
    files = tuple(tmp_path / f"{number}.csv" for number in (1, 2, 3))
    same(two, ingest(IngestConfig(sources=files, out=tmp_path / "whole", time_unit="s")))


def test_logs_without_times_go_on_counting_rows(tmp_path: Path) -> None:
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_text("ann a\nann b\nbob a\nann a\n")
    second.write_text("ann b\nbob b\n")
    out = tmp_path / "out"
    ingest(IngestConfig(sources=(first,), out=out))
    same(added(second, out), ingest(IngestConfig(sources=(first, second), out=tmp_path / "whole")))
    assert open_dataset(out).events()["timestamp"].to_list() == [1, 2, 4, 5, 3, 6]


def test_a_part_is_read_as_the_others_were(tmp_path: Path) -> None:
    settings = {"mapping": {"user_id": "who", "item_id": "what"}, "time_unit": "min", "delimiter": ";"}
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    first.write_text("who;what;time\nann;a;10\nbob;b;20\n")
    second.write_text("time;what;who\n5;b;ann\n")
    out = tmp_path / "out"
    ingest(IngestConfig(sources=(first,), out=out, **settings))
    same(added(second, out), ingest(IngestConfig(sources=(first, second), out=tmp_path / "whole", **settings)))
    other = tmp_path / "3.csv"
    other.write_text("uid,what,time\ncho,a,7\n")
    grown = added(other, out, mapping={"user_id": "uid", "item_id": "what"}, delimiter=",")
    assert grown.events().filter(pl.col("user_id") == "cho")["timestamp"].to_list() == [7 * 60_000_000]


def test_a_named_option_counts_though_it_is_the_default(tmp_path: Path) -> None:
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    first.write_bytes("user,item\nann,é\nann,é\n".encode("latin-1"))
    second.write_text("user,item\nbob,é\n")
    out = tmp_path / "out"
    ingest(IngestConfig(sources=(first,), out=out, encoding="latin-1", duplicates="keep"))
    code, _, errors = run_recsys("ingest", second, "--append", "--out", out, "--duplicates", "drop")
    assert code != 0
    assert "duplicates='drop', but the dataset was ingested with keep; leave it out" in errors.replace("\n", " ")
    code, _, errors = run_recsys("ingest", second, "--append", "--out", out, "--encoding", "utf-8")
    assert code == 0, errors
    assert open_dataset(out).events()["item_id"].to_list() == ["é"] * 3
    assert open_dataset(out).manifest["config"]["duplicates"] == "keep"


def test_items_of_a_part_join_the_table(tmp_path: Path) -> None:
    table, later = tmp_path / "items.csv", tmp_path / "later.csv"
    table.write_text("item,title,tags\na,Anvil,Iron|Old\nd,Drum,\n")
    later.write_text("item,title,colour\nb,Bell,red\na,Amboss,grey\nq,Quill,\n")
    log = write(tmp_path, BASE, "1.csv")
    mapping = {"categories": "tags"}
    config = {"items": table, "items_mapping": mapping, "time_unit": "s"}
    shop = ingest(IngestConfig(sources=(log,), out=tmp_path / "shop", **config))
    part = write(tmp_path, PART, "2.csv")
    whole = ingest(IngestConfig(sources=(log, part), out=tmp_path / "whole", **config))
    grown = added(part, shop.folder)
    same(grown, whole)
    assert grown.manifest["counts"]["item_table"] == whole.manifest["counts"]["item_table"]
    again = append(
        IngestConfig(sources=(part,), out=shop.folder, items=later, items_mapping={"title": "title"}), shop.folder
    )
    assert again.items().select("item_id", "title", "categories", "colour").rows() == [
        ("a", "Amboss", None, "grey"),
        ("b", "Bell", None, "red"),
        ("c", None, None, None),
        ("d", "Drum", None, None),
        ("q", "Quill", None, None),
        ("z", None, None, None),
    ]
    counts = again.manifest["counts"]["item_table"]
    assert (counts["items_with_attributes"], counts["attributes_without_events"]) == (3, 1)
    assert counts["examples_without_attributes"] == ["c", "z"]
    assert counts["examples_without_events"] == ["q"]


def test_an_earlier_item_table_can_come_back(shop: Dataset, tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("item,title\na,Anvil\n")
    new.write_text("item,title\na,Amboss\n")
    titles = []
    for table in (old, new, old, old):
        grown = added(tmp_path / "1.csv", shop.folder, items=table)
        titles.append(grown.items()["title"][0])
    assert titles == ["Anvil", "Amboss", "Anvil", "Anvil"]
    assert [Path(entry["path"]).name for entry in grown.manifest["inputs"]] == [
        "1.csv",
        "old.csv",
        "new.csv",
        "old.csv",
    ]


def test_drift_is_told_against_the_part_before(tmp_path: Path) -> None:
    base = "user,item,ts,rating\n" + "".join(f"u{row % 9},i{row % 5},{row * 60},{1 + row % 5}\n" for row in range(200))
    part = "user,item,ts,rating\n" + "".join(f"u{row % 9},n{row},{20_000 + row},9\n" for row in range(100))
    (tmp_path / "b.csv").write_text(base)
    (tmp_path / "p.csv").write_text(part + "".join(f"u1,i1,soon,{row}\n" for row in range(20)))
    out = tmp_path / "log"
    ingest(IngestConfig(sources=(tmp_path / "b.csv",), out=out, time_unit="s"))
    code, output, errors = run_recsys("ingest", tmp_path / "p.csv", "--append", "--out", out, "--json")
    assert code == 0
    manifest = json.loads(output)
    drift = manifest["history"][-1]["drift"]
    assert manifest["counts"]["drift"] == drift
    assert (drift["new_users"], drift["new_items"], drift["new_item_share"]) == (0, 100, 1.0)
    assert (drift["values"], drift["values_before"]) == ([9.0, 9.0], [1.0, 5.0])
    assert drift["gap_seconds"] == 20_000 - 199 * 60
    assert (drift["late_events"], drift["longest_gap_seconds"]) == (0, 1.0)
    assert drift["rejected_share"] == round(20 / 120, 6)
    assert drift["warnings"] == [
        "3640 events an hour, 60 before",
        "16.7% of the rows rejected, 0.0% before",
        "values from 9 to 9, 1 to 5 before",
    ]
    assert [f"drift: {warning}" in errors for warning in drift["warnings"]] == [True] * 3


KILLED = """
import sys, os, signal
from pathlib import Path
from pipelines import append as module
from pipelines.ingest import IngestConfig
joined = module.joined_rejected
def joined_and_killed(*tables):
    os.kill(os.getpid(), signal.SIGKILL)
module.joined_rejected = joined_and_killed
module.append(IngestConfig(sources=(Path(sys.argv[1]),), out=Path(sys.argv[2])), Path(sys.argv[2]))
"""


def test_a_killed_append_leaves_the_dataset_whole(shop: Dataset, tmp_path: Path) -> None:
    part = write(tmp_path, PART, "2.csv")
    before = {path: path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()}
    command = [sys.executable, "-c", KILLED, str(part), str(shop.folder)]
    assert subprocess.run(command, cwd=Path(append_module.__file__).parents[1]).returncode == -signal.SIGKILL
    assert (tmp_path / ".shop.partial" / "items.parquet").exists()
    assert {path: path.read_bytes() for path in shop.folder.rglob("*") if path.is_file()} == before
    grown = added(part, shop.folder)
    same(grown, ingest(IngestConfig(sources=(tmp_path / "1.csv", part), out=tmp_path / "whole", time_unit="s")))
    assert not (tmp_path / ".shop.partial").exists()


def test_what_cannot_be_appended_is_refused(shop: Dataset, tmp_path: Path) -> None:
    before = (shop.folder / "manifest.json").read_bytes()
    untimed, lists = tmp_path / "u.txt", tmp_path / "l.jsonl"
    untimed.write_text("ann a\n")
    lists.write_text('["a"]\n')
    with pytest.raises(DataError, match=r"u\.txt: has no timestamp column, while .*shop has a"):
        added(untimed, shop.folder)
    with pytest.raises(ConfigError, match="duplicates='keep', but the dataset was ingested with drop"):
        added(write(tmp_path, PART, "2.csv"), shop.folder, duplicates="keep")
    with pytest.raises(DataError, match="no such folder; expected the output of `recsys ingest`"):
        added(untimed, tmp_path / "none")
    order = ingest(IngestConfig(sources=(untimed,), out=tmp_path / "order"))
    with pytest.raises(DataError, match=r"l\.jsonl: its users are line numbers"):
        added(lists, order.folder)
    manifest = json.loads((order.folder / "manifest.json").read_text())
    del manifest["history"]
    (order.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="was not made from log files by this version"):
        added(lists, order.folder)
    assert (shop.folder / "manifest.json").read_bytes() == before


def test_a_part_without_events_is_refused_and_can_be_read_otherwise(shop: Dataset, tmp_path: Path) -> None:
    before = (shop.folder / "manifest.json").read_bytes()
    part = tmp_path / "2.csv"
    part.write_text("user,item,ts,when\ncho,a,,7\ncho,b,,8\n")
    with pytest.raises(DataError, match=r"2\.csv: all 2 rows were rejected, 2 of them for: missing timestamp"):
        added(part, shop.folder)
    assert (shop.folder / "manifest.json").read_bytes() == before
    grown = added(part, shop.folder, mapping={"timestamp": "when"})
    assert grown.events().filter(pl.col("user_id") == "cho")["timestamp"].to_list() == [7_000_000, 8_000_000]


@pytest.mark.parametrize("change", [{"min_item_events": 2}, {"extend": None}])
def test_growth_is_left_where_it_would_not_be_exact(shop: Dataset, tmp_path: Path, change: dict[str, Any]) -> None:
    prepare(PrepareConfig(dataset=shop.folder, out=tmp_path / "p", split="last-item"))
    grown = added(write(tmp_path, [("dan", "a", "1")], "2.csv"), shop.folder)
    config = PrepareConfig(dataset=grown.folder, out=tmp_path / "q", extend=tmp_path / "p", split="last-item")
    assert prepare_module.grown_histories(grown, config) is not None
    assert prepare_module.grown_histories(grown, PrepareConfig(**{**vars(config), **change})) is None


def test_growth_reads_nothing_but_what_was_appended(
    shop: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instants = {"validation_from": "1970-01-01T00:00:18", "test_from": "1970-01-01T00:00:25"}
    prepare(PrepareConfig(dataset=shop.folder, out=tmp_path / "p", **instants))
    grown = added(write(tmp_path, [("dan", "a", "22")], "2.csv"), shop.folder)
    monkeypatch.setattr(Dataset, "events", lambda _: pytest.fail("all events were read"))
    now = prepare(PrepareConfig(dataset=grown.folder, out=tmp_path / "q", extend=tmp_path / "p", **instants))
    assert now.store.user_ids.to_list() == ["ann", "bob", "dan"]
    assert np.diff(now.store.offsets).tolist() == [3, 2, 1]
