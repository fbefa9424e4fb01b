"""Runs in MLflow, on a server or in a file, found again by a tag.
Which runs there are is for those to say who log them.
"""

from __future__ import annotations

import importlib.util
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.logbook.logbook import Settings, Values

KEY = "pytorch_quantizer.key"  # the tag
PATIENCE = 10  # seconds until a server must answer
LONGEST = 500  # characters of a parameter that every version of MLflow takes
FINISHED, RUNNING = "FINISHED", "RUNNING"


class MlflowLogbook:
    """An experiment of a tracking store, made where it isn't there."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Raises InputError where mlflow isn't installed, the URI is none of its, or nobody answers there."""
        require_mlflow()
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            _check_answers(uri)
            self._client: Any = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = self._client.create_experiment(experiment) if found is None else found.experiment_id
        except (MlflowException, OSError, ValueError) as error:
            raise InputError(
                f"--mlflow {uri}: can't be used ({first_line(error)}); give sqlite:///FILE, or the address of a server"
            ) from error

    def has(self, key: str) -> bool:
        """Whether a run of this key is finished."""
        return bool(self._found(key, FINISHED))

    def run(self, name: str, key: str, settings: Settings) -> MlflowRun:
        """Begin, or go on with one of this key that isn't finished."""
        for unfinished in self._found(key, RUNNING):
            return MlflowRun(self._client, unfinished.info.run_id, self._last_step(unfinished))
        made = self._client.create_run(self._experiment, run_name=name, tags={KEY: key})
        from mlflow.entities import Param

        parameters = [Param(setting, str(value)[:LONGEST]) for setting, value in settings.items()]
        self._client.log_batch(made.info.run_id, params=parameters)
        return MlflowRun(self._client, made.info.run_id)

    def _last_step(self, run: Any) -> int:
        """The last step that it has; a step's metrics come in whole."""
        steps = [
            metric.step
            for name in list(run.data.metrics)[:1]
            for metric in self._client.get_metric_history(run.info.run_id, name)
        ]
        return max(steps, default=-1)

    def _found(self, key: str, status: str) -> list[Any]:
        wanted = f"tags.`{KEY}` = '{key}' and attributes.status = '{status}'"
        return list(self._client.search_runs([self._experiment], wanted, max_results=1))


class MlflowRun:
    """A run of the store, by its id."""

    def __init__(self, client: Any, run_id: str, last_step: int = -1) -> None:
        self._client, self._run_id, self._last_step = client, run_id, last_step

    def log(self, values: Values, step: int) -> None:
        """A metric each, in one request; a step that the run has already is passed over."""
        if step <= self._last_step:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self) -> None:
        """Let it be finished."""
        self._client.set_terminated(self._run_id, FINISHED)


def require_mlflow() -> None:
    """Raise InputError where it isn't installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise InputError("--mlflow needs MLflow, which isn't installed: pip install 'pytorch-quantizer[mlflow]'")


def _check_answers(uri: str) -> None:
    """Raise OSError where no server listens: MLflow itself would try for minutes."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), PATIENCE).close()
