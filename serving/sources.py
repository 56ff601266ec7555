"""Where a bundle comes from, and which one it is now: a folder, a folder of bundles, or an alias of the registry."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from recsys.errors import BundleError
from recsys.registry import URI_PREFIX, StoredVersion, fetch_version, find_version
from recsys.steps import MANIFEST


@dataclass(frozen=True)
class Fetched:
    """A bundle's folder; `copy` holds it for as long as it is used, where it was copied from elsewhere."""

    folder: Path
    copy: "TemporaryDirectory[str] | None" = None

    def close(self) -> None:
        """Removes the copy; what was read of it stays usable."""
        if self.copy is not None:
            self.copy.cleanup()


@dataclass(frozen=True)
class Offer:
    """What a source names now. `token` is another one for anything else, so that nothing has to be tried twice."""

    token: str
    fetch: Callable[[], Fetched]


class Source(Protocol):
    """Where to look for the next bundle."""

    name: str

    def look(self) -> Offer:
        """What is there now; a `RecsysError` or an `OSError` where nothing can be seen."""
        ...


class FolderSource:
    """A bundle, a symlink to one, or a folder of bundles: the one exported last counts, of equals the last by name.

    Names with a dot in front are passed over: what is still being written has one. The token goes by names, sizes and
    times, so that a copy that was refused half-written is tried again when it is whole.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.name = path, str(path)

    def look(self) -> Offer:
        """The bundle, without its content being read."""
        folder = _newest(self._path).resolve()
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        stats = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return Offer(json.dumps([str(folder), stats]), lambda: Fetched(folder))


class RegistrySource:
    """`models:/NAME@ALIAS`, which may move, or `models:/NAME/VERSION`, which does not."""

    def __init__(self, uri: str) -> None:
        self.name = uri

    def look(self) -> Offer:
        """The version; asks the registry."""
        version = find_version(self.name)
        return Offer(f"{version.name}/{version.number}", lambda: _fetched(version))


def source_of(text: str | Path) -> Source:
    """A folder's path, or an address that begins with models:/."""
    if isinstance(text, str) and text.startswith(URI_PREFIX):
        return RegistrySource(text)
    return FolderSource(Path(text))


def _newest(path: Path) -> Path:
    """The bundle that a folder is, or holds."""
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder; expected the output of `recsys export`.")
    within = [folder for folder in path.iterdir() if not folder.name.startswith(".") and (folder / MANIFEST).is_file()]
    if (path / MANIFEST).is_file() or not within:
        return path
    return max(within, key=lambda folder: (_created(folder), folder.name))


def _created(folder: Path) -> str:
    """When it was exported; nothing where the manifest cannot be read, which is found when nothing better is there."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _fetched(version: StoredVersion) -> Fetched:
    if version.is_local:
        return Fetched(fetch_version(version))
    copy = TemporaryDirectory(prefix="recsys-bundle-")
    try:
        return Fetched(fetch_version(version, Path(copy.name)), copy)
    except BaseException:
        copy.cleanup()
        raise
