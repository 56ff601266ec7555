"""Results on standard output: text for people, one JSON object for machines."""

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console


def finish(out: Path, manifest: dict[str, Any], as_json: bool) -> None:
    """Says what a step made: its manifest, or its counts in one line each."""
    if as_json:
        print_json({"out": str(out), **manifest})
        return
    typer.echo(f"{out}: {manifest['step']} done in {manifest['seconds']:.1f} s")
    for key, value in manifest["counts"].items():
        typer.echo(f"  {key}: {value}")


def print_figures(figures: dict[str, Any], as_json: bool) -> None:
    """One a line, or one JSON object."""
    if as_json:
        print_json(figures)
        return
    for key, value in figures.items():
        typer.echo(f"{key}: {value}")


def result_console() -> Console:
    """Standard output, as wide as tables need when piped."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(content, indent=2, default=str, allow_nan=False))
