"""The logbooks that were asked for, opened; an error before any work where one isn't installed or can't be reached.
What each kind does is its own file's.
"""

from __future__ import annotations

from pytorch_quantizer.logbook.logbook import Logbook, Logbooks, LogFlags
from pytorch_quantizer.logbook.mlflow_logbook import MlflowLogbook
from pytorch_quantizer.logbook.tensorboard_logbook import TensorBoardLogbook


def open_logbooks(flags: LogFlags, experiment: str) -> Logbooks:
    """All that ``flags`` ask for. experiment: what MLflow files the runs under.

    Raises InputError for one that isn't installed, a folder that can't be written to, a server that doesn't answer.
    """
    opened: list[Logbook] = []
    if flags.tensorboard is not None:
        opened.append(TensorBoardLogbook(flags.tensorboard))
    if flags.mlflow is not None:
        opened.append(MlflowLogbook(flags.mlflow, experiment))
    return Logbooks(opened)
