"""A run that was finished before: found again by its report, so that the same command computes nothing.
Going on with one that was interrupted is saved.py's.
"""

from __future__ import annotations

import json
from typing import Any

from pytorch_quantizer.digests import file_digest
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.training.config import TrainingConfig, best_path, report_path, state_path, weights_path
from pytorch_quantizer.training.saved import changed_settings, identity_of
from pytorch_quantizer.training.session import load_split

NEEDED = {"config", "test", "epochs", "best_epoch", "written_epoch", "seconds", "identity", "weights_sha256"}


def finished_report(config: TrainingConfig) -> dict[str, Any] | None:
    """The report of the run that ``config`` asks for where it was finished before, its output as it is called now.

    None where there is something to do: resume is off, an interrupted run left its state, or the weights or the report
    are gone, or aren't what that run wrote. Raises InputError where it was a run with other settings or files, which
    training would write over, and for images, a checkpoint or a recipe that can't be read.
    """
    report = _read(config) if config.resume and not state_path(config).is_file() else None
    if report is None:
        return None
    if changed := changed_settings(report["identity"], identity_of(config, load_split(config, "train"))):
        raise InputError(
            f"{report_path(config)} is of a finished run with other settings ({changed}{_hints(config, report)}): "
            "give those to see it again, another --output to keep it, or --resume false to train anew over it"
        )
    report["config"]["output"] = str(weights_path(config))
    return report


def _read(config: TrainingConfig) -> dict[str, Any] | None:
    """The report beside the weights, if both are of one run."""
    try:
        report = json.loads(report_path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(report, dict) or not report.keys() >= NEEDED or not weights_path(config).is_file():
        return None
    return report if report["weights_sha256"] == file_digest(weights_path(config)) else None


def _hints(config: TrainingConfig, report: dict[str, Any]) -> str:
    """What may be wanted of a finished run that differs in how long, or in which epoch, and why it is none."""
    said = ""
    if report["identity"].get("epochs") != config.epochs:
        said += "; the learning rate falls over all epochs, so that more or fewer are another run"
    if report["identity"].get("keep") != config.keep and best_path(config).is_file():
        said += f"; the weights of its best epoch are in {best_path(config)}"
    return said
