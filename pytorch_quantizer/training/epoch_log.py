"""What was measured after each epoch: a table beside the weights, and in the logbooks that are asked for.
What is measured is session.py's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.logbook import Logbooks, Run
from pytorch_quantizer.training.config import TrainingConfig, epochs_path, weights_path
from pytorch_quantizer.training.saved import settings_of

EXPERIMENT = "pytorch_quantizer training"


class EpochLog:
    """A training run's epochs as they come; those of before an interruption come first."""

    def __init__(self, config: TrainingConfig, run: Run) -> None:
        self._path, self._run = epochs_path(config), run
        self._rows: list[dict[str, float]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Write an epoch: {"epoch", "loss", "validation": {…}}."""
        values = flat(record)
        self._rows.append({"epoch": record["epoch"], **values})
        write_atomically(self._path, pd.DataFrame(self._rows).to_csv(index=False).encode())
        self._run.log(values, record["epoch"])

    def finish(self) -> None:
        """The last epoch is over."""
        self._run.finish()


def log_training(config: TrainingConfig, history: Sequence[Mapping[str, Any]], logbooks: Logbooks) -> EpochLog:
    """Begin the log of a run, or go on behind ``history``, of which everything is written down again."""
    settings = {name: _plain(value) for name, value in settings_of(config).items() if value is not None}
    text = json.dumps([settings, str(weights_path(config).absolute())], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    log = EpochLog(config, logbooks.run(weights_path(config).stem, key, settings))
    for record in history:
        log.add(record)
    return log


def flat(record: Mapping[str, Any]) -> dict[str, float]:
    """Its numbers by name: loss, validation/accuracy, …"""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": float(number) for inner, number in value.items()}
        elif name != "epoch":
            found[name] = float(value)
    return found


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)
