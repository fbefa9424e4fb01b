"""What people read of a run: the table on the screen, and result.json, layers.csv and layers.html in a folder.
The numbers come from inference.py; nothing is computed here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from bokeh.embed import file_html
from bokeh.models import ColumnDataSource, FactorRange, HoverTool
from bokeh.plotting import figure
from bokeh.resources import INLINE

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.experiments.inference import InferenceResult

RATES = {"top-1": "top1", "top-5": "top5", "precision": "precision", "recall": "recall", "F1": "f1"}
COLOURS = {"weight": "#4477aa", "input": "#aa3377", "activation": "#ee6677", "residual": "#ccbb44"}


def result_table(record: dict[str, Any]) -> str:
    """float32 beside quantized, a line a measure, as text."""
    fp32, quantized = record["fp32"], record["quantized"]
    rows = [
        (name, f"{fp32[key]:.2%}", f"{quantized[key]:.2%}", f"{100 * (quantized[key] - fp32[key]):+.2f} points")
        for name, key in RATES.items()
    ]
    rows.insert(1, ("  95 % interval", _interval(fp32), _interval(quantized), ""))
    rows.append(("same prediction", "", f"{quantized['agreement']:.2%}", ""))
    size = quantized["size_bytes"] / fp32["size_bytes"]
    rows.append(("size of the file", _bytes(fp32), _bytes(quantized), f"{size:.2f} x"))
    for pair in zip(fp32["latency"], quantized["latency"], strict=True):
        rows += _latency_rows(*pair)
    rows += [(*row, "") for row in zip(("runs as", "  by", "  on"), _ran(fp32), _ran(quantized), strict=True)]
    lines = [f"{name:<22}{a:>20}{b:>20}   {c}" for name, a, b, c in [("", "float32", "quantized", "difference"), *rows]]
    return "\n".join([_heading(record), *lines])


def _latency_rows(fp32: dict[str, Any], quantized: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Median and spread of one batch size; in the end how many times as long."""
    name = f"latency, batch of {fp32['batch_size']}"
    ratio = f"{quantized['median_ms'] / fp32['median_ms']:.2f} x"
    return [
        (name, f"{fp32['median_ms']:.2f} ms", f"{quantized['median_ms']:.2f} ms", ratio),
        ("  10 % – 90 % of runs", _spread(fp32), _spread(quantized), ""),
    ]


def _spread(latency: dict[str, Any]) -> str:
    return f"{latency['p10_ms']:.2f} – {latency['p90_ms']:.2f} ms"


def _ran(entry: dict[str, Any]) -> tuple[str, str, str]:
    """What was timed: simulated or not, the runtime, the device and the CPU's threads."""
    timed = entry["latency"][-1]
    threads = f"{timed['threads']} thread{'s' if timed['threads'] > 1 else ''}"
    return timed["label"], timed["runtime"], f"cpu, {threads}" if timed["device"] == "cpu" else timed["device"]


def write_report(result: InferenceResult, folder: Path) -> None:
    """Write result.json, details.json, layers.csv and layers.html, each whole or not at all."""
    text = json.dumps(result.record, indent=2, allow_nan=False)
    write_atomically(folder / "result.json", f"{text}\n".encode())
    details = json.dumps(result.details, separators=(",", ":"), allow_nan=False)
    write_atomically(folder / "details.json", f"{details}\n".encode())
    write_atomically(folder / "layers.csv", result.layers.to_csv(index=False).encode())
    write_atomically(folder / "layers.html", layer_picture(result.layers, _layers_heading(result.record)).encode())


def layer_picture(layers: pd.DataFrame, title: str) -> str:
    """An HTML page that needs no network: each quantized tensor's SQNR, its own and accumulated, in order."""
    shown = layers[layers["sqnr_db"].notna() & (layers["kind"] != "bias")]
    shown = shown.assign(**{name: shown[name].clip(upper=120) for name in ("sqnr_db", "accumulated_sqnr_db")})
    names = list(dict.fromkeys(shown["name"]))
    width = max(700, 16 * len(names))
    plot = figure(x_range=FactorRange(*names), height=520, width=width, title=title, y_axis_label="SQNR (dB)")
    for kind, rows in shown.groupby("kind", sort=False):
        source = _source(rows)
        plot.vbar("name", 0.8, "sqnr_db", source=source, color=COLOURS[str(kind)], legend_label=f"{kind}, by itself")
    plot.scatter(
        "name",
        "accumulated_sqnr_db",
        source=_source(shown),
        color="black",
        legend_label="accumulated",
    )
    columns = ("name", "type", "low", "high", "clipped_fraction", "sqnr_db", "accumulated_sqnr_db", "entropy_bits")
    plot.add_tools(HoverTool(tooltips=[(column, f"@{column}") for column in columns]))
    plot.xaxis.major_label_orientation = math.pi / 3
    plot.legend.click_policy = "hide"
    plot.add_layout(plot.legend[0], "right")  # beside the bars, not over them
    return file_html(plot, INLINE, title=title)


def _layers_heading(record: dict[str, Any]) -> str:
    layers = record["layers"]
    return f"{_heading(record)}; each tensor on {layers['samples']} calibration images"


def _source(rows: pd.DataFrame) -> ColumnDataSource:
    return ColumnDataSource({str(column): list(rows[column]) for column in rows})


def _heading(record: dict[str, Any]) -> str:
    recipe = record["recipe"]
    deployable = "deployable" if record["deployable"] else "not deployable"
    return (
        f"{record['arch']} on {record['dataset']}, {record['samples']} images: weights {recipe['weights']}, "
        f"activations {recipe['activations']}, clip {recipe['clip']}, {deployable}"
    )


def _interval(entry: dict[str, Any]) -> str:
    low, high = entry["top1_interval"]
    return f"{low:.2%} – {high:.2%}"


def _bytes(entry: dict[str, Any]) -> str:
    return f"{entry['size_bytes']:,} B"
