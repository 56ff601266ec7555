"""The load tool: latencies count from when a request was due, and the mix is what it says."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from random import Random

import numpy as np
import pytest

from benchmarks.load import FILTERS, asked, filters_of, summary
from benchmarks.load_bundles import ITEMS_A_CLUSTER, Made
from benchmarks.load_client import Answered, Due, ask_all, poisson, post, send_all
from benchmarks.load_page import page

STALL = 0.4


class Stalls(BaseHTTPRequestHandler):
    """Answers one request after the other; one that says so takes long."""

    protocol_version = "HTTP/1.0"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(STALL if b"stall" in body else 0)
        self.send_response(500 if b"bad" in body else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Stalls) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_what_waits_behind_a_slow_answer_is_charged_from_when_it_was_due(port) -> None:
    due = [Due(0.0, "slow", post("/", b"stall")), *(Due(0.02 * n, "quick", post("/", b"")) for n in range(1, 6))]
    answered = send_all(port, due)
    assert [one.status for one in answered] == [200] * 6
    for request, answer in zip(due, answered, strict=True):
        assert answer.seconds > STALL - request.at - 0.01, "a closed loop would count nothing of the wait"


def test_errors_and_silence_are_counted(port) -> None:
    answered = send_all(port, [Due(0, "a", post("/", b"bad")), Due(0, "b", post("/", b""))])
    assert [one.status for one in answered] == [500, 200]
    assert ask_all(1, [post("/", b"")]) == [(0, b"")]
    found = summary([*answered, Answered("a", 0, 1.0, 0.0, b"")])["kinds"]
    assert {kind: (one["requests"], one["errors"]) for kind, one in found.items()} == {
        "all": (3, 2),
        "a": (2, 2),
        "b": (1, 0),
    }


def test_percentiles_are_of_all_and_of_each_kind() -> None:
    answered = [Answered("x", 200, number / 1e3, 0.0, b'{"encoding": "step"}') for number in range(1001)]
    found = summary(answered)
    assert found["kinds"]["x"] == found["kinds"]["all"]
    expected = {"p50": 500, "p95": 950, "p99": 990, "p99.9": 999}
    assert {name: found["kinds"]["x"][name] for name in expected} == pytest.approx(expected)
    assert found["encodings"] == {"step": 1001}


def test_arrivals_are_random_at_the_rate() -> None:
    moments = poisson(200, 50, Random(0))
    gaps = np.diff(moments)
    assert len(moments) == pytest.approx(200 * 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "as long as their mean, as exponential gaps are"
    assert max(moments) < 50


def test_filters_let_one_percent_pass() -> None:
    numbers = np.random.default_rng(0).permutation(np.arange(10, 5_010)).astype(float)
    found = filters_of(numbers)
    bounds = [condition["item_id"] for condition in found]
    assert [int(((numbers >= one["min"]) & (numbers <= one["max"])).sum()) for one in bounds] == [50] * FILTERS
    assert len({one["min"] for one in bounds}) == FILTERS


def test_made_items_lie_in_clusters_and_users_read_around_in_a_few() -> None:
    made = Made(2_000)
    vectors = made.vectors()[1:].reshape(made.clusters, ITEMS_A_CLUSTER, -1)
    within = np.einsum("cid,cjd->c", vectors[:, :10], vectors[:, 10:20]).mean() / 100
    across = np.einsum("cid,cjd->c", vectors[:-1, :10], vectors[1:, 10:20]).mean() / 100
    assert within > 0.5 > 0.1 > abs(across)
    histories = made.histories(50)
    assert max(len(set((history - 1) // ITEMS_A_CLUSTER)) for history in histories) <= 4
    assert all(1 <= history.min() and history.max() <= 2_000 for history in histories)


def test_a_request_is_whole() -> None:
    head, _, body = asked({"user_id": "ann"}).partition(b"\r\n\r\n")
    assert json.loads(body) == {"user_id": "ann"}
    assert f"Content-Length: {len(body)}".encode() in head


def test_the_page_says_what_was_missed() -> None:
    case = {"name": "tiny", "made": None, "rate": 300, "most": 15, "cells": ["mixed", "ceiling"]}
    common = {"case": case, "date": "2026-01-01", "commit": "abc", "load": 0.5, "resident": 300.0, "own": 200.0}
    common["index"] = {"kind": "flat", "recall": 1.0}
    one = {"p50": 1.0, "p95": 2.0, "p99": 16.0, "p99.9": 20.0, "requests": 10, "errors": 0}
    mixed = {
        **common,
        "cell": "mixed",
        "kinds": dict.fromkeys(("all", "event", "new user"), one),
        "late": 0.1,
        "encodings": {"step": 3},
    }
    rates = {"ours": 400.0, "empty": 700.0, "empty_loop": 900.0, "ratio": 0.57, "ratio_loop": 0.44}
    text = page([mixed, {**common, "cell": "ceiling", "cpu_milliseconds": 1.5, **rates}])
    assert "p99 < 15: missed" in text
    assert ">= 0.5: met" in text
    assert not re.search(r"\| event .*(met|missed)", text)
