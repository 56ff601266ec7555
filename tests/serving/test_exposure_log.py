"""What was shown is in the log as it was answered, whatever happens to the process, and no request waits for it."""

import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import polars as pl
import pytest
from fastapi.testclient import TestClient
from service_process import served
from test_service_metrics import samples

from recsys.errors import ConfigError
from recsys.exposures import Exposures, log_parts, read_exposures, read_impressions, read_outcomes
from serving import api, deletions, exposure_log

ASK = {"history": ["item-05", "item-30"], "k": 4}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "exposures"


@pytest.fixture
def start(client_of, sasrec, bert4rec, log) -> Callable[..., TestClient]:
    """`start(weights=…)`: a service that logs, with the variants control and new."""
    return lambda **settings: client_of(
        sasrec, variants={"new": str(bert4rec.folder)}, exposures=log, watch_seconds=0, **settings
    )


def post(client: Any, path: str, body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code in {200, 202}, answer.text
    return answer.json()


def stop(client: TestClient) -> None:
    """Drains and ends the service."""
    client.__exit__(None, None, None)


def soon(holds: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 30
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_every_answer_is_there_as_it_went_out_and_every_event(start, log) -> None:
    client = start(weights={"control": 3, "new": 1}, exposure_history=2)
    post(client, "/v1/events", [{"user_id": "u1", "item_id": f"item-{row}"} for row in (20, 21, 22)])
    answers = [post(client, "/v1/recommend", ASK | {"user_id": f"u{number}"}) for number in range(16)]
    page = post(client, "/v1/recommend", ASK | {"user_id": "u1", "after": answers[1]["next"], "exclude": ["item-07"]})
    batch = post(client, "/v1/recommend/batch", {"requests": [ASK | {"session_id": "s"}, {"history": []}]})["answers"]
    for kind in ("sale", None):
        first = answers[1]["items"][0]["item_id"]
        told = {"user_id": "u1", "item_id": first, "event_type": kind, "request_id": answers[1]["request_id"]}
        post(client, "/v1/events", {name: value for name, value in told.items() if value is not None})
    stop(client)
    rows = {row["request_id"]: row for row in read_exposures(log).to_dicts()}
    assert len(rows) == 19
    assert {answer["variant"] for answer in answers} == {"control", "new"}
    for answer in [*answers, page, *batch]:
        row = rows[answer["request_id"]]
        assert (row["variant"], row["model_version"], row["source"]) == (
            answer["variant"],
            answer["model_version"],
            answer["source"],
        )
        assert row["propensity"] == {"control": 0.75, "new": 0.25}[row["variant"]]
        assert row["item_ids"] == [item["item_id"] for item in answer["items"]]
        assert row["scores"] == pytest.approx([item["score"] for item in answer["items"]])
        assert abs(row["timestamp"] / 1e6 - time.time()) < 600
    told = rows[page["request_id"]]
    assert (told["user_id"], told["position"], told["history"]) == ("u1", 5, ["item-05", "item-30"])
    assert told["wishes"] == '{"k":4,"exclude":["item-07"]}'
    assert (rows[batch[0]["request_id"]]["session_id"], rows[batch[1]["request_id"]]["wishes"]) == ("s", None)
    assert read_outcomes(log).filter(item_id="item-20").height == 1
    credited = read_impressions(log).filter(pl.col("outcomes") > 0)
    assert credited.select("request_id", "item_id", "position", "outcomes").rows() == [
        (answers[1]["request_id"], first, 1, 2)
    ]


def test_what_came_too_late_for_its_client_was_not_shown(start, log, monkeypatch) -> None:
    client = start(shadows=("new",), request_seconds=2)
    answering, slow, released, done = api.Service.recommended, threading.Event(), threading.Event(), []

    def late(*given: Any) -> Any:
        if slow.is_set():
            done.append(released.wait(60))
        return answering(*given)

    monkeypatch.setattr(api.Service, "recommended", late)
    shown = post(client, "/v1/recommend", ASK)
    slow.set()
    assert client.post("/v1/recommend", json=ASK).status_code == 503
    assert client.post("/v1/recommend/batch", json={"requests": [ASK]}).status_code == 503
    released.set()
    assert soon(lambda: done == [True, True])
    stop(client)
    assert read_exposures(log)["request_id"].to_list() == [shown["request_id"]]
    assert read_exposures(log, shadow=True)["request_id"].to_list() == [shown["request_id"]]


def test_answers_of_shadows_lie_apart(start, log) -> None:
    client = start(shadows=("new",))
    answer = post(client, "/v1/recommend", ASK)
    stop(client)
    (shown,), (unseen,) = read_exposures(log).to_dicts(), read_exposures(log, shadow=True).to_dicts()
    assert (shown["variant"], unseen["variant"]) == ("control", "new")
    assert shown["request_id"] == unseen["request_id"] == answer["request_id"]
    assert shown["item_ids"] != unseen["item_ids"]


def test_parts_end_by_size_and_by_time(start, log) -> None:
    by_size = start(exposure_bytes=600, exposure_seconds=3_600)
    for _ in range(30):
        post(by_size, "/v1/recommend", ASK)
    assert soon(lambda: len(log_parts(log, "answers")) > 3)
    stop(by_size)
    assert len(read_exposures(log)) == 30
    by_time = start(exposure_seconds=0.05)
    before = len(log_parts(log, "answers"))
    post(by_time, "/v1/recommend", ASK)
    assert soon(lambda: len(log_parts(log, "answers")) == before + 1)
    assert samples(by_time)["recsys_exposures_total", "answers"] == 1


def test_a_slow_disk_costs_rows_and_not_requests(start, log, monkeypatch) -> None:
    released, writing = threading.Event(), exposure_log.write_part

    def slow(rows: pl.DataFrame, part: Path) -> None:
        released.wait(30)
        writing(rows, part)

    monkeypatch.setattr("serving.exposure_log.write_part", slow)
    client = start(exposure_bytes=1, exposure_waiting=3)
    for _ in range(20):
        post(client, "/v1/recommend", ASK)
    lost = samples(client)["recsys_exposures_lost_total", "answers", "dropped"]
    assert lost >= 20 - 3 - 2
    released.set()
    stop(client)
    assert len(read_exposures(log)) == 20 - lost


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond some bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_a_disk_refuses_waits_and_is_written_later(start, log, monkeypatch, caplog) -> None:
    monkeypatch.setattr("serving.exposure_log.SECONDS_TO_RETRY", 0.01)
    client = start(exposure_seconds=0.01)
    with full_disk():
        post(client, "/v1/recommend", ASK)
        refused = soon(lambda: "exposures: cannot be written, tried again: [Errno 27]" in caplog.text)
        left = list((log / "answers").iterdir())
    assert refused
    assert not left, "nothing half written"
    assert soon(lambda: log_parts(log, "answers"))
    post(client, "/v1/recommend", ASK)
    stop(client)
    assert len(read_exposures(log)) == 2


def test_rows_that_make_no_part_are_counted_and_keep_no_others_out(start, log, monkeypatch) -> None:
    failures, writing = [ValueError("cannot be a part")], exposure_log.write_part

    def write(rows: pl.DataFrame, part: Path) -> None:
        if failures:
            raise failures.pop()
        writing(rows, part)

    monkeypatch.setattr("serving.exposure_log.write_part", write)
    client = start(exposure_bytes=1)
    post(client, "/v1/recommend", ASK)
    assert soon(lambda: samples(client).get(("recsys_exposures_lost_total", "answers", "unwritten")) == 1)
    post(client, "/v1/recommend", ASK)
    stop(client)
    assert len(read_exposures(log)) == 1


def test_large_requests_fill_the_queue_by_their_bytes(start, monkeypatch) -> None:
    released = threading.Event()
    monkeypatch.setattr("serving.exposure_log.write_part", lambda *_: released.wait(30))
    client = start(exposure_bytes=1, exposure_waiting_bytes=100_000)
    for number in range(12):
        post(client, "/v1/recommend", ASK | {"exclude": [f"{number}-{'x' * 500}-{each}" for each in range(100)]})
    lost = samples(client)["recsys_exposures_lost_total", "answers", "dropped"]
    released.set()
    assert 12 - 2 - 2 <= lost <= 12 - 2


@pytest.fixture
def ann_and_bob(start) -> TestClient:
    """A service that showed something to both, and knows an event of each."""
    client = start()
    for user in ("ann", "bob"):
        post(client, "/v1/events", {"user_id": user, "item_id": "item-05"})
        post(client, "/v1/recommend", {"user_id": user})
    return client


def without_ann(log: Path) -> bool:
    """Whether no file of the log holds the name."""
    return not [path for path in log.rglob("*") if path.is_file() and b"ann" in path.read_bytes()]


def test_a_deleted_user_is_taken_out_of_parts_and_of_what_waits(start, log, ann_and_bob) -> None:
    stop(ann_and_bob)
    second = start()
    for user in ("ann", "bob"):
        post(second, "/v1/recommend", {"user_id": user})
    second.delete("/v1/users/ann")
    stop(second)
    assert read_exposures(log)["user_id"].to_list() == ["bob", "bob"]
    assert read_outcomes(log)["user_id"].to_list() == ["bob"]
    assert without_ann(log)


def test_what_waited_behind_a_slow_disk_is_not_written_after_the_deletion(start, log, monkeypatch) -> None:
    released, begun, writing = threading.Event(), threading.Event(), exposure_log.write_part

    def slow(rows: pl.DataFrame, part: Path) -> None:
        begun.set()
        released.wait(30)
        writing(rows, part)

    monkeypatch.setattr("serving.exposure_log.write_part", slow)
    client = start(exposure_bytes=1)
    for user in ("ann", "ann", "bob", "ann"):
        post(client, "/v1/recommend", ASK | {"user_id": user})
    assert begun.wait(30)
    client.delete("/v1/users/ann")
    back = post(client, "/v1/recommend", ASK | {"user_id": "ann"})
    released.set()
    assert soon(lambda: len(log_parts(log, "answers")) >= 3)
    stop(client)
    shown = read_exposures(log)
    assert set(shown["user_id"]) <= {"bob", "ann"}
    assert shown.filter(user_id="bob").height == 1
    assert set(shown.filter(user_id="ann")["request_id"]) <= {back["request_id"]}, "what came before is gone"


def test_what_a_user_does_after_the_deletion_is_logged(log, ann_and_bob) -> None:
    ann_and_bob.delete("/v1/users/ann")
    assert soon(lambda: without_ann(log))
    back = post(ann_and_bob, "/v1/recommend", {"user_id": "ann"})
    stop(ann_and_bob)
    assert read_exposures(log).filter(user_id="ann")["request_id"].to_list() == [back["request_id"]]


def test_a_deletion_reaches_what_waits_in_other_processes(start, log, ann_and_bob) -> None:
    start().delete("/v1/users/ann")
    stop(ann_and_bob)
    assert read_exposures(log)["user_id"].to_list() == ["bob"]
    assert without_ann(log)


def test_a_deletion_that_was_not_finished_goes_on_after_the_next_start(start, log, ann_and_bob, monkeypatch) -> None:
    stop(ann_and_bob)
    with monkeypatch.context() as refusing:
        refusing.setattr("serving.deletions.erase_users", lambda folder, _: {folder: OSError(5, "I/O error")})
        second = start()
        second.delete("/v1/users/ann")
        stop(second)
    assert not without_ann(log)
    third = start()
    assert soon(lambda: without_ann(log))
    stop(third)
    assert read_exposures(log)["user_id"].to_list() == ["bob"]


def test_several_deletions_are_one_pass_and_writing_goes_on_meanwhile(start, log, ann_and_bob, monkeypatch) -> None:
    stop(ann_and_bob)
    released, passes, erasing = threading.Event(), [], deletions.erase_users

    def slow(folder: Path, user_ids: set[str]) -> dict[Path, Exception]:
        passes.append(user_ids)
        released.wait(30)
        return erasing(folder, user_ids)

    monkeypatch.setattr("serving.deletions.erase_users", slow)
    client = start(exposure_bytes=1)
    client.delete("/v1/users/eve")
    assert soon(lambda: passes)
    client.delete("/v1/users/ann")
    client.delete("/v1/users/bob")
    parts = len(log_parts(log, "answers"))
    post(client, "/v1/recommend", ASK)
    assert soon(lambda: len(log_parts(log, "answers")) == parts + 1)
    released.set()
    stop(client)
    assert passes[:2] == [{"eve"}, {"ann", "bob"}] or passes[:2] == [{"eve"}, {"eve", "ann", "bob"}]
    assert read_exposures(log)["user_id"].to_list() == [None]


def test_a_part_that_cannot_be_read_stops_neither_deletions_nor_the_log(start, log, ann_and_bob, caplog) -> None:
    stop(ann_and_bob)
    broken = log / "answers" / "part-0.parquet"
    broken.write_bytes(b"no parquet")
    unfinished = log / "answers" / ".part-1.parquet"
    unfinished.write_bytes(b"what a killed process left of ann")
    client = start(exposure_bytes=1)
    client.delete("/v1/users/ann")
    assert soon(lambda: without_ann(log))
    assert f"{broken}: may hold rows of a deleted user" in caplog.text
    broken.unlink()
    post(client, "/v1/recommend", ASK)
    stop(client)
    assert read_exposures(log)["user_id"].to_list() == ["bob", None]


def test_a_deletion_that_cannot_be_noted_is_refused(ann_and_bob, monkeypatch, caplog) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serving.deletions.write_whole", full)
    assert ann_and_bob.delete("/v1/users/ann").status_code == 503
    assert "the exposure log cannot note that a user was deleted" in caplog.text


def test_after_sigkill_every_part_can_be_read(sasrec, log, tmp_path) -> None:
    """Killed at once while four threads ask and parts are written all the time."""
    settings = {"exposures": log, "exposure_bytes": 2_000, "exposure_seconds": 0.01}
    with served(sasrec.folder, tmp_path / "state.sqlite", tmp_path / "log", **settings) as service:

        def ask() -> int:
            with httpx.Client(base_url=service.address) as client:
                for number in range(10_000):
                    try:
                        client.post("/v1/recommend", json=ASK)
                    except httpx.TransportError:
                        return number
            return 10_000

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask) for _ in range(4)]
            assert soon(lambda: len(log_parts(log, "answers")) >= 5)
            service.end(signal.SIGKILL)
            sent = sum(each.result() for each in asked)
    parts = log_parts(log, "answers")
    rows = sum(len(Exposures.validate(pl.read_parquet(part))) for part in parts)
    assert len(parts) >= 5
    assert 0 < rows <= sent + 4
    assert len(read_exposures(log)) == rows


def test_sigterm_writes_what_waits(sasrec, log, tmp_path) -> None:
    with served(sasrec.folder, tmp_path / "state.sqlite", tmp_path / "log", exposures=log) as service:
        for _ in range(7):
            httpx.post(f"{service.address}/v1/recommend", json=ASK)
        service.end()
    assert len(read_exposures(log)) == 7


def test_a_place_that_cannot_be_written_stops_the_start(start, log) -> None:
    log.write_text("a file")
    with pytest.raises(ConfigError, match=r"exposures: cannot log there .*set RECSYS_EXPOSURES"):
        start()
