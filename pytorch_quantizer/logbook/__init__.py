"""Runs written down where users look for them: TensorBoard and MLflow, where they are installed and asked for.
The results themselves are CSV and JSON, and their own folders'.
"""

from pytorch_quantizer.logbook.logbook import Logbook, Logbooks, LogFlags, Run
from pytorch_quantizer.logbook.open import open_logbooks

__all__ = ["LogFlags", "Logbook", "Logbooks", "Run", "open_logbooks"]
