"""The HTTP client against a real socket: what is tried again, what is not, and what never leaves it."""

import logging
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest
from llm_jobs import SCHEMA, FakeTime, Free, call_of
from llm_server import Reply, chat_reply, serving

from recsys.errors import ConfigError, EndpointError
from recsys.llm.calls import Message, Refused, Sampling, Usage
from recsys.llm.chat import ChatModel
from recsys.llm.endpoint import Endpoint, EndpointConfig
from recsys.llm.retries import Backoff

SECRET = "sk-very-secret-0123456789"


OPENED: list[ChatModel] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Connections end with their test."""
    yield
    while OPENED:
        OPENED.pop().close()


def model_at(url: str, time: FakeTime, **settings: Any) -> ChatModel:
    """With a time of its own."""
    OPENED.append(ChatModel(Endpoint(EndpointConfig(url=url, **settings), time.clock), "tiny", "r1"))
    return OPENED[-1]


def failing(times: int, fault: Reply) -> Callable[[str, dict[str, Any], int], Reply]:
    """A server that fails so many times, then answers."""

    def handler(path: str, body: dict[str, Any], before: int) -> Reply:
        assert path == "/v1/chat/completions"
        return fault if before < times else chat_reply("fine", body["messages"], model="tiny-8bit")

    return handler


def test_a_call_and_its_answer() -> None:
    with serving(failing(0, Reply())) as server:
        model = model_at(server.url + "/", FakeTime())
        call = call_of("to be", sampling=Sampling(max_tokens=7, extra={"top_k": 2}), constrained=True)
        answer = model.answer(call, Free())
    assert (answer.text, answer.finish_reason, answer.engine) == ("fine", "stop", "tiny-8bit")
    assert answer.usage == Usage(prompt=7, output=1)
    schema = {"name": "answer", "schema": SCHEMA, "strict": True}
    assert server.requests == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "to be"}],
            "temperature": 0.0,
            "max_tokens": 7,
            "seed": 0,
            "top_k": 2,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
    ]
    assert model.identity == "tiny@r1"


@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        (Reply({"error": "oops"}, status=500), False),
        (Reply({"error": "busy"}, status=503), False),
        (Reply({"error": "slow down"}, status=429), False),
        (Reply({"error": "timeout"}, status=408), False),
        (Reply(None), True),
        (Reply(raw=b'{"choices": [{"mess'), True),
        (Reply({"object": "error"}), True),
        (Reply({"choices": []}), True),
        (Reply({"choices": [{"message": {"content": 7}}]}), True),
    ],
)
def test_faults_that_may_pass_are_tried_again(fault: Reply, lost: bool) -> None:
    time, permit = FakeTime(), Free()
    with serving(failing(3, fault)) as server:
        assert model_at(server.url, time).answer(call_of("question"), permit).text == "fine"
    assert len(server.requests) == 4
    assert permit.again_with == [lost] * 3
    assert time.sleeps == [0.25, 0.5, 1.0], "half of 0.5, 1 and 2 s"


def test_an_answer_that_does_not_come_in_time_is_lost() -> None:
    permit = Free()
    with serving(failing(2, Reply({}, seconds=0.6))) as server:
        assert model_at(server.url, FakeTime(), timeout=0.2).answer(call_of("question"), permit).text == "fine"
    assert permit.again_with == [True, True]


def test_retries_are_bounded() -> None:
    with serving(failing(100, Reply({"error": "out of memory"}, status=500))) as server:
        with pytest.raises(EndpointError, match=r"no answer in 7 attempts \(the last: status 500: .*out of memory"):
            model_at(server.url, FakeTime()).answer(call_of("question"), Free())
        assert len(server.requests) == 7


def test_where_no_server_is() -> None:
    time = FakeTime()
    with pytest.raises(EndpointError, match=r"no answer in 3 attempts .*no connection: .*see that the server runs"):
        model_at("http://127.0.0.1:9/v1", time, backoff=Backoff(retries=2)).answer(call_of("question"), Free())
    assert len(time.sleeps) == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(as_date: bool) -> None:
    time = FakeTime()
    header = formatdate(time.now + 17, usegmt=True) if as_date else "17"
    with serving(failing(1, Reply({}, status=429, headers={"retry-after": header}))) as server:
        model_at(server.url, time).answer(call_of("question"), Free())
    assert time.sleeps == [17.0]


def test_a_server_that_asks_for_too_long_a_wait_ends_it() -> None:
    with serving(failing(1, Reply({}, status=503, headers={"retry-after": "7200"}))) as server:
        with pytest.raises(EndpointError, match=r"asks to wait 7200 s .* more than 600; run again later"):
            model_at(server.url, FakeTime()).answer(call_of("question"), Free())
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_not_repeated(status: int) -> None:
    with serving(failing(100, Reply({"error": "context length"}, status=status))) as server:
        with pytest.raises(Refused, match=f"status {status}: .*context length"):
            model_at(server.url, FakeTime()).answer(call_of("question"), Free())
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"status 401 .*put a key that is valid there into the environment variable MY_KEY"),
        (403, r"status 403 .*put a key"),
        (
            404,
            r"status 404 .*check the address \(it ends with the version, as in \.\.\./v1\) and the name of the model",
        ),
        (302, r"status 302 .*check the address"),
    ],
)
def test_what_would_meet_every_request_ends_it(status: int, message: str) -> None:
    with serving(failing(100, Reply({"error": "no"}, status=status))) as server:
        with pytest.raises(EndpointError, match=message):
            model_at(server.url, FakeTime(), api_key_env="MY_KEY").answer(call_of("question"), Free())
        assert len(server.requests) == 1


def test_the_breaker_opens_and_closes() -> None:
    time = FakeTime(chance=0.0)
    with serving(failing(5, Reply({}, status=500))) as server:
        model = model_at(server.url, time, breaker_failures=3, breaker_seconds=30.0)
        assert model.answer(call_of("question"), Free()).text == "fine"
    assert [seconds for seconds in time.sleeps if seconds] == [30.0, 30.0, 30.0], "opened by 3, kept open by 2 probes"
    assert model.endpoint.breaker.times_opened == 3
    assert model.endpoint.breaker.closed


def test_being_told_to_slow_down_is_no_outage() -> None:
    time = FakeTime(chance=0.0)
    with serving(failing(5, Reply({}, status=429))) as server:
        model = model_at(server.url, time, breaker_failures=2)
        model.answer(call_of("question"), Free())
    assert model.endpoint.breaker.times_opened == 0


def test_calls_are_paced_by_requests_and_by_tokens() -> None:
    """Tokens that were set aside and not used are given back: 7 of 60 are used by each call."""
    for settings, seconds in (({"requests_per_minute": 30.0}, 3 * 2.0), ({"tokens_per_minute": 60.0}, 3 * 7.0)):
        time = FakeTime()
        with serving(failing(0, Reply())) as server:
            model = model_at(server.url, time, **settings)
            began = time.now
            for number in range(4):
                model.answer(call_of(f"{number}"), Free(tokens=60))
        assert time.now - began == pytest.approx(seconds, abs=1.01)


def test_the_key_is_sent_and_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECSYS_LLM_API_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    fault = Reply({"error": f"Incorrect API key provided: {SECRET}"}, status=401)
    with serving(failing(1, fault)) as server:
        model = model_at(server.url, FakeTime())
        with pytest.raises(EndpointError, match=r"provided: \*\*\*") as error:
            model.answer(call_of("question"), Free())
        model.answer(call_of("question"), Free())
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {SECRET}"] * 2
    told = [
        str(error.value),
        repr(model.endpoint.config),
        repr(vars(model.endpoint)),
        caplog.text,
        *capsys.readouterr(),
    ]
    assert caplog.text
    assert not [text for text in told if SECRET in text]


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_LLM_API_KEY", raising=False)
    with serving(failing(0, Reply())) as server:
        model_at(server.url, FakeTime()).answer(call_of("question"), Free())
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "is no address; give one such as http://127.0.0.1:8000/v1"),
        ({"url": "http://me:pass@host/v1"}, "endpoint at host: its address holds a user, a password or a query"),
        ({"url": "http://host/v1?key=3"}, "put the key into the environment variable RECSYS_LLM_API_KEY"),
        ({"url": "http://host/v1", "concurrency": 0}, "concurrency=0 must be above 0"),
        ({"url": "http://host/v1", "tokens_per_minute": 0.0}, "tokens_per_minute=0.0 must be above 0"),
    ],
)
def test_endpoints_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        EndpointConfig(**settings)
    assert "pass@" not in str(error.value)


def test_messages_keep_their_roles_and_cached_tokens_are_read() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    choice = {"message": {"content": None}, "finish_reason": "length"}
    call = call_of("question")
    call = call_of("", sampling=call.sampling).corrected("x", "y")

    def handler(_: str, body: dict[str, Any], __: int) -> Reply:
        assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
        return Reply({"choices": [choice], "usage": usage})

    with serving(handler) as server:
        answer = model_at(server.url, FakeTime()).answer(call, Free())
    assert (answer.text, answer.truncated, answer.usage) == ("", True, Usage(prompt=9, cached=4, output=2))
    assert call.messages[1] == Message(role="assistant", content="x")


@pytest.mark.parametrize("key", ["sk-aaa\nsk-bbb", "sk-ä"])
def test_a_key_that_cannot_be_one_is_refused_without_being_told(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError, match=r"environment variable MY_KEY: holds a character that no key has") as refused:
        Endpoint(EndpointConfig(url="http://127.0.0.1:1/v1", api_key_env="MY_KEY"))
    assert "sk-" not in str(refused.value)
