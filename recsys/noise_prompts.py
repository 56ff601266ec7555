"""The one text by which a language model is taught to name the odd item, and by which it is asked.

    One of these items does not fit ... Items: "first title", "second title", ...
    The item that does not fit: "|second title"<end>
                                 ^ a prompt ends here; what follows is the answer

Every piece is tokenised by itself, so that prompt and answer have the same tokens in training and in scoring, and no
answer can melt into the quote before it. Titles are cut after so many tokens; a prompt that is too long loses its
oldest titles, never the end that asks.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from recsys.errors import ConfigError
from recsys.item_sentences import cleaned

HEAD = "One of these items does not fit the others.\nItems: "
QUOTE, BETWEEN = '"', ", "
TAIL = '\nThe item that does not fit: "'
TEMPLATE = hashlib.sha256("\0".join([HEAD, QUOTE, BETWEEN, TAIL]).encode()).hexdigest()
NO_TITLE = "(no title)"


class NamingPrompts:
    """Tokens of prompts and answers for one tokeniser; a whole training text has `max_tokens` at most."""

    def __init__(self, tokenizer: Any, max_tokens: int, title_tokens: int) -> None:
        self._tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise ConfigError("denoise: the language model's tokenizer has no end token (eos_token); choose another.")
        self.title_tokens = title_tokens
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._head, self._tail = [*start, *self._tokens(HEAD)], self._tokens(TAIL)
        self._quote, self._between = self._tokens(QUOTE), self._tokens(BETWEEN)
        self._end = [*self._quote, tokenizer.eos_token_id]
        self._room = max_tokens - len(self._head) - len(self._tail) - title_tokens - len(self._end)
        widest = title_tokens + 2 * len(self._quote) + len(self._between)
        if self._room < widest:
            raise ConfigError(
                f"denoise: max_tokens={max_tokens} leaves {max(0, self._room)} tokens for titles of up to {widest}; "
                "raise it, or lower title_tokens."
            )

    def title(self, text: str) -> list[int]:
        """Tokens of a title, cut."""
        plain = cleaned(text).replace(QUOTE, "'") or NO_TITLE
        return self._tokens(plain)[: self.title_tokens]

    def prompt(self, titles: Sequence[str]) -> list[int]:
        """All up to the quote that opens the answer."""
        pieces = [[*self._quote, *self.title(text), *self._quote, *self._between] for text in titles]
        while sum(map(len, pieces)) > self._room:
            pieces.pop(0)
        return [*self._head, *(token for piece in pieces for token in piece), *self._tail]

    def answer(self, title: str) -> list[int]:
        """The title, the closing quote and the end token."""
        return [*self.title(title), *self._end]

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens
