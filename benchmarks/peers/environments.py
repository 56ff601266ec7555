"""Interpreters of the peers: RecBole lives in ours (extra `recbole`), others in environments made on first use."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


class PeerMissingError(Exception):
    """A peer cannot run here; the message says why."""


def recbole_python() -> Path:
    """This interpreter, where RecBole is installed."""
    if find_spec("recbole") is None:
        raise PeerMissingError("RecBole is not installed; it is the extra `recbole` (Python 3.11).")
    return Path(sys.executable)


def rectools_python(folder: Path) -> Path:
    """The interpreter of `folder`, with the versions of rectools.txt."""
    return installed_python("RecTools", folder, "rectools.txt")


def obp_python(folder: Path) -> Path:
    """The interpreter of `folder`, with the versions of obp.txt and none of those that Open Bandit Pipeline names."""
    return installed_python("Open Bandit Pipeline", folder, "obp.txt", "--no-deps", "--ignore-requires-python")


def installed_python(peer: str, folder: Path, requirements: str, *options: str) -> Path:
    """The interpreter of `folder`, installed there first where its versions are not those of the requirements."""
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    wanted = (FOLDER / requirements).read_text(encoding="utf-8")
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        print(f"installing {peer} into {folder}", flush=True)
        commands: tuple[list[str | Path], ...] = (
            [sys.executable, "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "--quiet", *options, "--requirement", FOLDER / requirements],
        )
        for command in commands:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise PeerMissingError(f"{peer} cannot be installed: {result.stderr.strip()[-500:]}")
        installed.write_text(wanted, encoding="utf-8")
    return python
