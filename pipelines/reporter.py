"""What a command says while it works: bars on a terminal, plain lines when piped, nothing for machines to trip on.

Everything goes to standard error; standard output belongs to results.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Counts what was done."""

    def __call__(self, done: int, note: str | None = None) -> None:
        """`done` further units; a note replaces the one shown."""
        ...


class Reporter:
    """Progress and remarks of one command."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Shows how much of `total` is done while the block runs."""
        if self.console.is_terminal:
            with self._bar(name, total) as advance:
                yield advance
        else:
            yield self._lines(name, total)

    @contextmanager
    def _bar(self, name: str, total: int) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console) as progress:
            task = progress.add_task(name, total=total, note="")

            def advance(done: int, note: str | None = None) -> None:
                progress.advance(task, done)
                if note is not None:
                    progress.update(task, note=note)

            yield advance

    def _lines(self, name: str, total: int) -> Advance:
        reached, shown, remark = 0, time.monotonic(), ""

        def advance(done: int, note: str | None = None) -> None:
            nonlocal reached, shown, remark
            reached, remark = reached + done, remark if note is None else note
            if time.monotonic() - shown > SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                self.say(f"{name}: {reached}/{total} {remark}".rstrip())

        return advance
