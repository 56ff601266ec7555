"""Kept keys: always those of the history that was asked for, whatever was kept before."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.stored_ranker import RankerCard, StoredRanker
from serving.keys import Keys

LARGE = 10**9


class NoGraph:
    """Keys alone are looked at."""

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        raise AssertionError((outputs, inputs))


def ranker(rows: int = 30) -> StoredRanker:
    """The key of row r is (r, r + 100)."""
    card = RankerCard(
        name="dare",
        config={},
        max_len=60,
        blocks=4,
        least_places=2,
        recent=0,
        candidates=500,
        shortest=1,
        weight=None,
    )
    keys = np.arange(rows, dtype=np.float32)[:, None] + np.array([0, 100], dtype=np.float32)
    return StoredRanker(
        card=card,
        keys=keys,
        place_scores=np.zeros(61, dtype=np.float32),
        log_share=np.zeros(rows, dtype=np.float32),
        graph=NoGraph(),
    )


def asked(keys: Keys, user_id: str | None, *rows: int) -> str:
    """How the keys came about, once they were checked."""
    user, origin = keys.of(user_id, np.array(rows))
    assert user.length == len(rows)
    assert user.rows[: len(rows)].tolist() == list(rows)
    assert user.keys[: len(rows), 0].tolist() == list(rows)
    assert user.keys[: len(rows), 1].tolist() == [row + 100 for row in rows]
    assert len(user.rows) == len(user.keys) >= ranker().places(len(rows))
    assert np.isfinite(user.keys).all()
    return origin


def test_keys_are_appended_event_by_event_and_kept() -> None:
    keys = Keys(ranker(), LARGE, 60)
    assert asked(keys, "ann", 3, 1, 4) == "gathered"
    assert asked(keys, "ann", 3, 1, 4) == "kept"
    assert asked(keys, "ann", 3, 1, 4, 1, 5) == "appended"
    assert asked(keys, "ann", 3, 1, 4, 1) == "kept", "a shorter history is the beginning of the one that is kept"
    assert asked(keys, "ann", 1, 4, 1, 5, 9) == "appended", "the oldest event was forgotten"
    assert asked(keys, "bob", 3, 1, 4) == "gathered"
    assert keys.size().entries == 2


def test_a_history_that_does_not_agree_is_gathered_anew() -> None:
    keys = Keys(ranker(), LARGE, 60)
    assert asked(keys, "ann", 3, 1, 4) == "gathered"
    assert asked(keys, "ann", 3, 2, 4) == "gathered"
    assert asked(keys, "ann", 3, 1, 4) == "gathered"
    assert asked(keys, "ann", 9) == "gathered"


def test_what_another_request_reads_is_never_written_over() -> None:
    """Two sessions go on from the same events, and a third from one of them."""
    keys = Keys(ranker(), LARGE, 60)
    asked(keys, "ann", 3, 1, 4)
    before, _ = keys.of("ann", np.array([3, 1, 4, 1]))
    assert asked(keys, "ann", 3, 1, 4, 2) == "gathered"
    assert asked(keys, "ann", 3, 1, 4, 2, 7) == "appended"
    assert before.keys[:4, 0].tolist() == [3, 1, 4, 1]


def test_nobodys_keys_are_not_kept_nor_any_without_memory() -> None:
    keys = Keys(ranker(), LARGE, 60)
    assert [asked(keys, None, 3, 1), asked(keys, None, 3, 1)] == ["gathered", "gathered"]
    without = Keys(ranker(), 0, 60)
    assert [asked(without, "ann", 3, 1), asked(without, "ann", 3, 1)] == ["gathered", "gathered"]
    assert keys.size().bytes == without.size().bytes == 0


def test_arrays_have_an_end() -> None:
    keys = Keys(ranker(), LARGE, 60)
    history = [1]
    origins = []
    while len(history) < 60:
        origins.append(asked(keys, "ann", *history))
        history.append(len(history) % 29 + 1)
    assert origins[0] == "gathered"
    assert 1 < origins.count("gathered") < 20
    assert origins.count("appended") > 39


def test_the_longest_unused_goes_first_and_bytes_are_counted() -> None:
    measuring = Keys(ranker(), LARGE, 60)
    asked(measuring, "ann", 3)
    one = measuring.size().bytes
    assert one > 8 * (8 + 2 * 4)
    keys = Keys(ranker(), 2 * one, 60)
    for user in ("ann", "bob", "ann", "cid"):
        asked(keys, user, 3)
    assert (keys.size().entries, keys.size().bytes) == (2, 2 * one)
    assert [asked(keys, user, 3) for user in ("ann", "cid", "bob")] == ["kept", "kept", "gathered"]
    small = Keys(ranker(), one - 1, 60)
    assert [asked(small, "ann", 3), asked(small, "ann", 3)] == ["gathered", "gathered"]


def test_what_is_not_used_is_forgotten() -> None:
    now = [0.0]
    keys = Keys(ranker(), LARGE, 60, clock=lambda: now[0])
    asked(keys, "ann", 3)
    asked(keys, "bob", 3)
    now[0] = 50
    assert asked(keys, "ann", 3) == "kept"
    now[0] = 70
    assert keys.size().entries == 1
    assert asked(keys, "bob", 3) == "gathered"
    assert asked(keys, "ann", 3) == "kept"


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=2, max_size=12))
def test_any_histories_of_one_user_get_their_own_keys(histories: list[list[int]]) -> None:
    """Few items on purpose: histories agree in many places by chance."""
    keys = Keys(ranker(), LARGE, 60)
    for history in histories:
        asked(keys, "ann", *history)


@pytest.mark.parametrize("users", [1, 3])
def test_threads_share_a_cache(users: int) -> None:
    keys = Keys(ranker(), 4_000, 60)
    rng = np.random.default_rng(0)
    whole = rng.integers(1, 29, 50)
    starts = rng.integers(0, 5, 400)
    stops = starts + rng.integers(1, 40, 400)

    def one(number: int) -> None:
        asked(keys, f"user {number % users}", *whole[starts[number] : stops[number]].tolist())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(400)))
