"""Back-off, Retry-After, breaker and buckets, in a time of their own."""

import threading
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_jobs import FakeTime

from recsys.errors import ConfigError
from recsys.llm.breaker import CircuitBreaker
from recsys.llm.limits import Limits, TokenBucket
from recsys.llm.retries import Backoff, may_pass, retry_after


@given(st.integers(0, 2000), st.floats(0, 1, exclude_max=True))
def test_jitter_is_full_and_capped(retry: int, chance: float) -> None:
    backoff = Backoff(base=0.5, cap=60.0)
    limit = 60.0 if retry >= 7 else 0.5 * 2**retry
    assert backoff.seconds(retry, chance) == pytest.approx(chance * limit)


def test_which_statuses_may_pass() -> None:
    assert [status for status in range(400, 512) if may_pass(status)] == [408, 409, 429, *range(500, 512)]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("", None)],
)
def test_retry_after_in_seconds(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=0.0) == seconds


def test_retry_after_as_a_date() -> None:
    now = 1_700_000_000.0
    assert retry_after(formatdate(now + 90, usegmt=True), now) == 90.0
    assert retry_after(formatdate(now - 90, usegmt=True), now) == 0.0
    assert retry_after("Tue, 14 Nov 2023 22:14:50", now) == 90.0


@pytest.mark.parametrize("settings", [{"retries": -1}, {"base": 0.0}, {"base": 2.0, "cap": 1.0}])
def test_backoffs_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="give retries of at least 0 and 0 < base <= cap"):
        Backoff(**settings)  # type: ignore[arg-type]


def test_the_breaker_opens_tries_once_and_closes() -> None:
    time = FakeTime()
    breaker = CircuitBreaker(failures=3, seconds=30.0, clock=time.clock)
    for _ in range(2):
        breaker.enter()
        breaker.failed()
    breaker.enter()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert breaker.closed
    breaker.failed()
    assert not breaker.closed
    breaker.enter()
    assert time.sleeps == [30.0]
    breaker.failed()
    assert (breaker.closed, breaker.times_opened) == (False, 2)
    breaker.enter()
    assert time.sleeps == [30.0, 30.0]
    breaker.succeeded()
    assert breaker.closed
    breaker.enter()
    assert time.sleeps == [30.0, 30.0]


def test_half_open_lets_one_through_and_the_others_wait_for_it() -> None:
    time = FakeTime()
    breaker = CircuitBreaker(failures=1, seconds=30.0, clock=time.clock)
    breaker.failed()
    breaker.enter()
    through = threading.Semaphore(0)

    def enter() -> None:
        breaker.enter()
        through.release()

    others = [threading.Thread(target=enter, daemon=True) for _ in range(3)]
    for other in others:
        other.start()
    assert not through.acquire(timeout=0.2)
    breaker.succeeded()
    for other in others:
        other.join(timeout=10)
    assert not any(other.is_alive() for other in others)


@given(st.floats(1, 6000), st.lists(st.tuples(st.floats(0, 5), st.integers(0, 300)), min_size=1, max_size=40))
def test_a_bucket_never_hands_out_more_than_its_rate(per_minute: float, asked: list[tuple[float, int]]) -> None:
    """In any window: what begins within it, besides the last amount, is at most rate (T + 1)."""
    time = FakeTime()
    bucket, given_at, rate = TokenBucket(per_minute, time.clock), list[tuple[float, int]](), per_minute / 60
    for pause, amount in asked:
        time.now += pause
        given_at.append((time.now + bucket.take(float(amount)), amount))
    for first in range(len(given_at)):
        for last in range(first, len(given_at)):
            handed = sum(amount for _, amount in given_at[first:last])
            seconds = given_at[last][0] - given_at[first][0]
            assert handed <= rate * (seconds + 1) + max(amount for _, amount in given_at) + 1e-6


def test_requests_are_paced_and_what_is_given_back_is_free() -> None:
    time = FakeTime()
    limits = Limits(requests_per_minute=60.0, tokens_per_minute=600.0, clock=time.clock)
    for _ in range(4):
        limits.wait(10)
    assert time.sleeps == pytest.approx([1, 1, 1])
    limits.wait(100)
    limits.give_back(90)
    began = time.now
    limits.wait(10)
    assert time.now - began == pytest.approx(1)


def test_all_wait_while_the_server_asks_for_a_pause() -> None:
    time = FakeTime()
    limits = Limits(None, None, time.clock)
    limits.wait(10)
    limits.pause(20.0)
    limits.pause(5.0)
    limits.wait(10)
    limits.wait(10)
    assert time.sleeps == [20]
