"""Small questions to a model, and time that passes at once."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.llm.budget import Budget, Limit, Prices
from recsys.llm.cache import AnswerCache
from recsys.llm.calls import LLM, Answer, Call, Message, Permit, Sampling
from recsys.llm.clock import Clock
from recsys.llm.job import Job, JobConfig
from recsys.llm.structured import AnswerSchema
from recsys.llm.tokens import ByLength, TokenCounter

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


@dataclass
class FakeTime:
    """Sleeping moves it on; `chance` is always the same. Every sleep is noted."""

    now: float = 1_000_000.0
    chance: float = 0.5
    sleeps: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.sleeps.append(seconds)
            self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, elapsed=lambda: self.now, sleep=self.sleep, chance=lambda: self.chance)


@dataclass
class Told:
    """A model that says what it is told to, and notes what it was asked."""

    answers: Sequence[str | Answer | Exception]
    identity: str = "told 1"
    concurrency: int = 1
    asked: list[Call] = field(default_factory=list)

    def answer(self, call: Call, permit: Permit) -> Answer:
        assert permit.tokens > 0
        self.asked.append(call)
        answer = self.answers[(len(self.asked) - 1) % len(self.answers)]
        if isinstance(answer, Exception):
            raise answer
        return Answer(text=answer, usage=None) if isinstance(answer, str) else answer

    def close(self) -> None:
        """Nothing."""


@dataclass
class Free:
    """A permit that allows everything, and notes what was lost."""

    tokens: int = 10
    again_with: list[bool] = field(default_factory=list)

    def again(self, lost: bool) -> None:
        self.again_with.append(lost)


def call_of(text: str, **settings: Any) -> Call:
    """A question of one user message."""
    values: dict[str, Any] = {"schema": SCHEMA, "sampling": Sampling(max_tokens=20), **settings}
    return Call(messages=(Message(role="user", content=text),), **values)


def job_of(
    llm: LLM,
    cache: Path,
    *,
    prices: Prices | None = None,
    limit: Limit | None = None,
    counter: TokenCounter | None = None,
    config: JobConfig | None = None,
    clock: Clock | None = None,
) -> Job:
    """With a cache in a file."""
    return Job(
        llm,
        AnswerSchema(SCHEMA),
        AnswerCache(cache, clock),
        budget=Budget(prices or Prices(), limit or Limit()),
        counter=counter or ByLength(),
        config=config,
        clock=clock,
    )
