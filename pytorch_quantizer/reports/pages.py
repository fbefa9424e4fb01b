"""The small pages that commands write beside their tables: one section each of what `pq report` shows at length.
The sections are their own files'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.reports.layers import sensitivity_section, tensors_section
from pytorch_quantizer.reports.methods import methods_section
from pytorch_quantizer.reports.page import page


def write_tensors_page(path: Path, layers: pd.DataFrame, record: dict[str, Any]) -> None:
    """layers.html: the noise of each tensor of a run, of layers.csv's rows and result.json's record."""
    section = tensors_section(layers, "run", "Noise of each tensor", record.get("layers", {}).get("samples"))
    write_atomically(path, page(run_title(record), [section]).encode())


def write_sensitivity_page(path: Path, table: pd.DataFrame, record: dict[str, Any]) -> None:
    """sensitivity.html: what each layer costs, of ``sensitivity()``'s table and what it was measured on."""
    section = sensitivity_section(table, {**record, **_measured(table)}, "sensitivity", "Sensitivity of layers")
    write_atomically(path, page(run_title(record), [section]).encode())


def _measured(table: pd.DataFrame) -> dict[str, Any]:
    return {str(name): value for name, value in table.attrs.items()}


def write_methods_page(path: Path, rows: pd.DataFrame) -> None:
    """leaderboard.html: every method at every width."""
    write_atomically(path, page("Leaderboard", [methods_section(rows, "leaderboard", "Methods")]).encode())


def run_title(record: dict[str, Any]) -> str:
    """Network, data set and recipe of a record."""
    return f"{record['arch']} on {record['dataset']}, recipe {record['recipe'].get('name', '?')}"
