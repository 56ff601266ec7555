"""What is asked of a language model, what it answers, and the interface that every driver has."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from recsys.errors import ConfigError

Role = Literal["system", "user", "assistant"]
OTHER_LENGTH = "max_completion_tokens"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn: greedy and with a fixed seed by default.

    `extra`: further fields of the request; `max_completion_tokens` among them stands in place of `max_tokens`, which
    some hosted models refuse.
    """

    temperature: float = 0.0
    max_tokens: int = 256
    seed: int | None = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"Sampling: max_tokens={self.max_tokens} must be at least 1.")
        if not 0 <= self.temperature <= 2:
            raise ConfigError(f"Sampling: temperature={self.temperature} must lie in [0, 2].")
        if taken := sorted({"model", "messages", "stream", "n"} & set(self.extra)):
            raise ConfigError(f"Sampling: the field {taken[0]!r} of a request cannot be set; leave it out.")

    @property
    def most_output(self) -> int:
        """Tokens that an answer has at most."""
        return int(self.extra.get(OTHER_LENGTH, self.max_tokens))

    def fields(self) -> dict[str, Any]:
        """Fields of a request to an OpenAI-compatible server."""
        length = {} if OTHER_LENGTH in self.extra else {"max_tokens": self.max_tokens}
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"temperature": self.temperature, **length, **seed, **self.extra}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One question to a model: everything that its answer depends on, besides the model itself.

    `schema`: the JSON schema that the answer is to follow; `constrained`: whether the server is told to enforce it.
    `template`: the version of what wrote the messages.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    schema: Mapping[str, Any] | None = None
    constrained: bool = False
    template: str = ""

    def key(self, model: str) -> bytes:
        """SHA-256 of the canonical JSON of the call and the model's identity."""
        content = {"model": model, **asdict(self)}
        return hashlib.sha256(canonical_json(content).encode()).digest()

    def corrected(self, answer: str, problem: str) -> "Call":
        """The same question once more, after an answer that was wrong in a certain way."""
        request = (
            f"That answer cannot be used: {problem}. Answer again with one JSON object that follows the schema, "
            "and nothing else."
        )
        turns = (Message(role="assistant", content=answer), Message(role="user", content=request))
        return replace(self, messages=(*self.messages, *turns))


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one call: `cached` ones are those of the prompt that a server had kept. `estimated`: it did not say."""

    prompt: int = 0
    cached: int = 0
    output: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        """Of prompt and answer."""
        return self.prompt + self.output

    def __add__(self, other: "Usage") -> "Usage":
        """Of both."""
        return Usage(
            prompt=self.prompt + other.prompt,
            cached=self.cached + other.cached,
            output=self.output + other.output,
            estimated=self.estimated or other.estimated,
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said. `usage` None: the server does not count; `engine`: what the server calls itself."""

    text: str
    usage: Usage | None
    finish_reason: str = "stop"
    engine: str = ""
    seconds: float = 0.0

    @property
    def truncated(self) -> bool:
        """Whether it was cut off at the most tokens it may have."""
        return self.finish_reason == "length"


class Refused(Exception):  # noqa: N818 - what happened to one question, no error of the job
    """This question will not be answered however often it is asked, such as one longer than the model's context."""


@runtime_checkable
class Permit(Protocol):
    """Leave to spend tokens on one call."""

    @property
    def tokens(self) -> int:
        """The most that the call can use."""
        ...

    def again(self, lost: bool) -> None:
        """Asked for before each further attempt; `lost`: the one before may have been answered, and be paid for."""
        ...


@runtime_checkable
class LLM(Protocol):
    """A model that answers one call at a time; several threads may ask."""

    @property
    def identity(self) -> str:
        """Names everything that answers depend on besides the call."""
        ...

    @property
    def concurrency(self) -> int:
        """How many calls it takes at a time."""
        ...

    def answer(self, call: Call, permit: Permit) -> Answer:
        """May raise `Refused`; any other error ends the job."""
        ...

    def close(self) -> None:
        """No call afterwards."""
        ...


def canonical_json(content: Any) -> str:
    """The same text for the same content: sorted names, no blanks, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
