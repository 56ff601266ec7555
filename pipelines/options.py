"""Options that several commands have, and texts of options that hold more than one value."""

from typing import Annotated, Literal

import typer

from recsys.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output where it exists already.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides every random number.")]
PartOption = Annotated[Literal["validation", "test"], typer.Option(help="Which cases.")]


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """`a=b` texts as a mapping."""
    for text in texts:
        if "=" not in text:
            raise ConfigError(f"{option} {text}: expected name=column.")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """`10,20` as numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: expected whole numbers such as 10,20.") from None
