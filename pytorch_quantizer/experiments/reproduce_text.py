"""What people read of a reproduced table: Markdown with published figures beside the measured ones, and CSV.
The numbers are reproduce_measure.py's; nothing is computed here but units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pytorch_quantizer.evaluation.latency import PARTLY
from pytorch_quantizer.experiments.reproduce import Row, Table, Timing

RATES = {"top1": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1"}
NONE = "–"
MEGABYTE = 1e6
NAMED = 2  # of what stays in float; the CSV has all
FIELDS = (
    *(
        "row",
        "recipe",
        "execution",
        "runtime",
        "floats",
        "choice",
        "samples",
        "correct",
        "top1",
        "top1_low",
        "top1_high",
    ),
    *("precision", "recall", "f1", "simulated_top1", "agreement", "checkpoint_bytes", "onnx_bytes"),
)
OF_TIMES = ("batch_size", "threads", "repeats", "median_ms", "p10_ms", "p90_ms")

Measured = Mapping[str, Any]


def records(
    table: Table, rates: Mapping[str, Measured], times: Mapping[str, Mapping[str, Measured]]
) -> list[dict[str, Any]]:
    """One flat mapping a row, as the CSV has it. rates: by row's name; times: by timing's name, then row's."""
    found = []
    for row in table.rows:
        of_row = dict(rates[row.name])
        low, high = of_row["top1_interval"]
        recipe = "float32" if row.recipe is None else row.recipe if isinstance(row.recipe, str) else row.recipe.name
        of_row |= {"row": row.name, "recipe": recipe, "top1_low": low, "top1_high": high}
        of_row["floats"] = " ".join(of_row["floats"])
        record = {name: of_row.get(name) for name in FIELDS}
        for name, by_row in times.items():
            record |= {f"{_slug(name)}_{entry}": by_row[row.name][entry] for entry in OF_TIMES}
        record |= {f"published_{_slug(name)}": value for name, value in row.published.items()}
        found.append(record)
    return found


def as_csv(table_records: Sequence[Measured]) -> str:
    """The records with a line of names above; what a row lacks is empty."""
    frame = pd.DataFrame(table_records)
    bytes_of = [name for name in frame.columns if name.endswith("_bytes")]
    return frame.astype(dict.fromkeys(bytes_of, "Int64")).to_csv(index=False)  # whole numbers beside empty cells


def as_markdown(
    table: Table, rates: Mapping[str, Measured], times: Mapping[str, Mapping[str, Measured]], about: Measured
) -> str:
    """The table. about: calibration_samples, split and threads; of times only those that were measured have columns."""
    columns: list[tuple[str, list[str]]] = [("recipe", _recipes(table))]
    for name in table.columns:
        columns += _pair(table, RATES[name], name, _rate, {row: rates[row][name] for row in rates})
    columns += _pair(table, "weights, MB", "file", _megabytes, {row: rates[row]["checkpoint_bytes"] for row in rates})
    columns.append(("ONNX file, MB", [_megabytes(rates[row.name].get("onnx_bytes")) for row in table.rows]))
    for timing in table.timings:
        if timing.name in times:
            medians = {row: of_row["median_ms"] for row, of_row in _by_row(table, times[timing.name]).items()}
            columns += _pair(table, heading(timing), timing.name, _of_time(timing), medians)
    columns.append(("runs as", [runs_as(rates[row.name]) for row in table.rows]))
    lines = [["", *(title for title, _ in columns)], ["---"] * (len(columns) + 1)]
    lines += [[row.name, *(cells[i] for _, cells in columns)] for i, row in enumerate(table.rows)]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# {table.title}\n\n{drawn}\n\n{_notes(table, rates, times, about)}\n"


def heading(timing: Timing) -> str:
    """What a column of times is headed: its name and unit."""
    return f"{timing.name}, {'s' if timing.images is None else 'ms'}"


def runs_as(rates: Measured) -> str:
    """What computes a row and in which numbers, with what of it stays in float."""
    left = rates["floats"]
    how = PARTLY if left and rates["execution"] == "integer" else rates["execution"]
    named = ", ".join(left[:NAMED])
    partly = f"; {named} in float" if left else ""
    if left[NAMED:]:
        partly = f"; {len(left)} layers and additions in float ({named}, …)"
    return f"{how}, {rates['runtime']}{partly}"


def row_line(row: Row, rates: Measured) -> str:
    """A row as it comes, for the screen."""
    how = "kept" if rates["kept"] else f"{rates['seconds']:.0f} s"
    return f"{row.name:<32} {_rate(rates['top1'])} of {rates['samples']:,} images  {runs_as(rates)}  ({how})"


def _notes(table: Table, rates: Mapping[str, Measured], times: Mapping[str, Any], about: Measured) -> str:
    samples, split = next(iter(rates.values()))["samples"], {"train": "training"}.get(about["split"], about["split"])
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    parts = [
        f"{samples:,} test images; ranges from {about['calibration_samples']:,} {split} images.",
        "Rates are those of the very model that the row names; precision, recall and F1 are macro averages."
        if len(table.columns) > 1
        else "Accuracy is that of the very model that the row names.",
        "Weights: the packed checkpoint, of float32 its safetensors file; MB = 10^6 bytes on disk.",
    ]
    timed = [_timed(timing) for timing in table.timings if timing.name in times]
    parts += [f"Times: median forward pass on {threads}, {'; '.join(timed)}."] if timed else []
    choices = dict.fromkeys(entry["choice"] for entry in rates.values() if entry["choice"])
    parts += [f"Weights in ONNX Runtime: {'; '.join(choices)}."] if choices else []
    if any(entry["execution"] == "simulated" for entry in rates.values()):
        parts.append("Simulated: floating point on the quantization grid, whose time says nothing of integer hardware.")
    return " ".join([*parts, table.note]).strip()


def _timed(timing: Timing) -> str:
    if timing.images is None:
        return f"{timing.name}: all these images in batches of {timing.batch}"
    return f"{timing.name} pixels: a batch of {timing.batch}"


def _recipes(table: Table) -> list[str]:
    return [_recipe(row) for row in table.rows]


def _recipe(row: Row) -> str:
    if row.recipe is None:
        return NONE
    name = row.recipe if isinstance(row.recipe, str) else row.recipe.name
    return f"{name}, {row.epochs} epochs" if row.epochs else name


def _pair(
    table: Table, title: str, name: str, shown: Any, measured: Mapping[str, float | None]
) -> list[tuple[str, list[str]]]:
    """The column of a measure, and the published one beside it where any row has such a figure."""
    columns = [(title, [shown(measured[row.name]) for row in table.rows])]
    if any(name in row.published for row in table.rows):
        columns.append(("published", [shown(row.published.get(name)) for row in table.rows]))
    return columns


def _by_row(table: Table, times: Mapping[str, Any]) -> dict[str, Measured]:
    return {row.name: times[row.name] for row in table.rows}


def _rate(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f} %"


def _megabytes(value: float | None) -> str:
    return NONE if value is None else f"{value / MEGABYTE:.3f}"


def _of_time(timing: Timing) -> Any:
    factor = 1e-3 if timing.images is None else 1.0
    return lambda value: NONE if value is None else f"{value * factor:.2f}"


def _slug(name: str) -> str:
    return name.replace(" x ", "x").replace(" ", "_")
