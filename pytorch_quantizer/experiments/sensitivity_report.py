"""What people read of a sensitivity diagnosis: the ranking on the screen, its answer in a line, and the files.
The numbers are evaluation/sensitivity.py's; nothing is computed here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, FactorRange, HoverTool
from bokeh.plotting import figure
from bokeh.resources import INLINE

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.evaluation.sensitivity import SIGNIFICANT

FILES = ("sensitivity.csv", "sensitivity.json", "sensitivity.html")
MOST_DB = 120  # of a bar: a lossless layer's SQNR is infinite
DROP, NOISE, ALL_BUT = "#ee6677", "#4477aa", "black"


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
    """Write sensitivity.csv, .json (the record, the answer, the rows) and .html, each whole or not at all."""
    rows = [{str(key): _finite(value) for key, value in row.items()} for row in table.to_dict("records")]
    measured = {key: _finite(value) for key, value in table.attrs.items()}
    text = json.dumps({"answer": answer(table), **record, **measured, "layers": rows}, indent=2, allow_nan=False)
    title = (
        f"{record['arch']} on {record['dataset']}, {table.attrs['samples']} images, recipe {record['recipe']['name']}"
    )
    contents = (table.to_csv(index=False), f"{text}\n", sensitivity_picture(table, title))
    for name, content in zip(FILES, contents, strict=True):
        write_atomically(folder / name, content.encode())


def sensitivity_picture(table: pd.DataFrame, title: str) -> str:
    """An HTML page that needs no network: accuracy and SQNR of each layer alone (bars) and of all but it (dots)."""
    shown = table.assign(
        drop_points=100 * table["alone_drop"],
        gain_points=100 * table["all_but_gain"],
        alone_shown=table["alone_sqnr_db"].clip(-MOST_DB, MOST_DB),
        all_but_shown=table["all_but_sqnr_db"].clip(-MOST_DB, MOST_DB),
    )
    source = ColumnDataSource({str(name): list(shown[name]) for name in shown})
    layers = FactorRange(*shown["layer"])
    width = max(900, 22 * len(shown))
    accuracy = figure(x_range=layers, width=width, height=330, title=title, y_axis_label="top-1 (points)")
    _draw(accuracy, source, "drop_points", "alone: lost to float32", DROP)
    _mark(accuracy, source, "gain_points", "all but it: regained")
    noise = figure(x_range=layers, width=width, height=400, y_axis_label="SQNR of the logits (dB)")
    _draw(noise, source, "alone_shown", "alone", NOISE)
    _mark(noise, source, "all_but_shown", "all but it")
    whole = min(table.attrs["quantized_sqnr_db"], MOST_DB)
    noise.hspan(y=[whole], line_color=ALL_BUT, line_dash="dashed", legend_label="all quantized")
    for plot in (accuracy, noise):
        plot.legend.orientation = "horizontal"
        plot.add_layout(plot.legend[0], "above")  # not over the bars
        plot.add_tools(HoverTool(tooltips=_tooltips()))
    accuracy.xaxis.visible = False
    noise.xaxis.major_label_orientation = math.pi / 3
    return file_html(column(accuracy, noise), INLINE, title=title)


def _draw(plot: Any, source: ColumnDataSource, top: str, legend: str, colour: str) -> None:
    plot.vbar("layer", 0.8, top, source=source, color=colour, legend_label=legend)


def _mark(plot: Any, source: ColumnDataSource, y: str, legend: str) -> None:
    plot.scatter("layer", y, source=source, color=ALL_BUT, size=6, legend_label=legend)


def _tooltips() -> list[tuple[str, str]]:
    plain = [(name, f"@{name}") for name in ("layer", "weights", "activations", "tensors")]
    numbers = {
        "alone": "@alone_top1{0.00%}, -@drop_points{0.00} points, @alone_sqnr_db{0.0} dB",
        "by chance": "p = @alone_p{0.000}",
        "all but it": "@all_but_top1{0.00%}, @gain_points{+0.00} points, @all_but_sqnr_db{0.0} dB",
    }
    return [*plain, *numbers.items()]


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
