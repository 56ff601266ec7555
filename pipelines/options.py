"""Options that several commands have, and texts of options that hold more than one value."""

from typing import Annotated, Literal

import typer

from recsys.errors import ConfigError

Engine = Literal["polars", "spark"]
EngineOption = Annotated[
    Engine,
    typer.Option(help="What works: Polars on this machine, or Spark (extra `spark`); both write the same files."),
]
LOCAL_MASTER = "local[*]"
Master = Annotated[str, typer.Option(help="Spark's master: local[2], spark://host:7077, yarn, ...")]
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


MICROSECONDS = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def duration(text: str, option: str) -> int:
    """`90s`, `30m`, `24h` or `7d` in microseconds."""
    amount, unit = text[:-1], text[-1:]
    if not amount.isdecimal() or not int(amount) or unit not in MICROSECONDS:
        raise ConfigError(f"{option} {text}: expected a duration such as 30m, 24h or 7d.")
    return int(amount) * MICROSECONDS[unit]
