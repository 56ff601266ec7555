"""The driver for a causal model of Hugging Face in this process: a folder, or a hub name with its revision."""

import hashlib
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

from recsys.errors import ConfigError
from recsys.llm.calls import Answer, Call, Permit, Refused, Usage
from recsys.llm.clock import Clock
from recsys.pretrained import Pretrained

OF_CONVERSATIONS = ("chat_template.jinja", "generation_config.json", "tokenizer_config.json")
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


class LocalModel:
    """One call at a time, through the model's chat template where it has one. Weights are read at the first call."""

    concurrency = 1

    def __init__(self, source: str, revision: str | None = None, clock: Clock | None = None) -> None:
        self._pretrained = Pretrained(source, revision, what="language model", settings=("--model", "--revision"))
        self.clock = clock or Clock()
        self._lock = threading.Lock()

    @cached_property
    def identity(self) -> str:
        """Weights, chat template and defaults of generation by content, or all by hub revision."""
        if self._pretrained.revision is not None:
            return f"{self._pretrained.identity} in transformers"
        files = [Path(self._pretrained.place) / name for name in OF_CONVERSATIONS]
        content = b"\0".join(path.read_bytes() if path.is_file() else b"" for path in files)
        return f"{self._pretrained.identity} {hashlib.sha256(content).hexdigest()} in transformers"

    def answer(self, call: Call, permit: Permit) -> Answer:  # noqa: ARG002 - nothing is tried twice here
        """Greedy at temperature 0, else drawn from the call's own seed."""
        if call.constrained or call.sampling.extra:
            raise ConfigError(
                "a model in this process takes no further fields of a request and is not constrained to a schema; "
                "leave out --constrained and --body, or serve the model and give its --endpoint."
            )
        began = self.clock.elapsed()
        with self._lock:
            return self._generated(call, began)

    def close(self) -> None:
        """Nothing is open."""

    def _generated(self, call: Call, began: float) -> Answer:
        import torch

        model, sampling = self._pretrained.causal, call.sampling
        tokens = self._tokens(call)
        length = tokens["input_ids"].shape[1]
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and length + sampling.max_tokens > longest:
            raise Refused(f"{length} tokens and an answer of {sampling.max_tokens} are more than the model's {longest}")
        drawn = {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature else {}
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(sampling.seed or 0)
            output = model.generate(
                **tokens, max_new_tokens=sampling.max_tokens, pad_token_id=self._padding(), **(drawn or GREEDY)
            )[0, length:]
        ended = output[-1].item() in _ends(model.generation_config.eos_token_id)
        return Answer(
            text=self._pretrained.tokenizer.decode(output, skip_special_tokens=True),
            usage=Usage(prompt=length, output=len(output)),
            finish_reason="stop" if ended else "length",
            engine="transformers",
            seconds=round(self.clock.elapsed() - began, 3),
        )

    def _tokens(self, call: Call) -> Any:
        """The whole conversation, up to where the answer begins."""
        tokenizer = self._pretrained.tokenizer
        turns = [{"role": message.role, "content": message.content} for message in call.messages]
        if tokenizer.chat_template:
            tokens = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
            tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        return tokens.to(self._pretrained.causal.device)

    def _padding(self) -> int | None:
        tokenizer = self._pretrained.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _ends(tokens: int | list[int] | None) -> set[int]:
    """Tokens that end an answer."""
    return set(tokens) if isinstance(tokens, list) else {-1 if tokens is None else tokens}
