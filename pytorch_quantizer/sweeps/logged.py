"""A sweep's rows in logbooks: a run each, its settings and its figures.
Which logbooks there are is logbook/'s business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pytorch_quantizer.logbook import Logbooks

SETTINGS = ("dataset", "arch", "checkpoint", "recipe", "weights", "activations", "seed", "deployable")
FIGURES = (
    *("top1", "top5", "agreement", "precision", "recall", "f1", "size_bytes", "fp32_top1", "fp32_size_bytes"),
    *("seconds", "quantizing_seconds"),
)


def log_row(logbooks: Logbooks, row: Mapping[str, Any]) -> None:
    """Write a row down where it isn't yet; one with an error isn't written."""
    if row["error"]:
        return
    name, key = f"{row['arch']}_{row['recipe']}_seed{row['seed']}", f"{row['key'][:12]}{row['code'][:8]}"
    run = logbooks.run(name, key, settings_of(row), missing_only=True)
    run.log({name: float(row[name]) for name in FIGURES}, 0)
    run.finish()


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the point was, its recipe's changed fields among it."""
    fields = {name: _plain(value) for name, value in json.loads(row["settings"] or "{}").items()}
    return fields | {name: _plain(row[name]) for name in SETTINGS}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
