"""Figures for papers, PNG and SVG: which charts there are of what was read, and writing them.
Drawing them is drawings.py's; matplotlib comes with the extra [figures].
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pytorch_quantizer.atomic import atomic_path, require_writable
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.reports import drawings
from pytorch_quantizer.reports.ablation import PANEL as PANEL_OF_ABLATION
from pytorch_quantizer.reports.ablation import ablation_rows
from pytorch_quantizer.reports.chosen_runs import chosen_runs
from pytorch_quantizer.reports.confusion import class_changes, confusion_matrices, distinct, shown_classes
from pytorch_quantizer.reports.costs import form_sizes, latency_rows, size_rows, timed_rows
from pytorch_quantizer.reports.distributions import distributions_of
from pytorch_quantizer.reports.drawings import Figure
from pytorch_quantizer.reports.layers import measured_tensors, sensitive_layers
from pytorch_quantizer.reports.methods import PANEL, method_points
from pytorch_quantizer.reports.report import worst_tensor
from pytorch_quantizer.reports.runs_table import runs_table
from pytorch_quantizer.reports.sources import Material, Run
from pytorch_quantizer.reports.tradeoff import tradeoff_points
from pytorch_quantizer.reports.training import epochs_table

Named = Iterator[tuple[str, Figure]]
LOOKS: dict[Any, Any] = {
    **{"font.size": 7, "axes.grid": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.5, "axes.axisbelow": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "svg.fonttype": "none"},
    **{
        "svg.hashsalt": "pytorch_quantizer",
        "savefig.dpi": 300,
        "text.parse_math": False,
    },  # the same data give the same bytes
}


def require_matplotlib() -> None:
    """Raise InputError where matplotlib isn't installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        said = "figures need matplotlib, which is missing: pip install 'pytorch-quantizer[figures]'"
        raise InputError(said) from error


def write_figures(
    folder: Path, material: Material, tensor: str | None = None, detail: Sequence[str] = ()
) -> list[Path]:
    """Write each chart of what was read as PNG and as SVG; the paths. The same data give the same bytes.

    tensor: whose histogram and batches are drawn, in each run that has it; None: the activation that loses most.
    detail: names of the runs whose tensors and classes are drawn; none: those of ``chosen_runs``.
    Raises InputError where matplotlib isn't installed, the folder can't be written, or no run holds ``tensor``.
    """
    require_matplotlib()
    import matplotlib

    require_writable(folder / "figure.svg")
    _check_tensor(material, tensor)
    written = []
    with matplotlib.rc_context(LOOKS):
        for name, drawn in figures_of(material, tensor, detail):
            for suffix in (".png", ".svg"):
                path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}{suffix}"
                _save(drawn, path)
                written.append(path)
    return written


def figures_of(material: Material, tensor: str | None = None, detail: Sequence[str] = ()) -> Named:
    """Names and figures, in the order of the page."""
    for table in material.sweeps:
        yield from _tradeoffs(table.rows, table.name)
    if len(material.runs) > 1:
        yield from _tradeoffs(runs_table(material.runs), "runs")
    for table in material.leaderboards:
        for panel, part in method_points(table.rows).groupby([*PANEL, "setting"], sort=False):
            yield "_".join((table.name, *map(str, panel))), drawings.draw_methods(part)
    for run in chosen_runs(material.runs, detail):
        yield from _of_run(run, tensor)
    for table in material.diagnoses:
        yield f"{table.name}_sensitivity", drawings.draw_sensitivity(sensitive_layers(table.rows))
    for record in material.ablations:
        for panel, part in ablation_rows(record.record).groupby(PANEL_OF_ABLATION, sort=False):
            yield "_".join((record.name, *map(str, panel))), drawings.draw_ablation(part)
    for record in material.benches:
        yield from _of_costs(record.name, timed_rows(record.record), form_sizes(record.record))
    for record in material.trainings:
        yield f"{record.name}_training", drawings.draw_training(epochs_table(record.record))


def _tradeoffs(results: pd.DataFrame, name: str) -> Named:
    for panel, part in tradeoff_points(results).groupby("panel", sort=False):
        if part["kib"].notna().any():
            yield f"{name}_{panel}_size", drawings.draw_size(part)
        yield f"{name}_{panel}_bits", drawings.draw_bits(part)


def _of_run(run: Run, tensor: str | None) -> Named:
    rows = measured_tensors(run.layers)
    for what, chosen in (("weights", rows["kind"] == "weight"), ("tensors", rows["kind"] != "weight")):
        if chosen.any():
            yield f"{run.name}_sqnr_{what}", drawings.draw_noise(rows[chosen].reset_index(drop=True))
    if run.details is not None:
        yield from _of_values(run, tensor or worst_tensor(run.layers))
        yield from _of_classes(run)
    yield from _of_costs(run.name, latency_rows(run.record), size_rows(run.record))


def _of_costs(name: str, latencies: pd.DataFrame, sizes: pd.DataFrame) -> Named:
    yield f"{name}_latency", drawings.draw_costs(latencies, "name", "median_ms", "milliseconds a batch")
    yield f"{name}_size", drawings.draw_costs(sizes, "model", "kib", "KiB on disk")


def _of_values(run: Run, tensor: str | None) -> Named:
    assert run.details is not None
    for one in distributions_of(run.details):
        if one.name == tensor:
            yield f"{run.name}_{one.name}_values", drawings.draw_distribution(one)
            if one.batches:
                yield f"{run.name}_{one.name}_batches", drawings.draw_batches(one)


def _of_classes(run: Run) -> Named:
    assert run.details is not None
    answers = run.details["answers"]
    if answers["fp32"] is None:
        return
    bars, chosen = shown_classes(class_changes(answers))
    before, after = (matrix[np.ix_(chosen, chosen)] for matrix in confusion_matrices(answers))
    names = distinct(answers["classes"])
    yield f"{run.name}_classes", drawings.draw_changes(bars)
    yield f"{run.name}_confusion", drawings.draw_matrices(before, after, [names[i] for i in chosen])


def _check_tensor(material: Material, tensor: str | None) -> None:
    known = [entry["name"] for run in material.runs for entry in (run.details or {"tensors": []})["tensors"]]
    if tensor is None or tensor in known:
        return
    if not known:
        raise InputError(f"--tensor {tensor!r} is none that was read: only folders of `pq run` hold tensors' values")
    close = difflib.get_close_matches(tensor, known, 4, 0)
    raise InputError(f"--tensor must be one of the runs' tensors, such as {', '.join(close)}, got {tensor!r}")


def _save(drawn: Figure, path: Path) -> None:
    when = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with atomic_path(path) as temporary:
        drawn.savefig(temporary, format=path.suffix[1:], metadata=when)
