"""Who may call what: API keys with scopes, of which only hashes are kept.

A key is 256 random bits, so one round of SHA-256 hides it: there is no list of likely ones to try.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from recsys.errors import ConfigError

Scope = Literal["recommend", "events", "items", "users", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
LOG = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One line of the file; `name` is what logs and limits call it."""

    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    created: str

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 64 or not self.name.isprintable():
            raise ConfigError(f"name of a key: 1 to 64 printable characters are needed, not {self.name!r}.")
        if not self.scopes or (unknown := set(self.scopes) - set(SCOPES)):
            raise ConfigError(
                f"scopes of key {self.name!r}: {sorted(unknown) if self.scopes else 'none'} given; choose of "
                f"{', '.join(SCOPES)}."
            )


def create_key(path: Path, name: str, scopes: Sequence[str]) -> str:
    """Adds a key to the file, which is made where there is none; the key itself, which nobody can read there."""
    secret = f"recsys_{secrets.token_urlsafe(32)}"
    created = datetime.now(UTC).isoformat(timespec="seconds")
    new = ApiKey(name=name, scopes=tuple(dict.fromkeys(scopes)), sha256=_hashed(secret), created=created)  # type: ignore[arg-type]
    with _one_writer(path):
        kept = read_keys(path) if path.exists() else []
        if name in {key.name for key in kept}:
            raise ConfigError(f"{path}: holds a key named {name!r}; choose another name, or revoke that one.")
        _write(path, [*kept, new])
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Takes a key out of the file; services that read it refuse the key from their next request on."""
    with _one_writer(path):
        kept = read_keys(path)
        left = [key for key in kept if key.name != name]
        if len(left) == len(kept):
            raise ConfigError(f"{path}: holds no key named {name!r}; it holds {', '.join(key.name for key in kept)}.")
        _write(path, left)


def read_keys(path: Path) -> list[ApiKey]:
    """What `create_key` wrote; a `ConfigError` for anything else."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
        return [ApiKey(**{**entry, "scopes": tuple(entry["scopes"])}) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: API keys cannot be read there ({error}); `recsys keys create` makes such a file."
        ) from None


class KeyRing:
    """The keys of a file, read again when it changes; one that cannot be read then leaves the keys as they were."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._version_now()
        self._keys = read_keys(path)

    def find(self, secret: str) -> ApiKey | None:
        """The key, or None; takes the same time wherever it stands and however much of it is right."""
        self._refresh()
        hashed, found = _hashed(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256.encode(), hashed.encode()):
                found = key
        return found

    def _refresh(self) -> None:
        version = self._version_now()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read_keys(self._path)
        except ConfigError as error:
            LOG.error("API keys stay as they were: %s", error)

    def _version_now(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """Nobody else changes the file between reading and writing it; the folder is locked, since the file is replaced."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); pass another --file.") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, keys: Sequence[ApiKey]) -> None:
    """Whole or not at all, readable by its owner alone."""
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=2)
        Path(name).replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); pass another --file.") from None
