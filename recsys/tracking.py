"""MLflow enters here: training runs and the model registry. SQLite beside the work by default."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        known = run_id is not None and self._reopen(run_id)
        self.run_id: str = run_id if run_id is not None and known else self._start(name, params, tags)

    def _reopen(self, run_id: str) -> bool:
        """Sets an interrupted run to RUNNING; False where this store does not know it."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException:
            return False
        return True

    def _start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        run_id: str = self.client.create_run(experiment_id(self.client), run_name=name, tags=dict(tags)).info.run_id
        for key, value in params.items():
            self.client.log_param(run_id, key, str(value)[:MAX_PARAM_CHARS])
        return run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures of one epoch; '@' is not allowed in MLflow names and becomes '_at_'."""
        with warning_only():
            for key, value in metrics.items():
                self.client.log_metric(self.run_id, key.replace("@", "_at_"), value, step=step)

    def finish(self, status: str) -> None:
        """Ends the run."""
        with warning_only():
            self.client.set_terminated(self.run_id, status)


@contextmanager
def warning_only() -> Iterator[None]:
    """A store that fails while a model trains costs a warning, not the training."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        logging.getLogger("recsys").warning("MLflow did not take figures (%s); training goes on", error)


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


def store_exists() -> bool:
    """False where the SQLite file that a client would make is not there yet."""
    uri = tracking_uri()
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()
