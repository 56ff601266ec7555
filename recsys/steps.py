"""A step writes one new folder, whole or not at all, next to a manifest of where it came from.

out/                  appears by one rename when the step has ended well
.out.partial/         what a running (or killed) step has written so far; the next run removes it
.out.lock             held while a step writes, so that two runs cannot mix
"""

import ctypes
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recsys import __version__
from recsys.errors import DataError

MANIFEST = "manifest.json"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
LIBRARIES = ("numpy", "polars", "torch", "faiss-cpu", "mlflow-skinny", "onnxruntime")


@dataclass
class Step:
    """A step while it runs: where it writes, and what its manifest will say.

    `history`: what was appended to the folder so far. `kept`: hashes of files that came as they are from an older
    output and need not be read again.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    inputs: Sequence[dict[str, Any]]
    seed: int | None = None
    scratch: Sequence[str] = ()
    counts: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def manifest(self) -> dict[str, Any]:
        """Inputs and written files with hashes, resolved config, seed, versions, commit, counts, cost."""
        return {
            "step": self.name,
            "recsys": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "inputs": list(self.inputs),
            "config": dict(self.config),
            "seed": self.seed,
            "counts": self.counts,
            **({"history": self.history} if self.history else {}),
            "files": self._hashes(),
            "libraries": library_versions(),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "commit": git_commit(),
            "seconds": round(time.perf_counter() - self.started, 3),
            "peak_memory_mib": peak_memory_mib(),
        }

    def _hashes(self) -> dict[str, str]:
        """SHA-256 of every file that belongs to the output."""
        files = (file.relative_to(self.folder) for file in sorted(self.folder.rglob("*")) if file.is_file())
        return {
            str(file): self.kept.get(str(file)) or sha256(self.folder / file)
            for file in files
            if file.parts[0] not in self.scratch
        }


@contextmanager
def writing_step(
    name: str,
    out: Path,
    *,
    config: Mapping[str, Any],
    inputs: Sequence[Path] = (),
    seed: int | None = None,
    overwrite: bool = False,
    keep_partial: bool = False,
    scratch: Sequence[str] = (),
) -> Iterator[Step]:
    """Yields a `Step` whose folder becomes `out` when the block ends well.

    With `keep_partial` an interrupted step's folder is handed on to the next run (training resumes from it);
    otherwise it is removed and the step starts over. What is named in `scratch` (checkpoints) stays until `out` is
    in place, and is no part of it.
    """
    described = [describe_input(path) for path in inputs]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_folder(out)
    with _exclusive(out.with_name(f".{out.name}.lock"), f"{name}: another run is writing {out}; wait for it to end."):
        _recover(out)
        if out.exists() and not overwrite:
            raise DataError(f"{name}: {out} exists already; choose another folder, or pass --overwrite to replace it.")
        if partial.exists() and not keep_partial:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        step = Step(name=name, folder=partial, config=config, inputs=described, seed=seed, scratch=scratch)
        try:
            yield step
        except BaseException:
            if not keep_partial:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        write_json(partial / MANIFEST, step.manifest())
        _replace_folder(partial, out)
        for entry in scratch:
            shutil.rmtree(out / entry, ignore_errors=True)


def partial_folder(out: Path) -> Path:
    """Where a step writes until `out` appears."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def _exclusive(lock: Path, refusal: str) -> Iterator[None]:
    """Holds `lock` while the block runs; the file is removed with it, so its holder checks that it holds this one."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(refusal) from None
        if not lock.exists() or lock.stat().st_ino != os.fstat(handle.fileno()).st_ino:
            raise DataError(refusal)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _replace_folder(new: Path, out: Path) -> None:
    """Renames `new` to `out`; an older `out` stays whole until the new one is in place.

    Where the system can make two folders change places, there is no instant without an `out`.
    """
    if not out.exists():
        new.rename(out)
        return
    retired = _retired_folder(out)
    new.rename(retired)
    if not _exchanged(retired, out):
        retired.rename(new)
        out.rename(retired)
        new.rename(out)
    shutil.rmtree(retired)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two paths changed names at one instant (Linux, most file systems)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return rename is not None and rename(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) == 0


def _recover(out: Path) -> None:
    """Ends a replacement that was killed: the old folder comes back where the new one had not yet taken its place."""
    retired = _retired_folder(out)
    if retired.exists() and not out.exists():
        retired.rename(out)
    shutil.rmtree(retired, ignore_errors=True)


def _retired_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.retired")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable JSON, written as `write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes so that `path` is never seen half-written."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_manifest(folder: Path, step: str) -> dict[str, Any]:
    """The manifest of `folder`, checked to be written by `step`."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the output of `recsys {step}`.")
    if not path.is_file():
        raise DataError(f"{folder}: has no {MANIFEST}; expected the output of `recsys {step}`.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); make the folder again with `recsys {step}`.") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: holds a {type(manifest).__name__}, not a manifest; make the folder again.")
    if manifest.get("step") != step:
        raise DataError(
            f"{folder}: was made by `recsys {manifest.get('step')}`, but the output of `recsys {step}` is needed here."
        )
    return manifest


def describe_input(path: Path) -> dict[str, Any]:
    """Path, bytes and SHA-256 of a file; for a folder made by a step, of its manifest."""
    file = path / MANIFEST if path.is_dir() else path
    return {"path": str(path.resolve()), "bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def peak_memory_mib() -> int:
    """Most memory this process has held so far, in MiB (the kernel counts KiB, that of macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the source tree (with `+` when it has changes), or None outside its own checkout."""
    here = Path(__file__).resolve().parent
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, check=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
