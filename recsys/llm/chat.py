"""The driver for OpenAI-compatible chat completions: vLLM, llama.cpp's server, hosted ones."""

from typing import Any

from recsys.llm.calls import Answer, Call, Permit, Usage
from recsys.llm.endpoint import Endpoint, MalformedReply

SCHEMA_NAME = "answer"


class ChatModel:
    """`model` as the server knows it. `revision` is for the key of answers alone: no server tells its weights apart."""

    def __init__(self, endpoint: Endpoint, model: str, revision: str | None = None) -> None:
        self.endpoint, self.model, self.revision = endpoint, model, revision

    @property
    def identity(self) -> str:
        """Name and revision; the address is no part of it."""
        return f"{self.model}@{self.revision}" if self.revision else self.model

    @property
    def concurrency(self) -> int:
        """As the endpoint's config says."""
        return self.endpoint.config.concurrency

    def answer(self, call: Call, permit: Permit) -> Answer:
        """One POST to /chat/completions, repeated where it failed."""
        began = self.endpoint.clock.elapsed()

        def parsed(reply: Any) -> Answer:
            return answer_of(reply, self.endpoint.clock.elapsed() - began)

        return self.endpoint.post("chat/completions", self._request(call), permit, parsed)

    def close(self) -> None:
        """Ends the endpoint's connections."""
        self.endpoint.close()

    def _request(self, call: Call) -> dict[str, Any]:
        messages = [{"role": message.role, "content": message.content} for message in call.messages]
        body: dict[str, Any] = {"model": self.model, "messages": messages, **call.sampling.fields()}
        if call.constrained and call.schema is not None:
            schema = {"name": SCHEMA_NAME, "schema": dict(call.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


def answer_of(reply: Any, seconds: float) -> Answer:
    """The first choice of a chat completion."""
    try:
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        finish = choice.get("finish_reason") or "stop"
        engine = "/".join(filter(None, [reply.get("model"), reply.get("system_fingerprint")]))
        if not (isinstance(text, str) and isinstance(finish, str)):
            raise TypeError("content and finish_reason are texts")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise MalformedReply(f"no chat completion ({type(error).__name__}: {error})") from None
    return Answer(
        text=text, usage=usage_of(reply.get("usage")), finish_reason=finish, engine=engine, seconds=round(seconds, 3)
    )


def usage_of(content: Any) -> Usage | None:
    """Tokens as the server counted them, None where it did not."""
    if not isinstance(content, dict) or not isinstance(content.get("prompt_tokens"), int):
        return None
    details = content.get("prompt_tokens_details") or {}
    return Usage(
        prompt=content["prompt_tokens"],
        cached=int(details.get("cached_tokens") or 0),
        output=int(content.get("completion_tokens") or 0),
    )
