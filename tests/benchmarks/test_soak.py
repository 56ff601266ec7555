"""What the soak counts as failed, refused on purpose and lost."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import soak
from benchmarks.load_client import Answered, Due, post
from benchmarks.soak import Soaked


def event(number: int) -> Due:
    return Due(0.0, "event", post("/v1/events", json.dumps({"user_id": "ann", "event_id": str(number)}).encode()))


def answered(kind: str, status: int, body: bytes = b"") -> Answered:
    return Answered(kind, status, 0.01, 0.0, body)


def test_events_are_acknowledged_refused_or_failed() -> None:
    soaked = Soaked()
    due = [event(0), event(1), event(2), Due(0.0, "by user", b""), Due(0.0, "item", b"")]
    silent = answered("by user", 200, b'{"state":"unavailable"}')
    soaked.take(
        due, [answered("event", 202), answered("event", 503), answered("event", 500), silent, answered("item", 409)]
    )
    assert soaked.acknowledged == {"ann": {"0"}}
    assert soaked.refused == [due[1], due[2]]
    assert (soaked.without_state, soaked.failed) == (1, 2)
    soaked.swaps["409: refused"] += 1
    soaked.swaps["swapped"] += 1
    assert soaked.failed == 3


def test_refused_events_are_sent_again() -> None:
    soaked = Soaked(refused=[event(7)])
    random: Any = soak.Random(0)
    sent = soak._requests(soaked, random, [f"item-{number}" for number in range(30)], rate=5)
    assert sent[0].content == event(7).content
    assert [one.at for one in sent] == sorted(one.at for one in sent)


def test_growth_compares_the_last_quarter_with_the_second() -> None:
    soaked = Soaked(memory=[(float(at), own, 0.0) for at, own in enumerate([50, 90, 100, 100, 100, 100, 120, 120])])
    assert soaked.growth == pytest.approx(1.2)


def test_what_was_acknowledged_and_is_gone_is_lost(monkeypatch) -> None:
    soaked = Soaked(acknowledged={"ann": {"1", "2"}, "bob": {"3"}})
    bodies = [{"events": [{"event_id": "2"}]}, {"events": [{"event_id": "3"}, {"event_id": "4"}]}]
    monkeypatch.setattr(soak, "ask_all", lambda *_: [(200, json.dumps(body).encode()) for body in bodies])
    assert soak._lost(SimpleNamespace(port=0), soaked) == 1  # type: ignore[arg-type]
