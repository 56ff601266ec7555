"""MLflow enters here: training runs and the model registry. SQLite beside the work by default."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from recsys.errors import ConfigError

SQLITE = "sqlite:///"
DEFAULT_URI = f"{SQLITE}mlflow.db"
EXPERIMENT = "recsys"
MAX_PARAM_CHARS = 6000


@runtime_checkable
class Tracker(Protocol):
    """Where a training run reports to."""

    @property
    def run_id(self) -> str | None:
        """The run's id, None where nothing is tracked."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures of one epoch."""
        ...

    def finish(self, status: str) -> None:
        """Ends the run: FINISHED or FAILED."""
        ...


class NoTracker:
    """Reports nowhere: workers other than the first, and `--no-tracking`."""

    run_id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def finish(self, status: str) -> None:
        """Nothing."""


class MLflowTracker:
    """One MLflow run; reopened by its id when training resumes."""

    def __init__(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None
    ) -> None:
        self.client = mlflow_client()
        if run_id is None:
            run_id = self._start(name, params, tags)
        self.run_id: str = run_id

    def _start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        run_id: str = self.client.create_run(experiment_id(self.client), run_name=name, tags=dict(tags)).info.run_id
        for key, value in params.items():
            self.client.log_param(run_id, key, str(value)[:MAX_PARAM_CHARS])
        return run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures of one epoch; '@' is not allowed in MLflow names and becomes '_at_'."""
        for key, value in metrics.items():
            self.client.log_metric(self.run_id, key.replace("@", "_at_"), value, step=step)

    def finish(self, status: str) -> None:
        """Ends the run."""
        self.client.set_terminated(self.run_id, status)


def mlflow_client() -> Any:
    """A client of `MLFLOW_TRACKING_URI`, or of the SQLite file `mlflow.db` in the working folder; it answers."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient  # a second of import that commands without MLflow need not pay
    from mlflow.exceptions import MlflowException

    uri = tracking_uri()
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise ConfigError(
            f"MLflow: MLFLOW_TRACKING_URI={uri!r} does not answer as a tracking store "
            f"({str(error).strip().splitlines()[0]}); start it, or set another; training also runs with --no-tracking."
        ) from None
    return client


def experiment_id(client: Any) -> str:
    """The id of the experiment `recsys`, made where it is missing (artifacts beside a SQLite file)."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if tracking_uri().startswith(SQLITE):
        location = Path(tracking_uri().removeprefix(SQLITE)).absolute().with_name("mlartifacts").as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def tracking_uri() -> str:
    """Where MLflow keeps its records."""
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)
