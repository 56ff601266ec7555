"""A language model as commands name it: by its server's address, or by its folder or hub name in this process."""

from dataclasses import dataclass, field
from pathlib import Path

from recsys.errors import ConfigError
from recsys.llm.budget import Budget, Limit, Prices
from recsys.llm.cache import AnswerCache, default_cache
from recsys.llm.calls import LLM, Sampling
from recsys.llm.chat import ChatModel
from recsys.llm.endpoint import Endpoint, EndpointConfig
from recsys.llm.job import Job, JobConfig
from recsys.llm.structured import AnswerSchema
from recsys.llm.tokens import ByLength, ByTokenizer, TokenCounter


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """`endpoint` None runs `model` in this process. `constrained`: the server is to enforce the schema."""

    model: str
    revision: str | None = None
    endpoint: EndpointConfig | None = None
    sampling: Sampling = field(default_factory=Sampling)
    constrained: bool = False
    allow_truncated: bool = False
    prices: Prices = field(default_factory=Prices)
    limit: Limit = field(default_factory=Limit)
    tokenizer: Path | None = None
    forget_failures: bool = False

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("--model: is empty; name a model as its server knows it, or a folder.")


def language_model(config: LanguageModelConfig) -> LLM:
    """The driver."""
    if config.endpoint is not None:
        return ChatModel(Endpoint(config.endpoint), config.model, config.revision)
    from recsys.llm.local import LocalModel

    return LocalModel(config.model, config.revision)


def open_job(config: LanguageModelConfig, schema: AnswerSchema) -> Job:
    """A job that has asked nothing yet, on the user's cache of answers."""
    llm, cache = language_model(config), AnswerCache(default_cache())
    if config.forget_failures:
        cache.forget_failures(llm.identity)
    return Job(
        llm,
        schema,
        cache,
        budget=Budget(config.prices, config.limit),
        counter=token_counter(config),
        config=JobConfig(allow_truncated=config.allow_truncated),
    )


def token_counter(config: LanguageModelConfig) -> TokenCounter:
    """The tokeniser that was named, that of a model in this process, or an estimate by length."""
    if config.tokenizer is not None:
        return ByTokenizer(config.tokenizer)
    if config.endpoint is None and Path(config.model).is_dir():
        return ByTokenizer(Path(config.model))
    return ByLength()
