"""The `recsys` command line: one command an arrow of the data's path (see docs/commands.md).

Results go to standard output, remarks and progress to standard error. Exit codes: 0 done, 1 failed, 2 usage,
3 a quality gate said no. Commands import what they need when they are called, so that serving needs no torch.
"""

import sys
from typing import Annotated

import typer

from pipelines import data_commands, experiment_commands, key_commands, llm_commands, model_commands, service_commands
from pipelines.explained import explained
from recsys.errors import RecsysError

app = typer.Typer(
    name="recsys",
    help="Sequential recommendation: from raw logs to a served, measured recommender.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
for commands in (data_commands, llm_commands, model_commands, experiment_commands, service_commands):
    app.add_typer(commands.app)
app.add_typer(key_commands.app, name="keys")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback; may stand anywhere.")] = False,
) -> None:
    """Names `--debug` in the help; `main` takes it out of the arguments before they come here."""


def main() -> None:
    """Runs the command; an error becomes one line on standard error and an exit code, or with --debug a traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        typer.echo(f"error: {explained(error)}", err=True)
        sys.exit(error.exit_code if isinstance(error, RecsysError) else 1)


if __name__ == "__main__":
    main()
