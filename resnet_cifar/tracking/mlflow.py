"""MLflow: an SQLite database in RUN/mlflow, or the server of MLFLOW_TRACKING_URI."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import socket
import time
import urllib.parse
from pathlib import Path
from typing import Any

from resnet_cifar import wandb_env
from resnet_cifar.config.diff import flatten, recipe_key
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Track
from resnet_cifar.hub_access import answers
from resnet_cifar.tracking.base import UPLOAD_SECONDS, TrackedRun, Tracker, keep_identity, kept_identity

_VARIABLES = {  # unless the user has set them; read when mlflow is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; by default 120
}
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # read at every request; seven by default, which take minutes
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 0}  # 0: without a port, its host may be a data source name
_SECONDS = 4.0  # for a database to accept a connection; SQLAlchemy and MLflow together take minutes to give up
_STATES = {"finished": "FINISHED", "interrupted": "KILLED"}  # all others have failed
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_EVERY_ROW = "epoch"  # a metric that each row has


class MlflowTracker(Tracker):
    """One MLflow run, which every attempt continues. A row is stored once `log` has returned."""

    package = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        for name, value in _VARIABLES.items():
            os.environ.setdefault(name, value)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        server = _without_password(uri) if uri and uri.startswith(("http://", "https://")) else ""
        if server and not answers(server):
            raise ConnectionError(f"{server}, of MLFLOW_TRACKING_URI, does not answer")
        if uri and (database := _database(uri)) and not _accepts(*database):
            raise ConnectionError("{}:{}, of MLFLOW_TRACKING_URI, does not answer".format(*database))
        is_ours = _RETRIES not in os.environ
        os.environ.setdefault(_RETRIES, "1")  # training waits; later only a thread does
        try:
            self._open(run, uri, server)
        finally:
            if is_ours:
                del os.environ[_RETRIES]

    def _open(self, run: TrackedRun, uri: str | None, server: str) -> None:
        import mlflow

        folder, track = run.path / "mlflow", run.recipe.track
        folder.mkdir(exist_ok=True)
        identity = folder / ".id"
        is_new = kept_identity(identity) is None
        if is_new:  # otherwise the process that created the database was killed meanwhile
            for unfinished in folder.glob("mlflow.db*"):
                unfinished.unlink()
        self._client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        given = os.environ.get("MLFLOW_RUN_ID") if is_new else None
        self.named_run = f"MLFLOW_RUN_ID={given}" if given else ""
        self._run_id = self._known_run(identity)
        if self._run_id is None:
            place = None if uri else (folder / "artifacts").resolve().as_uri()
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") if track.project == Track().project else None
            named = {"group": recipe_key(run.recipe), **wandb_env.group_and_tags()}
            tags = {"group": named["group"], "tags": ",".join(named.get("tags", ()))}
            tags["mlflow.source.git.commit"] = run.environment.get("commit") or ""
            experiment = self._experiment(name or track.project, place)
            self._run_id = self._client.create_run(experiment, tags=tags, run_name=run.path.name).info.run_id
        keep_identity(identity, self._run_id)
        self._log_params(run)
        self._model = run.path / "model" if track.log_model else None
        self.upload_seconds = UPLOAD_SECONDS if track.log_model else 0.0
        info = self._client.get_run(self._run_id).info
        # The store of a run directory that was moved would copy files to where the directory was.
        self._keeps_files = bool(uri) or info.artifact_uri.startswith(folder.resolve().as_uri())
        store = "$MLFLOW_TRACKING_URI" if uri else shlex.quote(f"sqlite:///{folder / 'mlflow.db'}")
        # Without the dashboard, which the package mlflow has, it runs in an environment of its own.
        program = "mlflow" if importlib.util.find_spec("flask") else f"pipx run mlflow=={mlflow.__version__}"
        page = f"{server.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{self._run_id}"
        self.commands = (("curves", page if server else f"{program} ui --backend-store-uri {store}"),)

    def latest(self) -> int:
        """The step of the latest row that the store has, or -1."""
        return max((metric.step for metric in self._client.get_metric_history(self._run_id, _EVERY_ROW)), default=-1)

    def log(self, row: dict[str, Any]) -> None:
        """Logs a row of metrics.jsonl."""
        self._log_metrics(row["step"], {name: value for name, value in row.items() if name != "step"})

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Logs numbers at the last step, and figures, files and the model as artifacts."""
        self._log_metrics(step, values)
        if not self._keeps_files:
            return
        try:
            for file in figures.values():
                self._client.log_artifact(self._run_id, str(file), "figures")
            for file in files:
                self._client.log_artifact(self._run_id, str(file))
            if self._model:
                self._client.log_artifacts(self._run_id, str(self._model), "model")
        except Exception:
            # The store of files may be another one than that of numbers. It is finished, whatever becomes of its files.
            self.finish("finished")
            raise

    def finish(self, state: str) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run_id, _STATES.get(state, "FAILED"))

    def _log_metrics(self, step: int, values: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _log_params(self, run: TrackedRun) -> None:
        """The recipe's fields. A param is never changed: those of an earlier attempt stay."""
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        known = self._client.get_run(self._run_id).data.params
        values = {name: value for name, value in flatten(run.recipe).items() if name not in known}
        params = [Param(name, str(value)[:MAX_PARAM_VAL_LENGTH]) for name, value in values.items()]
        for first in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self._run_id, params=params[first : first + MAX_PARAMS_TAGS_PER_BATCH])

    def _known_run(self, identity: Path) -> str | None:
        """The run of an earlier attempt, or that of MLFLOW_RUN_ID, which runs again. Raises UserError."""
        from mlflow.exceptions import MlflowException

        given = os.environ.get("MLFLOW_RUN_ID")
        name = kept_identity(identity) or given
        if not name:
            return None
        try:
            self._client.get_run(name)
        except MlflowException as error:
            if error.error_code not in _UNKNOWN:
                raise
            if name == given:
                raise UserError(f"MLFLOW_RUN_ID={given} is not a run of this store: correct or unset it") from None
            return None  # an earlier attempt had another MLFLOW_TRACKING_URI
        self._client.update_run(name, status="RUNNING")
        return name

    def _experiment(self, name: str, place: str | None) -> str:
        """The id of the experiment, which is created, with its artifacts at `place`, if there is none."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=place)
            except MlflowException:  # perhaps a process that starts at the same moment was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id


def _database(uri: str) -> tuple[str, int] | None:
    """The host and port at which it is reached, if the URI tells: not by a socket, or as its query says."""
    parts = urllib.parse.urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    is_by_socket = kind == "mysql" and parts.hostname == "localhost"  # to MySQL's client, with any port
    if kind not in _PORTS or is_by_socket or "host" in parts.query or "socket" in parts.query:
        return None
    with contextlib.suppress(ValueError):  # several hosts
        port = parts.port or _PORTS[kind]
        return (parts.hostname, port) if parts.hostname and port else None
    return None


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError:
        return False
    return True


def _without_password(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
