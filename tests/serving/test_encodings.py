"""Kept encodings: what is found again, what is forgotten, and that answers are those of encoding anew."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.encoder import Encoding
from serving.encodings import ENTRY_BYTES, MOST_STEPS, Encodings

LARGE = 10**9


@dataclass
class Counting:
    """An encoder whose vector is the history itself (its last eight rows), and which counts what it computes."""

    goes_on: bool = True
    calls: list[tuple[str, int]] = field(default_factory=list)

    def encode_all(self, histories: Sequence[np.ndarray]) -> list[Encoding]:
        self.calls += [("encode", len(rows)) for rows in histories]
        return [encoding_of(rows) for rows in histories]

    def go_on(self, before: Encoding, row: int) -> Encoding:
        rows = np.append(before.memory[0], np.int64(row))
        self.calls.append(("step", len(rows)))
        return encoding_of(rows)


def encoding_of(rows: np.ndarray) -> Encoding:
    vector = np.zeros((1, 8), dtype=np.float32)
    vector[0, : min(8, len(rows))] = rows[-8:]
    return Encoding(vector, (rows.copy(),))


def rows(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_the_same_history_is_encoded_once_and_a_longer_one_by_steps() -> None:
    encoder = Counting()
    cache = Encodings(encoder, LARGE, 60)  # type: ignore[arg-type]
    origins = [cache.of(rows(*range(1, length + 1)))[1] for length in (3, 3, 4, 6, 6 + MOST_STEPS, 7 + 2 * MOST_STEPS)]
    assert origins == ["full", "cached", "step", "step", "step", "full"]
    assert encoder.calls == [
        ("encode", 3),
        *[("step", length) for length in range(4, 7 + MOST_STEPS)],
        ("encode", 7 + 2 * MOST_STEPS),
    ]
    assert cache.size().entries == 2, "what was gone on from is dropped"


def test_another_order_or_a_window_that_slid_is_another_history() -> None:
    encoder = Counting()
    cache = Encodings(encoder, LARGE, 60)  # type: ignore[arg-type]
    for history in (rows(1, 2, 3), rows(2, 1, 3), rows(2, 3, 4), rows(1, 2), rows(1, 22)):
        encoding, origin = cache.of(history)
        assert origin == "full"
        np.testing.assert_array_equal(encoding.vector(), encoding_of(history).vector())


def test_a_model_that_cannot_go_on_is_asked_anew() -> None:
    cache = Encodings(Counting(goes_on=False), LARGE, 60)  # type: ignore[arg-type]
    assert [cache.of(history)[1] for history in (rows(1), rows(1, 2), rows(1, 2), rows(1))] == [
        "full",
        "full",
        "cached",
        "cached",
    ]


def test_the_longest_unused_goes_first_and_bytes_are_counted() -> None:
    one = encoding_of(rows(1)).nbytes + 8 + ENTRY_BYTES
    cache = Encodings(Counting(), 3 * one, 60)  # type: ignore[arg-type]
    for history in (rows(1), rows(2), rows(3), rows(1), rows(4)):
        cache.of(history)
    assert cache.size().bytes == 3 * one
    assert [cache.of(history)[1] for history in (rows(1), rows(3), rows(4), rows(2))] == [
        "cached",
        "cached",
        "cached",
        "full",
    ]
    cache.of(rows(*range(1000)))
    assert cache.size().entries == 3, "one that is larger than all room drives none out"


def test_what_was_being_encoded_when_all_was_forgotten_is_not_kept() -> None:
    class Slow(Counting):
        def encode_all(self, histories: Sequence[np.ndarray]) -> list[Encoding]:
            cache.clear()
            return super().encode_all(histories)

    cache = Encodings(Slow(), LARGE, 60)  # type: ignore[arg-type]
    assert [cache.of(rows(1))[1] for _ in range(2)] == ["full", "full"]
    assert cache.size().entries == 0


def test_nothing_is_kept_without_room() -> None:
    cache = Encodings(Counting(), 0, 60)  # type: ignore[arg-type]
    assert [cache.of(rows(1))[1] for _ in range(2)] == ["full", "full"]


def test_what_is_not_used_goes_when_its_time_has_come() -> None:
    now = 0.0
    cache = Encodings(Counting(), LARGE, 10, clock=lambda: now)  # type: ignore[arg-type]
    cache.of(rows(1))
    cache.of(rows(2))
    now = 9.0
    assert cache.of(rows(1))[1] == "cached"
    now = 11.0
    assert cache.size().entries == 1
    assert cache.of(rows(2))[1] == "full"
    now = 18.9
    assert cache.of(rows(1))[1] == "cached"


def test_many_threads_get_their_own_histories() -> None:
    cache = Encodings(Counting(), 20_000, 60)  # type: ignore[arg-type]

    def ask(number: int) -> None:
        rng = np.random.default_rng(number)
        history = rows(number % 5)
        for _ in range(50):
            history = np.append(history, rng.integers(1, 4))[-20:]
            encoding, _ = cache.of(history)
            np.testing.assert_array_equal(encoding.vector(), encoding_of(history).vector())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(32)))
    held = sum(entry.bytes for entry in cache._entries.values())
    assert cache.size().bytes == held <= 20_000


@pytest.fixture
def clients(client_of, request) -> tuple[TestClient, TestClient]:
    """The same bundle with and without kept encodings."""
    tiny = request.getfixturevalue(request.param)
    return client_of(tiny), client_of(tiny, encoding_cache_bytes=0)


@pytest.mark.parametrize("clients", ["sasrec", "rearec", "bert4rec"], indirect=True)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=30), st.integers(0, 2))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_are_the_same_with_and_without(
    clients: tuple[TestClient, TestClient], events: list[tuple[int, int]], steps: int
) -> None:
    """Three users' events come in any order, and each is asked about after each of them; windows of ten slide."""
    histories: dict[int, list[str]] = {}
    known: set[tuple[str, ...]] = set()
    clients[0].app.state.variants.control.service.recommender._encodings.clear()  # type: ignore[attr-defined]
    for user, item in events:
        histories.setdefault(user, []).append(f"item-{item + 20:02}")
        body = {"history": histories[user], "k": 7}
        most = clients[0].get("/version").json()["reasoning_steps"]
        body |= {"reasoning_steps": min(steps, most)} if most else {}
        kept, anew = (client.post("/v1/recommend", json=body).json() for client in clients)
        assert [item["score"] for item in kept["items"]] == pytest.approx(
            [item["score"] for item in anew["items"]], abs=1e-4
        )
        assert anew["encoding"] == "full"
        window = tuple(histories[user][-10:])
        if window in known:
            assert kept["encoding"] == "cached"
        elif window[:-1] in known and "keys" in kept_memory(clients[0]):
            assert kept["encoding"] == "step"
        known.add(window)
        known.discard(window[:-1])


def kept_memory(client: TestClient) -> set[str]:
    """What the bundle's encoder gives beside vectors."""
    encoder = client.app.state.variants.control.service.encoder  # type: ignore[attr-defined]
    return {"keys"} if encoder.goes_on else set()


def test_the_answer_and_the_metrics_say_where_an_encoding_came_from(client: TestClient) -> None:
    asked = [["item-20"], ["item-20"], ["item-20", "item-21"], [], ["nobody-knows"]]
    answers = [client.post("/v1/recommend", json={"history": history}).json()["encoding"] for history in asked]
    assert answers == ["full", "cached", "step", None, None]
    text = client.get("/metrics").text
    for origin in ("full", "cached", "step"):
        assert f'recsys_encodings_total{{origin="{origin}"}} 1.0' in text
    assert "recsys_encoding_cache_entries 2.0" in text, "this history, and the first one that the start asks for"


def test_a_bundle_that_cannot_go_on_still_keeps_encodings(client_of, bert4rec) -> None:
    client = client_of(bert4rec)
    asked = [["item-20"], ["item-20", "item-21"], ["item-20", "item-21"]]
    answers = [client.post("/v1/recommend", json={"history": history}).json()["encoding"] for history in asked]
    assert answers == ["full", "full", "cached"]
