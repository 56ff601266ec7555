"""How many tokens a call has, before it is made: by the model's tokeniser, or by the length of its text."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from recsys.errors import ConfigError
from recsys.llm.calls import Call

LETTERS_PER_TOKEN = 4
PER_MESSAGE = 4
PER_CALL = 3
"""What chat templates put around a message and before the answer, about; jobs correct it by what servers count."""
SLACK = 64
"""On top of the most tokens that a prompt may have: templates that say more than the usual."""


@runtime_checkable
class TokenCounter(Protocol):
    """Tokens of a text."""

    @property
    def name(self) -> str:
        """How it counts, for people."""
        ...

    def count(self, text: str) -> int:
        """About so many."""
        ...

    def most(self, text: str) -> int:
        """Surely no more."""
        ...


class ByLength:
    """Where there is no tokeniser: a token for four letters is an estimate, one for a byte a bound."""

    name = f"estimated, a token for {LETTERS_PER_TOKEN} letters"

    def count(self, text: str) -> int:
        """Rounded up."""
        return -(-len(text) // LETTERS_PER_TOKEN)

    def most(self, text: str) -> int:
        """No tokeniser that falls back to bytes makes more."""
        return len(text.encode())


class ByTokenizer:
    """The `tokenizer.json` of a model, from its folder."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json" if folder.is_dir() else folder
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(
                f"{path}: cannot be read as a tokenizer ({error}); name the model's folder or its tokenizer.json."
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = f"counted by {path}"

    def count(self, text: str) -> int:
        """Without tokens that begin or end a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def most(self, text: str) -> int:
        """The same."""
        return self.count(text)


def prompt_tokens(call: Call, counter: TokenCounter) -> int:
    """Of all its messages, about."""
    return PER_CALL + sum(PER_MESSAGE + counter.count(message.content) for message in call.messages)


def most_prompt_tokens(call: Call, counter: TokenCounter) -> int:
    """Of all its messages, at most."""
    return PER_CALL + SLACK + sum(PER_MESSAGE + counter.most(message.content) for message in call.messages)
