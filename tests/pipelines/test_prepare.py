"""From a dataset to prepared data: the k-core, the catalogue that only grows, and the split that was asked for."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from builders import Row, events_of, random_rows, write_dataset
from hypothesis import given
from hypothesis import strategies as st

from models.popularity import Popularity, PopularityConfig
from pipelines.prepare import PrepareConfig, instant, iso, k_core, prepare
from recsys.cleaning import repeated_events
from recsys.errors import ConfigError, DataError
from recsys.evaluation import rank_cases
from recsys.prepared import Prepared, open_prepared
from recsys.ranking import NOT_RETURNED
from recsys.splits import build_cases

ROWS: list[Row] = [
    ("ann", "b", 1_000_000),
    ("ann", "a", 2_000_000),
    ("ann", "c", 11_000_000),
    ("bob", "a", 3_000_000),
    ("bob", "b", 12_000_000),
    ("cho", "d", 21_000_000),
    ("cho", "a", 22_000_000),
]
INSTANTS = {"validation_from": "1970-01-01T00:00:10", "test_from": "1970-01-01T00:00:20"}


def prepared_from(folder: Path, rows: list[Row], name: str = "prepared", **settings: Any) -> Prepared:
    """Prepares rows below `folder`, whose dataset must not exist yet."""
    dataset = write_dataset(folder / f"{name}-dataset", rows)
    return prepare(PrepareConfig(dataset=dataset, out=folder / name, **settings))


def core_by_hand(rows: list[Row], min_user_events: int, min_item_events: int) -> list[Row]:
    """Drops a rare user's or item's events, one user or item at a time, until nobody is rare."""
    kept = list(rows)
    while True:
        users, items = Counter(user for user, _, _ in kept), Counter(item for _, item, _ in kept)
        rare_users = [user for user, count in users.items() if count < min_user_events]
        rare_items = [item for item, count in items.items() if count < min_item_events]
        if rare_users:
            kept = [row for row in kept if row[0] != rare_users[0]]
        elif rare_items:
            kept = [row for row in kept if row[1] != rare_items[0]]
        else:
            return kept


@given(
    st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcde"), st.integers(0, 3)), max_size=30),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_the_core_is_the_fixed_point(rows: list[Row], min_user_events: int, min_item_events: int) -> None:
    events = events_of(rows)
    by_hand = core_by_hand(events.rows(), min_user_events, min_item_events)
    users, items = len({row[0] for row in by_hand}), len({row[1] for row in by_hand})
    if min(users, items) < 2:
        said = f"{users} users and {items} items are left of {len(rows)} events with min_user_events={min_user_events}"
        with pytest.raises(DataError, match=said):
            k_core(events, min_user_events, min_item_events)
    else:
        assert k_core(events, min_user_events, min_item_events).rows() == by_hand


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("ann", "a", 1), ("ann", "b", 2)], "1 users and 2 items are left of 2 events"),
        ([("ann", "a", 1), ("bob", "a", 2)], "2 users and 1 items are left of 2 events"),
        ([("ann", "a", 1), ("bob", "b", 2)], "0 users and 0 items are left of 2 events with min_user_events=2"),
    ],
)
def test_too_little_data_leaves_nothing_half_written(tmp_path: Path, rows: list[Row], said: str) -> None:
    with pytest.raises(DataError, match=said):
        prepared_from(tmp_path, rows, min_user_events=2 if said.startswith("0") else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["prepared-dataset"]


def test_what_is_written(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, ROWS, **INSTANTS)
    assert sorted(path.name for path in prepared.folder.iterdir()) == [
        "catalog.parquet",
        "items.parquet",
        "manifest.json",
        "sequences",
        "split",
        "test.parquet",
        "validation.parquet",
    ]
    assert prepared.catalog.rows == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert prepared.store.user_ids.to_list() == ["ann", "bob", "cho"]
    assert prepared.store.item_idx.tolist() == [2, 1, 3, 1, 2, 4, 1]
    assert prepared.split.train_stop.tolist() == [2, 1, 0]
    assert prepared.split.validation_stop.tolist() == [3, 2, 0]
    for part in ("validation", "test"):
        expected = build_cases(prepared.store, prepared.split, part, prepared.catalog.num_rows)
        assert prepared.cases(part).equals(expected)
    assert prepared.cases("test").select("user_idx", "target", "new_user", "cold_item").rows() == [
        (2, 4, True, True),
        (2, 1, True, False),
    ]


def test_the_manifest_counts(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, ROWS, **INSTANTS)
    assert prepared.manifest["counts"] == {
        "users": 3,
        "items": 4,
        "retired_items": 0,
        "events": 7,
        "train_events": 3,
        "validation_cases": 2,
        "test_cases": 2,
        "test_new_user_cases": 2,
        "test_cold_item_cases": 1,
        "validation_from": "1970-01-01T00:00:10+00:00",
        "test_from": "1970-01-01T00:00:20+00:00",
        "time": "timestamp",
        "repeated_events": 0,
        "repeat_share": 0.0,
        "seen": "exclude",
    }
    assert (prepared.time, prepared.seen) == ("timestamp", "exclude")
    assert prepared.manifest["inputs"][0]["path"] == str(tmp_path / "prepared-dataset")


def test_shares_divide_the_events(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, random_rows(0, 20, 15, 400), validation_share=0.2, test_share=0.1)
    counts = prepared.manifest["counts"]
    assert (counts["train_events"], counts["validation_cases"], counts["test_cases"]) == (280, 80, 40)


def test_last_item_needs_no_time(tmp_path: Path) -> None:
    rows = [(user, item, place) for user in ("ann", "bob") for place, item in enumerate("abcd")]
    dataset = write_dataset(tmp_path / "dataset", rows, time="order")
    prepared = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared", split="last-item"))
    assert prepared.split.train_stop.tolist() == [2, 2]
    assert prepared.time == "order"
    assert "test_from" not in prepared.manifest["counts"]


def test_a_split_by_time_refuses_events_that_only_have_an_order(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", ROWS, time="order")
    with pytest.raises(DataError, match=r"its events have an order but no time, .*; use --split last-item"):
        prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared"))
    assert not (tmp_path / "prepared").exists()


def test_an_extended_catalogue_keeps_every_row(tmp_path: Path) -> None:
    first = prepared_from(tmp_path, ROWS, "first", **INSTANTS)
    later = [row for row in ROWS if row[1] != "c"] + [("ann", "aa", 23_000_000), ("dan", "z", 24_000_000)]
    second = prepared_from(tmp_path, later, "second", extend=first.folder, **INSTANTS)
    assert second.catalog.rows == first.catalog.rows | {"aa": 5, "z": 6}
    assert second.items["item_id"].to_list() == ["a", "b", "c", "d", "aa", "z"]
    assert second.store.item_idx[second.store.offsets[second.store.user_ids.to_list().index("ann")] :][:3].tolist() == [
        2,
        1,
        5,
    ]
    assert second.manifest["inputs"][1]["path"] == str(first.folder)


def test_items_known_only_by_description_join_unless_a_core_was_asked_for(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["e", "a", "b", "c", "d"], "title": ["E", "A", None, "C", "D"]})
    dataset = write_dataset(tmp_path / "dataset", ROWS, items)
    prepared = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "all", **INSTANTS))
    assert prepared.items.rows() == [("a", "A"), ("b", None), ("c", "C"), ("d", "D"), ("e", "E")]
    core = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "core", min_item_events=2, split="time", **INSTANTS))
    assert core.items.rows() == [("a", "A"), ("b", None)]


@pytest.mark.parametrize(
    ("repeats", "asked", "rule"), [(0, "auto", "exclude"), (2, "auto", "keep"), (2, "exclude", "exclude")]
)
def test_seen_items_are_excluded_where_users_do_not_repeat_them(
    tmp_path: Path, repeats: int, asked: str, rule: str
) -> None:
    rows = ROWS + [("ann", "a", 5_000_000 + time) for time in range(repeats)]
    prepared = prepared_from(tmp_path, rows, seen=asked, **INSTANTS)
    assert prepared.seen == rule
    assert prepared.manifest["counts"]["repeat_share"] == pytest.approx(repeats / len(rows))


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), st.integers(0, 3)), min_size=1))
def test_repeated_events_counts_events_that_had_been_there_before(rows: list[Row]) -> None:
    seen: set[tuple[str, str]] = set()
    repeats = 0
    for user, item, _ in rows:
        repeats += (user, item) in seen
        seen.add((user, item))
    assert repeated_events(events_of(rows)) == repeats


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"validation_share": 0.5, "test_share": 0.5}, "validation_share=0.5 and test_share=0.5 must be above 0"),
        ({"validation_share": 0.0}, "must be above 0 and leave something to train on"),
        ({"test_from": "2020-01-01"}, "give both --validation-from and --test-from, or neither"),
        ({"split": "last-item", **INSTANTS}, "belong to --split time, not to last-item"),
        ({"session_gap": -1.0}, "--session-gap -1.0 must be at least 0 minutes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PrepareConfig(dataset=Path("in"), out=Path("out"), **settings)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01T12:00:00.000001", datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC)),
        ("2026-03-01T12:00+02:00", datetime(2026, 3, 1, 10, tzinfo=UTC)),
    ],
)
def test_instants_are_utc_unless_they_name_a_zone(text: str, moment: datetime) -> None:
    assert datetime.fromisoformat(iso(instant(text))) == moment


def test_an_instant_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="'tomorrow' is not an ISO date or time"):
        instant("tomorrow")


def test_prepared_data_is_read_from_its_folder_alone(tmp_path: Path) -> None:
    prepared = prepared_from(tmp_path, ROWS, **INSTANTS)
    again = open_prepared(prepared.folder)
    assert again.fingerprint == prepared.fingerprint
    assert again.items.equals(prepared.items)
    assert again.store.item_idx.tolist() == prepared.store.item_idx.tolist()
    with pytest.raises(DataError, match="was made by `recsys ingest`, but the output of `recsys prepare` is needed"):
        open_prepared(tmp_path / "prepared-dataset")


def test_retired_items_keep_their_row_and_are_never_ranked(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_rows(2, 12, 9, 200))
    gone = tmp_path / "gone.txt"
    gone.write_text("i003\n\ni007\n")
    whole = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "whole"))
    prepared = prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared", retire=gone))
    assert prepared.catalog.rows == whole.catalog.rows
    assert prepared.catalog.retired == {"i003", "i007"}
    rows = prepared.catalog.retired_rows
    model = Popularity.fit(PopularityConfig(), prepared.training_events(), prepared.items)
    ranked = rank_cases(
        model, prepared.store, prepared.cases("test"), prepared.catalog.num_rows, "keep", (9,), retired=rows
    )
    assert not ranked.listed[9][rows].any()
    assert (ranked.cases.filter(pl.col("target").is_in(rows.tolist()))["rank"] == NOT_RETURNED).all()


def test_only_known_items_can_be_retired(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_rows(2, 12, 9, 200))
    gone = tmp_path / "gone.txt"
    gone.write_text("i999\n")
    with pytest.raises(DataError, match=r"cannot retire \['i999'\]"):
        prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared", retire=gone))
    with pytest.raises(DataError, match=r"absent.txt: no such file; --retire needs"):
        prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared", retire=tmp_path / "absent.txt"))


MINUTE = 60_000_000


def test_sessions_are_histories_of_their_own(tmp_path: Path) -> None:
    times = {"ann": (0, 10, 50, 60), "bob": (5, 36, 66)}
    rows = [(user, item, time * MINUTE) for user in times for item, time in zip("abcd", times[user], strict=False)]
    prepared = prepared_from(tmp_path, rows, session_gap=30.0, validation_share=0.3, test_share=0.3)
    assert prepared.store.user_ids.to_list() == ["ann/1", "ann/2", "bob/1", "bob/2"]
    assert prepared.store.lengths.tolist() == [2, 2, 1, 2], "half an hour without an event does not end a session"
    assert prepared.store.item_idx.tolist() == [1, 2, 3, 4, 1, 2, 3]
    dataset = write_dataset(tmp_path / "ordered", rows, time="order")
    with pytest.raises(DataError, match=r"so --session-gap 30.0 cannot tell sessions; leave it out"):
        prepare(PrepareConfig(dataset=dataset, out=tmp_path / "refused", split="last-item", session_gap=30.0))


def test_sessions_are_told_before_runs_collapse(tmp_path: Path) -> None:
    places = [("x", 0), ("x", 20), ("x", 40), ("y", 60), ("z", 65), ("z", 100), ("x", 110)]
    rows = [(user, item, minute * MINUTE) for user in ("ann", "bob") for item, minute in places]
    prepared = prepared_from(tmp_path, rows, repeats="collapse", session_gap=30.0, split="last-item")
    assert prepared.store.user_ids.to_list() == ["ann/1", "ann/2", "bob/1", "bob/2"]
    assert prepared.store.item_idx.tolist() == [1, 2, 3, 3, 1] * 2
    assert prepared.store.timestamp[:5].tolist() == [minute * MINUTE for minute in (0, 60, 65, 100, 110)]


def test_runs_collapse_before_the_core(tmp_path: Path) -> None:
    rows = [(user, item, place * MINUTE) for user in ("ann", "bob") for place, item in enumerate("aabbbacca")]
    prepared = prepared_from(tmp_path, rows, repeats="collapse", split="last-item")
    assert prepared.store.item_idx.tolist() == [1, 2, 1, 3, 1] * 2
    assert prepared.store.timestamp[:5].tolist() == [place * MINUTE for place in (0, 2, 5, 6, 8)]
    assert prepared.seen == "keep", "what is left still repeats"
