"""What people read of a sensitivity diagnosis: the ranking on the screen, its answer in a line, and the files.
The numbers are evaluation/sensitivity.py's; nothing is computed here. Pages are reports/' business.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.evaluation.sensitivity import SIGNIFICANT

FILES = ("sensitivity.csv", "sensitivity.json")


def ranking(table: pd.DataFrame) -> str:
    """The layers as text, the one that hurts most first; accuracy in points against the float or the whole network."""
    shown = pd.DataFrame(
        {
            "layer": table["layer"],
            "weights": table["weights"],
            "activations": table["activations"],
            "alone": _points(-table["alone_drop"]),
            "dB": _decibels(table["alone_sqnr_db"]),
            "all but it": _points(table["all_but_gain"]),
            "dB ": _decibels(table["all_but_sqnr_db"]),
        }
    )
    flags = table.attrs
    heading = (
        f"top-1 on {flags['samples']} images: float32 {flags['float_top1']:.2%}, all quantized "
        f"{flags['quantized_top1']:.2%}, SQNR of its logits {_decibel(flags['quantized_sqnr_db'])} dB\n"
        "alone: points against float32; all but it: points against all quantized; SQNR in dB"
    )
    widths = {name: shown[name].str.len().max() for name in ("layer", "weights", "activations")}
    flush_left: Any = {name: (lambda text, width=width: f"{text:<{width}}") for name, width in widths.items()}
    return f"{heading}\n\n{shown.to_string(index=False, formatters=flush_left)}"


def answer(table: pd.DataFrame) -> str:
    """Which layer hurts, in a sentence."""
    worst = table.iloc[0]
    drop, decibel = 100 * worst["alone_drop"], _decibel(worst["alone_sqnr_db"])
    regained = f"all but it regain {100 * worst['all_but_gain']:.2f} points"
    if drop > 0 and worst["alone_p"] < SIGNIFICANT:
        return f"{worst['layer']} hurts most: alone it costs {drop:.2f} points (SQNR {decibel} dB); {regained}"
    return (
        f"{worst['layer']} hurts most by its SQNR, {decibel} dB; alone it costs {drop:.2f} points, {regained}: "
        f"on {table.attrs['samples']} images no layer's own drop stands out from chance"
    )


def write_sensitivity(table: pd.DataFrame, record: dict[str, Any], folder: Path) -> None:
    """Write sensitivity.csv and .json (the record, the answer, the rows), each whole or not at all."""
    rows = [{str(key): _finite(value) for key, value in row.items()} for row in table.to_dict("records")]
    measured = {key: _finite(value) for key, value in table.attrs.items()}
    text = json.dumps({"answer": answer(table), **record, **measured, "layers": rows}, indent=2, allow_nan=False)
    for name, content in zip(FILES, (table.to_csv(index=False), f"{text}\n"), strict=True):
        write_atomically(folder / name, content.encode())


def _points(rates: pd.Series) -> list[str]:
    """With a sign, but never -0.00."""
    return [f"{round(100 * rate, 2) + 0.0:+.2f}" for rate in rates]


def _decibels(values: pd.Series) -> list[str]:
    return [_decibel(value) for value in values]


def _decibel(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "∞" if value > 0 else "-∞"


def _finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
