"""What earlier cycles leave behind, so that a nightly job does not fill the disk."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from pipelines.champion import exported
from pipelines.cycle import NAME_LENGTH, pipeline_of, read_record
from pipelines.train import SCRATCH
from recsys.registry import alias_holders

LARGE = ("dataset", "prepared", "runs", "bundle")
"""Folders of a cycle that go; decision, evaluation and lineage stay."""

LEFT_BY_A_KILL = (".lock", ".partial", ".retired", ".tmp")


def sweep(work: Path, current: Path, keep: int, name: str, alias: str) -> list[str]:
    """Frees what is below `work` but the current cycle, the latest `keep` finished ones, and those of the champion and
    of the version that a rollback would bring back; returns what is gone, below `work`.

    A cycle that was never finished and is not the current one never will be, since its logs have changed: it goes.
    Cycles of other pipelines are theirs to free.
    """
    own = pipeline_of(current)
    finished, given_up = list[tuple[str, Path]](), list[Path]()
    for folder in work.glob("[0-9a-f]" * NAME_LENGTH):
        if folder != current and pipeline_of(folder) in {own, None}:
            record = read_record(folder)
            if record is None:
                given_up.append(folder)
            else:
                finished.append((record["finished"], folder))
    needed = cycles_of(work, (Path(exported(holder)["path"]) for holder in alias_holders(name, alias)))
    old = [folder / part for _, folder in sorted(finished, reverse=True)[keep:] for part in LARGE]
    freed = [folder for folder in (*old, *given_up) if folder.exists() and not lies_in(folder, needed)]
    for folder in freed:
        shutil.rmtree(folder)
    return [str(folder.relative_to(work)) for folder in freed]


def tidy(cycle: Path) -> None:
    """Removes what killed steps left beside or in the folders that they made in the end."""
    left = [path for path in cycle.rglob(".*") if path.suffix in LEFT_BY_A_KILL]
    for path in [*left, *(run / name for run in cycle.glob("runs/*") for name in SCRATCH)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def cycles_of(work: Path, runs: Iterable[Path]) -> set[Path]:
    """The cycles below `work` that runs lie in."""
    root = work.resolve()
    return {root / run.relative_to(root).parts[0] for run in runs if run.is_relative_to(root)}


def lies_in(folder: Path, cycles: set[Path]) -> bool:
    """Whether a folder is one of the cycles or in one."""
    return any(folder.resolve().is_relative_to(cycle) for cycle in cycles)
