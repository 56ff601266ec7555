"""A finished training run on disk, apart from which model it holds.

config.yaml   model.safetensors   epochs.jsonl   manifest.json   evaluation/<part>/   reranking/<part>/<retriever>/
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recsys.errors import DataError
from recsys.prepared import Prepared, open_prepared
from recsys.splits import FitOn
from recsys.steps import read_manifest

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
EPOCHS = "epochs.jsonl"
REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The output of `recsys train`."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """What tables call it: the folder's name."""
        return self.folder.name

    @property
    def model(self) -> str:
        """Name in the model registry."""
        return self.config["name"]

    @property
    def fit_on(self) -> FitOn:
        """The events it learned from."""
        return self.config["fit_on"]

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run that logged it, if any did."""
        return self.manifest["counts"].get("mlflow_run_id")

    def prepared(self) -> Prepared:
        """The data it was trained on, checked to be unchanged since."""
        prepared = open_prepared(Path(self.manifest["inputs"][0]["path"]))
        if prepared.fingerprint != self.config["data"]:
            raise DataError(
                f"{self.folder}: was trained on {prepared.folder}, which holds other data since; train again."
            )
        return prepared

    def evaluation(self, part: str) -> Path:
        """Where `recsys evaluate` puts its output for a part of the data."""
        return self.folder / "evaluation" / part

    def reranking(self, part: str, retriever: str) -> Path:
        """Where it puts that of a ranker over the lists of a retriever's run."""
        return self.folder / "reranking" / part / retriever


def open_run(folder: Path) -> Run:
    """Opens the output of `recsys train`."""
    manifest = read_manifest(folder, "train")
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    return Run(folder=folder, config=config, manifest=manifest)
