"""A cycle of `recsys run`: one folder for one content of the logs, and what is already there of it.

WORK/run.lock
WORK/<cycle>/start.json                      log files with hashes, settings, the champion that was found
WORK/<cycle>/dataset/ prepared/ runs/{selected,candidate,champion}/ evaluation/ decision/ bundle/ registered/
WORK/<cycle>/cycle.json                      written last: the verdict, and the lineage from bundle to log files
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipelines.champion import Champion
from pipelines.pipeline_config import PipelineConfig
from recsys.bundle import open_bundle
from recsys.errors import DataError
from recsys.item_table import sibling_item_table
from recsys.steps import describe_input, partial_folder, read_manifest, write_json

START = "start.json"
RECORD = "cycle.json"
NAME_LENGTH = 12

State = Literal["done", "goes on", "to do"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a cycle: the folder it writes, the `recsys` step that its manifest names, and what it reads."""

    name: str
    out: Path
    step: str
    inputs: Sequence[Path]
    work: Callable[[], object]

    def state(self) -> State:
        """Done where the folder was made of the inputs as they are now."""
        if self.is_done():
            return "done"
        return "goes on" if (partial_folder(self.out) / "checkpoints").exists() else "to do"

    def is_done(self) -> bool:
        """Whether the manifest names these very inputs."""
        try:
            made_of = read_manifest(self.out, self.step)["inputs"]
            return bool(made_of == [describe_input(path) for path in self.inputs])
        except (DataError, FileNotFoundError):
            return False


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """Where everything of one cycle lies."""

    config: PipelineConfig
    logs: tuple[dict[str, Any], ...]
    others: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, config: PipelineConfig) -> "Cycle":
        """The cycle of the files as they are now."""
        files = config.log_files()
        items = config.ingest.items or sibling_item_table(files)
        others = [path for path in (items, config.prepare.retire) if path is not None]
        return cls(config=config, logs=tuple(map(describe_input, files)), others=tuple(map(described_file, others)))

    @cached_property
    def name(self) -> str:
        """Hash of the settings that decide the result and of all files' content."""
        files = [[Path(entry["path"]).name, entry["sha256"]] for entry in (*self.logs, *self.others)]
        content = json.dumps({"settings": self.config.result_settings(), "files": files}, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:NAME_LENGTH]

    @property
    def folder(self) -> Path:
        """Below `work`."""
        return self.config.work / self.name

    @property
    def log_files(self) -> list[Path]:
        """What is ingested."""
        return [Path(entry["path"]) for entry in self.logs]

    @property
    def runs(self) -> Path:
        """Folder of the runs; their folders' names are the names in reports."""
        return self.folder / "runs"

    @property
    def candidate(self) -> Path:
        """The run that may become champion."""
        return self.runs / "candidate"

    @property
    def trained(self) -> Path:
        """The run that learns from the training part: the candidate, where nothing is refitted."""
        return self.runs / "selected" if self.config.refit else self.candidate

    @property
    def champion_run(self) -> Path:
        """The champion's weights over the new data."""
        return self.runs / "champion"

    def record(self) -> dict[str, Any] | None:
        """What a finished cycle left, None for others."""
        return read_record(self.folder)

    def started(self) -> dict[str, Any] | None:
        """What was found when the cycle began."""
        path = self.folder / START
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def begin(self, champion: Champion | None) -> None:
        """Notes files, settings and champion."""
        found = (
            None
            if champion is None
            else {
                "version": champion.version,
                "bundle": champion.bundle,
                "run": str(champion.run.folder),
            }
        )
        before = self.started()
        if before is not None and before["champion"] == found:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / START,
            {
                "cycle": self.name,
                "pipeline": self.config.name,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "settings": self.config.result_settings(),
                "logs": self.logs,
                "other_files": self.others,
                "champion": found,
            },
        )

    def registered_its_own(self, holder_bundle: str) -> bool:
        """Whether the alias already points at this cycle's bundle: it was killed after registering."""
        bundle = self.folder / "bundle"
        return bundle.is_dir() and open_bundle(bundle).version == holder_bundle


def described_file(path: Path) -> dict[str, Any]:
    """As `describe_input`; a file that is not there is named."""
    if not path.is_file():
        raise DataError(f"run: {path}: no such file; check ingest.items and prepare.retire.")
    return describe_input(path)


def pipeline_of(folder: Path) -> str | None:
    """Whose cycle it is; None for one that was killed before it said so."""
    path = folder / START
    return json.loads(path.read_text(encoding="utf-8"))["pipeline"] if path.exists() else None


def read_record(folder: Path) -> dict[str, Any] | None:
    """The last word of a finished cycle, None for others."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
