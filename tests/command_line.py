"""Runs `recsys` inside the test's process: what a shell would see, without a second of start."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from pipelines.cli import main


def run_recsys(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `recsys ARGUMENTS`."""
    output, error = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["recsys", *map(str, arguments)]),
        redirect_stdout(output),
        redirect_stderr(error),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        else:
            code = 0
    return code, output.getvalue(), error.getvalue()
