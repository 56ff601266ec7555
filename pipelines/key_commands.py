"""Commands for the service's API keys."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Json
from pipelines.printing import print_json

app = typer.Typer(no_args_is_help=True)

KeyFile = Annotated[Path, typer.Option(help="File of keys, which RECSYS_KEYS names.", show_default=False)]
Name = Annotated[str, typer.Argument(help="What logs and rate limits call the key.", show_default=False)]


@app.callback()
def keys() -> None:
    """Make, list and revoke the API keys of the service.

    Example: `recsys keys create shop --scopes recommend,events --file keys.json`
    """


@app.command()
def create(
    name: Name,
    file: KeyFile,
    scopes: Annotated[
        str,
        typer.Option(
            help="What it may do, with commas between: recommend, events, items, users, admin.", show_default=False
        ),
    ],
) -> None:
    """Make a key and print it, this once: the file keeps its hash alone.

    Example: `recsys keys create shop --scopes recommend,events --file keys.json`
    """
    from serving.api_keys import create_key

    typer.echo(create_key(file, name, [scope.strip() for scope in scopes.split(",") if scope.strip()]))


@app.command("list")
def list_keys(file: KeyFile, as_json: Json = False) -> None:
    """Print names, scopes and days of the keys.

    Example: `recsys keys list --file keys.json`
    """
    from serving.api_keys import read_keys

    keys = read_keys(file)
    if as_json:
        print_json({"keys": [{"name": key.name, "scopes": key.scopes, "created": key.created} for key in keys]})
    else:
        for key in keys:
            typer.echo(f"{key.name}  {','.join(key.scopes)}  {key.created}")


@app.command()
def revoke(name: Name, file: KeyFile) -> None:
    """Take a key out of the file; a running service refuses it from its next request on.

    Example: `recsys keys revoke shop --file keys.json`
    """
    from serving.api_keys import revoke_key

    revoke_key(file, name)
