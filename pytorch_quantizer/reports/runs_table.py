"""Runs as the rows of a sweep, so that charts of sweeps show them too.
The charts are tradeoff.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pytorch_quantizer.reports.sources import Run


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Several runs as the rows of a sweep."""
    return pd.DataFrame([_run_row(run.record) for run in runs])


def _run_row(record: dict[str, Any]) -> dict[str, Any]:
    quantized, fp32, recipe = record["quantized"], record["fp32"], record["recipe"]
    rates = {name: quantized[name] for name in ("top1", "agreement", "precision", "recall", "f1")}
    named = {name: record.get("types", recipe).get(name, "") for name in ("weights", "activations")}
    return {
        **{"dataset": record["dataset"], "arch": record["arch"], "recipe": recipe.get("name", "")},
        **named,
        "checkpoint": record.get("checkpoint") or "",
        **{"seed": record.get("seed"), **rates, "fp32_top1": fp32["top1"], "size_bytes": quantized["size_bytes"]},
        **{"fp32_size_bytes": fp32["size_bytes"], "seconds": record.get("quantizing_seconds")},
        **{"samples": record.get("samples"), "deployable": record.get("deployable"), "error": ""},
        "calibration_samples": record.get("calibration", {}).get("samples"),
    }
