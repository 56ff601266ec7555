"""What was shown joined with what came of it: the same as asking of each event by hand which item it belongs to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest import IngestConfig, ingest
from recsys.errors import ConfigError, DataError
from recsys.exposures import (
    Attribution,
    Exposures,
    Outcomes,
    erase_users,
    join_outcomes,
    read_exposures,
    read_impressions,
    read_outcomes,
    write_part,
)

WINDOW = 10
TIME = 1_700_000_000_000_000
ITEMS = ("a", "b", "c")


def answer(request_id: str, timestamp: int, items: Sequence[str], **given: Any) -> dict[str, Any]:
    """A row of the log."""
    return {
        "request_id": request_id,
        "timestamp": timestamp,
        "user_id": "ann",
        "session_id": None,
        "variant": "control",
        "propensity": 0.75,
        "model_version": "v1",
        "source": "model",
        "position": 1,
        "item_ids": list(items),
        "scores": [float(len(items) - place) for place in range(len(items))],
        "propensities": None,
        "history": [],
        "wishes": None,
        **given,
    }


def event(item_id: str, timestamp: int, **given: Any) -> dict[str, Any]:
    """A row of the log."""
    empty = dict.fromkeys(("event_type", "value", "event_id", "request_id"))
    return {"user_id": "ann", "item_id": item_id, "timestamp": timestamp, **empty, **given}


def exposures(*rows: dict[str, Any]) -> pl.DataFrame:
    return Exposures.validate(pl.DataFrame(list(rows), schema=Exposures.create_empty().schema))


def outcomes(*rows: dict[str, Any]) -> pl.DataFrame:
    return Outcomes.validate(pl.DataFrame(list(rows), schema=Outcomes.create_empty().schema))


def log(folder: Path, shown: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> Path:
    """A folder as the service leaves it, a part a row."""
    for kind, rows, made in (("answers", shown, exposures), ("outcomes", events, outcomes)):
        (folder / kind).mkdir(parents=True)
        for number, row in enumerate(rows):
            made(row).write_parquet(folder / kind / f"part-{number}.parquet")
    return folder


SHOWN = st.tuples(
    st.integers(0, 15), st.sampled_from(["ann", "bob", None]), st.lists(st.sampled_from(ITEMS), max_size=3, unique=True)
)
SENT = st.tuples(
    st.integers(0, 30),
    st.sampled_from(["ann", "bob"]),
    st.sampled_from(ITEMS),
    st.sampled_from([None, None, "0", "1", "9"]),
)


def by_hand(shown: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[tuple[str, str, int, int | None]]:
    """(request, item, outcomes, first) of each shown item."""
    times: dict[tuple[str, str], list[int]] = {
        (row["request_id"], item): []
        for row in sorted(shown, key=lambda row: row["timestamp"])
        for item in row["item_ids"]
    }
    for sent in events:
        if sent["request_id"] is not None:
            may = [
                row
                for row in shown
                if row["request_id"] == sent["request_id"]
                and sent["item_id"] in row["item_ids"]
                and row["user_id"] in {None, sent["user_id"]}
                and sent["timestamp"] <= row["timestamp"] + WINDOW
            ]
        else:
            may = [
                row
                for row in shown
                if row["user_id"] == sent["user_id"]
                and sent["item_id"] in row["item_ids"]
                and 0 <= sent["timestamp"] - row["timestamp"] <= WINDOW
            ]
        if may:
            latest = max(enumerate(may), key=lambda entry: (entry[1]["timestamp"], entry[0]))[1]
            times[latest["request_id"], sent["item_id"]].append(sent["timestamp"])
    return [(*key, len(found), min(found, default=None)) for key, found in times.items()]


@given(st.lists(SHOWN, max_size=6), st.lists(SENT, max_size=8))
def test_each_event_is_credited_as_by_hand(rows, sent) -> None:
    shown = [answer(str(number), time, items, user_id=user) for number, (time, user, items) in enumerate(rows)]
    events = [event(item, time, user_id=user, request_id=request) for time, user, item, request in sent]
    ordered = exposures(*shown).sort("timestamp", maintain_order=True)
    joined = join_outcomes(ordered, outcomes(*events), Attribution(window=WINDOW))
    found = joined.select("request_id", "item_id", "outcomes", "outcome_timestamp").rows()
    assert found == by_hand(shown, events)
    end = max([row["timestamp"] for row in shown], default=0)
    assert joined["complete"].to_list() == [time + WINDOW <= end for time in joined["timestamp"].to_list()]


def test_places_scores_and_chances_stand_beside_their_items() -> None:
    shown = [
        answer("1", 5, ["a", "b"], position=11, propensities=[0.5, 0.25]),
        answer("2", 6, []),
        answer("3", 7, ["c"]),
    ]
    joined = join_outcomes(exposures(*shown), outcomes())
    assert joined.select("request_id", "item_id", "position", "score", "item_propensity", "propensity").rows() == [
        ("1", "a", 11, 2.0, 0.5, 0.75),
        ("1", "b", 12, 1.0, 0.25, 0.75),
        ("3", "c", 1, 1.0, None, 0.75),
    ]
    assert joined["outcomes"].to_list() == [0, 0, 0]


def test_what_is_sent_or_shown_twice_counts_once(tmp_path: Path) -> None:
    shown = [answer("1", 5, ["a"]), answer("1", 6, ["b"]), answer("2", 7, ["b"])]
    events = [
        event("a", 8, event_id="x", value=2.0),
        event("a", 9, event_id="x", value=3.0),
        event("a", 8, event_id="x", user_id="bob"),
        event("b", 8),
        event("b", 8),
        event("b", 9),
    ]
    joined = read_impressions(log(tmp_path, shown, events), Attribution(window=WINDOW))
    found = joined.select("request_id", "item_id", "outcomes", "value").rows()
    assert found == [("1", "a", 1, 2.0), ("2", "b", 2, 0.0)]


def test_only_events_of_the_types_asked_for_count(tmp_path: Path) -> None:
    events = [event("a", 6, event_type="view"), event("a", 7, event_type="purchase"), event("a", 8)]
    folder = log(tmp_path, [answer("1", 5, ["a"])], events)
    assert read_impressions(folder)["outcomes"].to_list() == [3]
    bought = read_impressions(folder, Attribution(event_types=["purchase"]))
    assert bought.select("outcomes", "outcome_timestamp").rows() == [(1, 7)]


def test_an_instant_says_what_is_complete(tmp_path: Path) -> None:
    folder = log(tmp_path, [answer("1", 5, ["a"]), answer("2", 9, ["a"])], [event("a", 12)])
    for until, complete in ((None, [False, False]), (15, [True, False]), (19, [True, True])):
        joined = read_impressions(folder, Attribution(window=WINDOW), until)
        assert joined["complete"].to_list() == complete


def test_a_client_whose_clock_is_ahead_completes_nothing(tmp_path: Path) -> None:
    folder = log(tmp_path, [answer("1", 5, ["a"]), answer("2", 16, ["a"])], [event("a", 6), event("b", 10**15)])
    assert read_impressions(folder, Attribution(window=WINDOW))["complete"].to_list() == [True, False]


def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no answers/; name the folder that RECSYS_EXPOSURES named"):
        read_exposures(tmp_path)
    folder = log(tmp_path / "log", [answer("1", 5, ["a"])], [])
    pl.DataFrame({"request_id": ["1"]}).write_parquet(folder / "answers" / "part-9.parquet")
    with pytest.raises(DataError, match="holds parts that no service of this version wrote"):
        read_exposures(folder)
    with pytest.raises(ConfigError, match="window=0 microseconds holds no event"):
        Attribution(window=0)


def test_users_are_erased_from_every_part(tmp_path: Path) -> None:
    users = ["ann", "bob", None, "eve"]
    shown = [answer(str(number), 5 + number, ["a"], user_id=user) for number, user in enumerate(users)]
    folder = log(tmp_path, shown, [event("a", 6), event("a", 7, user_id="bob")])
    untouched = (folder / "answers" / "part-1.parquet").stat()
    assert erase_users(folder, ["ann", "eve"]) == {}
    assert read_exposures(folder)["user_id"].to_list() == ["bob", None]
    assert read_outcomes(folder)["user_id"].to_list() == ["bob"]
    assert (folder / "answers" / "part-1.parquet").stat() == untouched


def test_a_part_that_cannot_be_read_keeps_no_other_from_being_erased(tmp_path: Path) -> None:
    folder = log(tmp_path, [answer("1", 5, ["a"]), answer("2", 6, ["a"])], [event("a", 6)])
    broken = folder / "answers" / "part-0.parquet"
    broken.write_bytes(b"no parquet")
    assert list(erase_users(folder, ["ann"])) == [broken]
    broken.unlink()
    assert not len(read_exposures(folder)) + len(read_outcomes(folder))


def test_a_log_is_ingested_by_its_outcomes(tmp_path: Path) -> None:
    events = [event("a", TIME + 6, event_type="sale", value=2.5), event("b", TIME + 7), event("a", TIME + 6)]
    folder = log(tmp_path / "log", [answer("1", 5, ["a", "b"])], events)
    rows = ingest(IngestConfig(sources=(folder,), out=tmp_path / "dataset")).events()
    assert rows.select("user_id", "item_id", "timestamp", "event_type", "value").rows() == [
        ("ann", "a", TIME + 6, "sale", 2.5),
        ("ann", "a", TIME + 6, None, None),
        ("ann", "b", TIME + 7, None, None),
    ]
    empty = log(tmp_path / "empty", [answer("1", 5, ["a"])], [])
    with pytest.raises(DataError, match="an exposure log without outcomes: no client has sent an event yet"):
        ingest(IngestConfig(sources=(empty,), out=tmp_path / "none"))


def test_a_part_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it before all of it is on disk."""
    folder = log(tmp_path, [answer("1", 5, ["a"])], [])

    def ended(_: int) -> None:
        raise OSError("ended here")

    monkeypatch.setattr("recsys.exposures.os.fsync", ended)
    with pytest.raises(OSError, match="ended here"):
        write_part(exposures(answer("2", 6, ["b"])), folder / "answers" / "part-2.parquet")
    assert read_exposures(folder)["request_id"].to_list() == ["1"]
