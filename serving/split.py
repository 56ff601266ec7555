"""Which variant a user gets: by a salted hash, so that it stays the same, in shares that follow the weights.

Of all variants the one with the largest weight / -ln(h) wins, h a number in (0, 1) that hashes salt, variant and user
(weighted rendezvous hashing). A variant's chance is exactly its share of the weights, and when weights change, only
those users move whose old variant lost share to their new one: none moves between two whose ratio is as before.
"""

import fcntl
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Lock

from recsys.errors import ConfigError
from recsys.steps import write_json

CONTROL = "control"
LOG = logging.getLogger("uvicorn.error")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Weights of all variants, not negative, and those that answer in the shadow."""

    salt: str
    weights: Mapping[str, float]
    shadows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = {name: weight for name, weight in self.weights.items() if not 0 <= weight < math.inf}
        if wrong or not any(self.weights.values()):
            raise ConfigError(f"weights {wrong or dict(self.weights)}: give numbers from 0, one of them above.")
        if unknown := sorted(set(self.shadows) - self.weights.keys()):
            raise ConfigError(f"shadows: there is no variant {unknown[0]!r}; there are {', '.join(self.weights)}.")

    @cached_property
    def shares(self) -> dict[str, float]:
        """Of each variant its part of all weights: the chance with which a user gets it."""
        whole = sum(self.weights.values())
        return {name: weight / whole for name, weight in self.weights.items()}

    def choose(self, unit: str) -> tuple[str, float]:
        """The variant of a user (or whatever is to be given to one), and the chance of this variant."""
        shares = {name: share for name, share in self.shares.items() if share}
        chosen = max(shares, key=lambda name: shares[name] / -math.log(self._number(name, unit)))
        return chosen, shares[chosen]

    def changed(self, weights: Mapping[str, float], shadows: Sequence[str] | None = None) -> "Split":
        """With other weights (0 of variants that are not named) and other shadows (None: the same)."""
        if unknown := sorted(weights.keys() - self.weights.keys()):
            raise ConfigError(f"weights: there is no variant {unknown[0]!r}; there are {', '.join(self.weights)}.")
        full = {name: float(weights.get(name, 0)) for name in self.weights}
        return Split(salt=self.salt, weights=full, shadows=self.shadows if shadows is None else tuple(shadows))

    def without(self, name: str | None) -> "Split":
        """The variant answers nobody, nor in the shadow; None: nor do all but `control`. It does so if none is left."""
        weights = {CONTROL: 1.0} if name is None else {**self.weights, name: 0.0}
        shadows = [] if name is None else [shadow for shadow in self.shadows if shadow != name]
        return self.changed(weights if any(weights.values()) else {CONTROL: 1.0}, shadows)

    def _number(self, name: str, unit: str) -> float:
        """In (0, 1)."""
        digest = blake2b(f"{self.salt}\0{name}\0{unit}".encode(errors="surrogatepass"), digest_size=8).digest()
        return ((int.from_bytes(digest) >> 12) + 0.5) / 2**52


class SplitFile:
    """A split that may change while it is used: kept in a file where one is given, and read again when others write it.

    A file that cannot be read is a `ConfigError` at the start; later it leaves the split as it was. Changes come one
    after the other, in all processes that share the file: none undoes another.
    """

    def __init__(self, split: Split, path: Path | None) -> None:
        self._path, self._split = path, split
        self._assigning = Lock()
        self._seen = self._state()
        if path is not None and path.exists():
            self._split = self._read(path)

    @property
    def now(self) -> Split:
        """The split."""
        if self._state() != self._seen:
            with self._assigning:
                self._follow()
        return self._split

    @property
    def is_kept(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def change(self, changed: Callable[[Split], Split]) -> Split:
        """From now on what `changed` makes of the newest one, after a restart too where there is a file."""
        with self._alone(), self._assigning:
            self._follow()
            split = changed(self._split)
            if self._path is not None:
                write_json(self._path, {"weights": dict(split.weights), "shadows": list(split.shadows)})
                self._seen = self._state()
            self._split = split
        return split

    def _follow(self) -> None:
        """Reads the file if it is another one than was seen; under `_assigning`, or an older one could win."""
        state = self._state()
        if self._path is None or state == self._seen:
            return
        self._seen = state
        try:
            self._split = self._read(self._path)
        except ConfigError as error:
            LOG.error("the split stays as it was: %s", error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Of all threads and processes with this file; taken before `_assigning`, so that no request waits for it."""
        if self._path is None:
            yield
            return
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self, path: Path) -> Split:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return self._split.changed(content["weights"], content["shadows"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: holds no split ({error}); correct or remove it.") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def _state(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat() if self._path else None
        except OSError:
            return None
        return None if status is None else (status.st_mtime_ns, status.st_ino)
