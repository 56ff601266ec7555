"""Jobs: the ladder from strict JSON to no value, answers paid once, a budget that holds, an account that adds up."""

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from llm_jobs import SCHEMA, FakeTime, Told, call_of, job_of

from recsys.errors import BudgetError, ConfigError, EndpointError
from recsys.llm.budget import Budget, Limit, Prices
from recsys.llm.cache import AnswerCache, Entry, default_cache
from recsys.llm.calls import Answer, Call, Message, Permit, Refused, Sampling, Usage
from recsys.llm.job import DAY, REFUSALS_IN_A_ROW, JobConfig, Outcome
from recsys.llm.tokens import most_prompt_tokens

GOOD = '{"n": 3}'


def said(text: str, prompt: int = 100, output: int = 10, cached: int = 0, finish: str = "stop") -> Answer:
    """With a usage."""
    return Answer(text=text, usage=Usage(prompt=prompt, cached=cached, output=output), finish_reason=finish)


def test_the_ladder(tmp_path: Path) -> None:
    told = Told(["no", "still no", GOOD, f"so: {GOOD}", "no", GOOD, Refused("too long"), "no", Refused("too long")])
    job = job_of(told, tmp_path / "answers.sqlite", config=JobConfig(fallback={"n": 0}))
    outcomes = job.ask_all([call_of(f"question {number}") for number in range(6)])
    assert outcomes == [
        Outcome(value={"n": 0}, how="invalid", problem=outcomes[0].problem),
        Outcome(value={"n": 3}, how="strict"),
        Outcome(value={"n": 3}, how="extracted"),
        Outcome(value={"n": 3}, how="asked again", problem=outcomes[3].problem),
        Outcome(value={"n": 0}, how="refused", problem="too long"),
        Outcome(value={"n": 0}, how="refused", problem="too long"),
    ]
    assert [outcome.valid for outcome in outcomes] == [False, True, True, True, False, False]
    assert "it is not JSON" in str(outcomes[0].problem)
    first, second = told.asked[:2]
    assert second.messages[:1] == first.messages
    assert second.messages[1] == Message(role="assistant", content="no")
    assert "it is not JSON" in second.messages[2].content


@pytest.mark.parametrize("allowed", [False, True])
def test_an_answer_that_was_cut_off_is_wrong_unless_allowed(tmp_path: Path, allowed: bool) -> None:
    told = Told([said(GOOD, finish="length"), said('{"n": 4}')])
    job = job_of(told, tmp_path / "answers.sqlite", config=JobConfig(allow_truncated=allowed))
    outcome = job.ask(call_of("question"))
    assert outcome.value == {"n": 3 if allowed else 4}
    if not allowed:
        assert "cut off after 20 tokens" in told.asked[1].messages[-1].content


def test_a_second_job_asks_nothing_and_finds_the_same(tmp_path: Path) -> None:
    answers = ["no", GOOD, GOOD, "no", "no", Refused("too long")]
    calls = [call_of(f"question {number}") for number in range(4)]
    first = job_of(Told(answers), tmp_path / "answers.sqlite")
    outcomes = first.ask_all(calls)
    again = job_of(Told([]), tmp_path / "answers.sqlite")
    heard: list[int] = []
    assert again.ask_all(calls, heard.append) == outcomes
    assert (again.account.calls, again.account.cache_hits, sum(heard)) == (0, 5, 4)
    assert (first.account.calls, first.account.cache_hits, first.account.refused) == (5, 0, 1)
    assert again.account.earlier_tokens == first.account.prompt_tokens + first.account.output_tokens


def test_a_job_that_ended_between_an_answer_and_its_correction_goes_on_there(tmp_path: Path) -> None:
    """The first answer is found once to see what is left and once to go on; it counts once."""
    with pytest.raises(EndpointError):
        job_of(Told([said("no"), EndpointError("gone")]), tmp_path / "a").ask_all([call_of("question")])
    told = Told([said(GOOD)])
    job = job_of(told, tmp_path / "a")
    assert job.ask_all([call_of("question")])[0].how == "asked again"
    assert [len(call.messages) for call in told.asked] == [3]
    assert (job.account.calls, job.account.cache_hits, job.account.earlier_tokens) == (1, 1, 110)
    assert job.budget.tokens == 220


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    told, heard = Told(['{"n": 1}', '{"n": 2}']), list[int]()
    outcomes = job_of(told, tmp_path / "a").ask_all([call_of(text) for text in "abaab"], heard.append)
    assert [outcome.value["n"] for outcome in outcomes] == [1, 2, 1, 1, 2]
    assert (len(told.asked), sum(heard)) == (2, 5)


CALL = call_of("question", sampling=Sampling(max_tokens=20, extra={"top_k": 3}))
CHANGED: dict[str, tuple[Call, str]] = {
    "model": (CALL, "told 2"),
    "content": (call_of("questions", sampling=CALL.sampling), "told 1"),
    "role": (replace(CALL, messages=(Message(role="system", content="question"),)), "told 1"),
    "temperature": (replace(CALL, sampling=replace(CALL.sampling, temperature=0.5)), "told 1"),
    "max_tokens": (replace(CALL, sampling=replace(CALL.sampling, max_tokens=21)), "told 1"),
    "seed": (replace(CALL, sampling=replace(CALL.sampling, seed=1)), "told 1"),
    "extra": (replace(CALL, sampling=replace(CALL.sampling, extra={"top_k": 4})), "told 1"),
    "schema": (replace(CALL, schema={**SCHEMA, "title": "n"}), "told 1"),
    "constrained": (replace(CALL, constrained=True), "told 1"),
    "template": (replace(CALL, template="2"), "told 1"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_change_of_any_part_of_the_key_makes_exactly_the_affected_calls(tmp_path: Path, name: str) -> None:
    others = [call_of(f"other {number}") for number in range(3)]
    job_of(Told([GOOD]), tmp_path / "answers.sqlite").ask_all([CALL, *others])
    changed, identity = CHANGED[name]
    told = Told([GOOD], identity=identity)
    job_of(told, tmp_path / "answers.sqlite").ask_all([changed, *others])
    expected = [changed, *others] if name == "model" else [changed]
    assert told.asked == expected


def test_the_key_is_that_of_the_content_not_of_its_order() -> None:
    one, other = ({"top_k": 3, "min_p": 0.1}, {"min_p": 0.1, "top_k": 3})
    keys = {call_of("q", sampling=Sampling(extra=extra)).key("m") for extra in (one, other)}
    assert len(keys) == 1
    assert call_of("q").key("m") != call_of("q").key("n")


def test_failures_expire_and_answers_do_not(tmp_path: Path) -> None:
    time, calls = FakeTime(), [call_of("a"), call_of("b"), call_of("c")]
    answers = ["no", "no", Refused("too long"), GOOD]
    job_of(Told(answers), tmp_path / "a", clock=time.clock).ask_all(calls)
    time.now += DAY - 1
    job_of(Told([]), tmp_path / "a", clock=time.clock).ask_all(calls)
    time.now += 2
    told = Told([GOOD])
    outcomes = job_of(told, tmp_path / "a", clock=time.clock).ask_all(calls)
    assert [len(call.messages) for call in told.asked] == [3, 1]
    assert [outcome.how for outcome in outcomes] == ["asked again", "strict", "strict"]
    time.now += 1000 * DAY
    job_of(Told([]), tmp_path / "a", clock=time.clock).ask_all(calls)


def test_failures_can_be_forgotten(tmp_path: Path) -> None:
    job_of(Told([Refused("too long"), GOOD]), tmp_path / "a").ask_all([call_of("a"), call_of("b")])
    AnswerCache(tmp_path / "a").forget_failures("another")
    assert job_of(Told([]), tmp_path / "a").ask(call_of("a")).how == "refused"
    AnswerCache(tmp_path / "a").forget_failures("told 1")
    told = Told([GOOD])
    job_of(told, tmp_path / "a").ask_all([call_of("a"), call_of("b")])
    assert len(told.asked) == 1


def test_an_answer_is_written_once(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers.sqlite")
    first, second = Entry(answer=said("first")), Entry(answer=said("second"))
    assert cache.put(b"key", "m", first) == first
    assert cache.put(b"key", "m", second) == first
    assert AnswerCache(tmp_path / "answers.sqlite").get(b"key") == first


def test_no_prompt_is_kept(tmp_path: Path) -> None:
    job_of(Told([GOOD]), tmp_path / "answers.sqlite").ask(call_of("a secret review"))
    with sqlite3.connect(tmp_path / "answers.sqlite") as connection:
        assert "secret" not in "\n".join(connection.iterdump())


def test_a_cache_that_is_no_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answers.sqlite").write_text("no database at all, however long it may be" * 100)
    with pytest.raises(ConfigError, match=r"cannot keep answers there .*set RECSYS_LLM_ANSWERS to another file"):
        AnswerCache(tmp_path / "answers.sqlite")
    monkeypatch.setenv("RECSYS_LLM_ANSWERS", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.delenv("RECSYS_LLM_ANSWERS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "recsys" / "llm-answers.sqlite"


def test_a_server_that_does_not_count_is_counted_for(tmp_path: Path) -> None:
    job = job_of(Told([GOOD]), tmp_path / "a", prices=Prices(prompt=1.0, output=10.0))
    usage = job.ask(call_of("12345678")).usage
    assert usage == Usage(prompt=3 + 4 + 2, output=2, estimated=True)
    figures = job.account.figures(2.0)
    assert figures["calls_with_estimated_tokens"] == 1
    assert figures["cost"] == pytest.approx(29e-6)
    assert figures["tokens_per_second"] == 5.5


def test_the_cost_is_that_of_the_formula() -> None:
    usage = Usage(prompt=1000, cached=400, output=50)
    assert Prices(prompt=2.0, cached=0.5, output=8.0).cost(usage) == pytest.approx((600 * 2 + 400 * 0.5 + 50 * 8) / 1e6)
    assert Prices(prompt=2.0, output=8.0).cost(usage) == pytest.approx((1000 * 2 + 50 * 8) / 1e6)


@pytest.mark.parametrize(("limit", "unit"), [(Limit(tokens=1000), "1000 tokens"), (Limit(cost=0.01), "0.01 in money")])
def test_the_budget_stops_before_it_is_exceeded(tmp_path: Path, limit: Limit, unit: str) -> None:
    calls = [call_of(f"question {number:03d}") for number in range(100)]
    most = most_prompt_tokens(calls[0], job_of(Told([]), tmp_path / "x").counter) + 20
    told = Told([said(GOOD, prompt=most - 20, output=20)])
    prices = Prices(prompt=10.0, output=10.0)
    job = job_of(told, tmp_path / "a", limit=limit, prices=prices)
    with pytest.raises(BudgetError, match=rf"are spent, and the next call may take {most} tokens .*{unit}"):
        job.ask_all(calls)
    assert len(told.asked) == 1000 // most
    assert job.budget.tokens <= 1000
    again = job_of(told, tmp_path / "a", limit=limit, prices=prices)
    with pytest.raises(BudgetError, match="run again with a larger budget"):
        again.ask_all(calls)
    assert len(told.asked) == 1000 // most, "what earlier runs paid counts"
    more = job_of(told, tmp_path / "a", limit=Limit(tokens=100 * most), prices=prices)
    more.ask_all(calls)
    assert len(told.asked) == 100


def test_what_is_reserved_and_not_used_may_be_spent_by_others() -> None:
    """A second call waits for the first one rather than giving up."""
    budget, most = Budget(Prices(), Limit(tokens=100)), Usage(prompt=60)
    budget.reserve(most)
    waiting = threading.Thread(target=budget.reserve, args=(most,), daemon=True)
    waiting.start()
    waiting.join(timeout=0.2)
    assert waiting.is_alive()
    budget.settle(most, Usage(prompt=10))
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    budget.settle(most, Usage(prompt=60))
    assert budget.tokens == 70
    with pytest.raises(BudgetError):
        budget.reserve(most)


def test_lost_attempts_count_in_full(tmp_path: Path) -> None:
    class Losing(Told):
        def answer(self, call: Call, permit: Permit) -> Answer:
            permit.again(True)
            permit.again(False)
            return super().answer(call, permit)

    job = job_of(Losing([said(GOOD, prompt=50, output=5)]), tmp_path / "a")
    job.ask(call_of("question"))
    most = most_prompt_tokens(call_of("question"), job.counter) + 20
    assert job.budget.tokens == most + 55
    figures = job.account.figures(1.0)
    assert (figures["retries"], figures["lost"], figures["calls"]) == (2, 1, 1)


def test_a_budget_of_money_needs_prices() -> None:
    with pytest.raises(ConfigError, match=r"cost=1.0 stops nothing without prices for a million tokens"):
        Budget(Prices(), Limit(cost=1.0))
    with pytest.raises(ConfigError, match="budget: tokens=0 must be above 0"):
        Limit(tokens=0)
    with pytest.raises(ConfigError, match=r"Prices: output=-1.0 must be at least 0"):
        Prices(output=-1.0)


def test_a_server_that_refuses_everything_ends_the_job(tmp_path: Path) -> None:
    told = Told([Refused("no such field: seed")])
    with pytest.raises(EndpointError, match=r"20 questions in a row were refused \(no such field: seed\)"):
        job_of(told, tmp_path / "a").ask_all([call_of(f"{number}") for number in range(100)])
    assert len(told.asked) == REFUSALS_IN_A_ROW


def test_the_first_error_ends_the_job_and_keeps_what_was_answered(tmp_path: Path) -> None:
    told = Told([GOOD] * 5 + [EndpointError("no more")])
    with pytest.raises(EndpointError, match="no more"):
        job_of(told, tmp_path / "a").ask_all([call_of(f"{number}") for number in range(50)])
    assert len(told.asked) == 6, "nothing else begins"
    rest = Told([GOOD])
    job_of(rest, tmp_path / "a").ask_all([call_of(f"{number}") for number in range(50)])
    assert len(rest.asked) == 45


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"temperature": 3.0}, r"temperature=3.0 must lie in \[0, 2\]"),
        ({"extra": {"messages": []}}, "the field 'messages' of a request cannot be set"),
    ],
)
def test_samplings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]


def test_fields_of_a_request() -> None:
    assert Sampling().fields() == {"temperature": 0.0, "max_tokens": 256, "seed": 0}
    assert Sampling(seed=None, extra={"max_completion_tokens": 9}).fields() == {
        "temperature": 0.0,
        "max_completion_tokens": 9,
    }
    assert Sampling(extra={"max_completion_tokens": 9}).most_output == 9
