"""What quantization does to each tensor and each layer: SQNR bars, and the diagnosis of sensitivity.py.
Histograms over grids are distributions.py's.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from bokeh.models import ColumnDataSource

from pytorch_quantizer.reports.chart import Chart, bars_chart, legend_above, rows_where, source_of
from pytorch_quantizer.reports.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from pytorch_quantizer.reports.section import Drawing, Markup, Section
from pytorch_quantizer.reports.table import counted, html_table, percent, points

MOST_DB = 120  # of a bar: what loses nothing has an infinite SQNR
KINDS = {"weight": (BLUE, " "), "input": (PURPLE, "x"), "activation": (VERMILION, " "), "residual": (ORANGE, "/")}
DRAWN = (
    *("key", "name", "kind", "type", "low", "high", "clipped_fraction", "entropy_bits"),
    *("sqnr_db_shown", "accumulated_sqnr_db_shown"),
)
TENSOR_NEEDS = ("name", "kind", "type", "low", "high", "sqnr_db", "accumulated_sqnr_db", "read_by", "reason")
LAYER_NEEDS = ("layer", "alone_drop", "alone_sqnr_db", "all_but_gain", "all_but_sqnr_db")


def measured_tensors(layers: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers.csv that have an SQNR, biases left out, with what is drawn cut to MOST_DB."""
    shown = layers[layers["sqnr_db"].notna() & (layers["kind"] != "bias")]
    cut = {f"{name}_shown": shown[name].clip(-MOST_DB, MOST_DB) for name in ("sqnr_db", "accumulated_sqnr_db")}
    return shown.assign(**cut).reset_index(drop=True)


def tensors_section(layers: pd.DataFrame, prefix: str, title: str, samples: Any = None) -> Section:
    """SQNR of each tensor, weights beside activations, and the table. prefix: of keys, sources and files."""
    rows = measured_tensors(layers)
    keys = [f"{prefix}t:{name}" for name in rows["name"]]
    rows = rows.assign(key=keys)
    parts: list[Drawing | Markup] = []
    linked = []
    for what, part in (("weights", rows[rows["kind"] == "weight"]), ("tensors", rows[rows["kind"] != "weight"])):
        if len(part):
            source = source_of(part, f"{prefix}{what}", DRAWN)
            linked.append(source)
            parts.append(Drawing(sqnr_chart(part, source), f"{CAPTIONS[what]}, in the order of execution.", half=True))
    images = f" Measured on {samples} calibration images." if samples else ""
    lead = (
        "Signal-to-quantization-noise ratio, 10·log10(Σx² / Σ(x − q(x))²): the bar is the tensor's own quantization "
        f"alone; the dot has all quantization before it in it.{images}"
    )
    parts.append(_tensor_table(rows, layers, prefix))
    left = layers[(layers["type"] == "float32")]
    parts += [_left_in_float(left, prefix)] if len(left) else []
    return Section(title, lead, parts, linked, _relations(rows, prefix))


CAPTIONS = {"weights": "Weights", "tensors": "Tensors between layers"}


def sqnr_chart(part: pd.DataFrame, source: ColumnDataSource) -> Chart:
    """A bar a tensor, its own SQNR, and a dot, the accumulated one."""
    made = bars_chart(list(part["name"]), x_label="SQNR (dB)", tooltips=_tensor_tooltips())
    for kind in part["kind"].unique():
        colour, hatch = KINDS.get(kind, (GREEN, "."))
        view = rows_where("kind", str(kind))
        made.hbar(
            y="name", right="sqnr_db_shown", height=0.8, source=source, view=view, color=colour, fill_alpha=0.8,
            hatch_pattern=hatch, hatch_color="white", legend_label=f"{kind}, by itself", nonselection_alpha=0.3,
        )  # fmt: skip
    made.scatter(
        "accumulated_sqnr_db_shown", "name", source=source, size=6, color=BLACK, legend_label="accumulated",
        nonselection_alpha=0.3,
    )  # fmt: skip
    made.x_range.start = min(0.0, float(part["accumulated_sqnr_db_shown"].min()))
    legend_above(made)
    return made


def sensitivity_section(table: pd.DataFrame, record: dict[str, Any], prefix: str, title: str) -> Section:
    """Each layer quantized alone, and all but it: accuracy and SQNR of the logits, the layer that hurts most on top."""
    rows = sensitive_layers(table).assign(key=[f"{prefix}l:{name}" for name in table["layer"]])
    source = source_of(rows, f"{prefix}_layers")
    parts = (
        Drawing(accuracy_chart(rows, source), "Top-1: lost by this layer alone, regained by all but it.", half=True),
        Drawing(noise_chart(rows, source), "SQNR of the logits: this layer alone, and all but it.", half=True),
        _layer_table(rows, table, prefix),
    )
    lead = (
        f"{record.get('answer', '')}. On {record.get('samples', '?')} images, float32 {percent(record['float_top1'])}, "
    )
    lead += f"all quantized {percent(record['quantized_top1'])}."
    return Section(title, lead, parts, [source])


def sensitive_layers(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of sensitivity.csv with drops and gains in points and SQNR cut to MOST_DB."""
    return table.assign(
        drop_points=100 * table["alone_drop"],
        gain_points=100 * table["all_but_gain"],
        alone_shown=table["alone_sqnr_db"].clip(-MOST_DB, MOST_DB),
        all_but_shown=table["all_but_sqnr_db"].clip(-MOST_DB, MOST_DB),
    )


def accuracy_chart(rows: pd.DataFrame, source: ColumnDataSource) -> Chart:
    """Points of top-1: a bar a layer alone, a dot for all but it."""
    made = bars_chart(list(rows["layer"]), x_label="top-1 (points)", tooltips=_layer_tooltips())
    _bar_and_dot(
        made, source, ("drop_points", "lost by it alone"), ("gain_points", "regained by all but it"), VERMILION
    )
    return made


def noise_chart(rows: pd.DataFrame, source: ColumnDataSource) -> Chart:
    """Decibels: a bar a layer alone, a dot for all but it."""
    made = bars_chart(list(rows["layer"]), x_label="SQNR of the logits (dB)", tooltips=_layer_tooltips())
    _bar_and_dot(made, source, ("alone_shown", "it alone"), ("all_but_shown", "all but it"), BLUE)
    return made


def _bar_and_dot(
    made: Chart, source: ColumnDataSource, bar: tuple[str, str], dot: tuple[str, str], colour: str
) -> None:
    made.hbar(
        y="layer", right=bar[0], height=0.8, source=source, color=colour, fill_alpha=0.8, legend_label=bar[1],
        nonselection_alpha=0.3,
    )  # fmt: skip
    made.scatter(dot[0], "layer", source=source, size=6, color=BLACK, legend_label=dot[1], nonselection_alpha=0.3)
    legend_above(made)


def _tensor_tooltips() -> list[tuple[str, str]]:
    return [
        ("tensor", "@name (@kind)"),
        ("type", "@type"),
        ("range", "@low{0.000} … @high{0.000}"),
        ("clipped", "@clipped_fraction{0.000 %}"),
        ("SQNR by itself", "@sqnr_db_shown{0.0} dB"),
        ("accumulated", "@accumulated_sqnr_db_shown{0.0} dB"),
        ("entropy", "@entropy_bits{0.00} bits"),
    ]


def _layer_tooltips() -> list[tuple[str, str]]:
    return [
        ("layer", "@layer"),
        ("types", "@weights, @activations"),
        ("alone", "@alone_top1{0.00 %}, lost @drop_points{0.00} points, @alone_shown{0.0} dB"),
        ("by chance", "p = @alone_p{0.000}"),
        ("all but it", "@all_but_top1{0.00 %}, regained @gain_points{0.00} points, @all_but_shown{0.0} dB"),
    ]


def _tensor_table(rows: pd.DataFrame, layers: pd.DataFrame, prefix: str) -> Markup:
    names = {
        **{
            "name": "tensor",
            "kind": "kind",
            "type": "type",
            "granularity": "granularity",
            "low": "low",
            "high": "high",
        },
        **{"clipped_fraction": "clipped", "sqnr_db": "SQNR (dB)", "accumulated_sqnr_db": "accumulated (dB)"},
        **{"entropy_bits": "entropy (bits)", "read_by": "read by"},
    }
    shown = rows[[name for name in names if name in rows]].rename(columns=names)
    formats: Any = {name: _decimals(1) for name in ("SQNR (dB)", "accumulated (dB)")}
    formats |= {"low": _significant, "high": _significant, "clipped": percent, "entropy (bits)": _decimals(2)}
    return html_table(
        shown, f"{prefix}_layers", formats=formats, whole=layers, keys=list(rows["key"]), caption="Quantized tensors"
    )


def _left_in_float(left: pd.DataFrame, prefix: str) -> Markup:
    shown = left[["name", "kind", "reason"]]
    return html_table(
        shown, f"{prefix}_left_in_float", caption=f"{counted(len(left), 'tensor')} left in float, and why"
    )


def _layer_table(rows: pd.DataFrame, table: pd.DataFrame, prefix: str) -> Markup:
    names = {
        **{"layer": "layer", "weights": "weights", "activations": "activations", "alone_drop": "lost alone (points)"},
        **{"alone_p": "p", "alone_sqnr_db": "alone (dB)", "all_but_gain": "regained (points)"},
        **{"all_but_sqnr_db": "all but it (dB)"},
    }
    shown = rows[[name for name in names if name in rows]].rename(columns=names)
    formats: Any = {name: _decimals(1) for name in ("alone (dB)", "all but it (dB)")}
    formats |= {"lost alone (points)": points, "regained (points)": points, "p": _decimals(3)}
    return html_table(
        shown,
        f"{prefix}_sensitivity",
        formats=formats,
        whole=table,
        keys=list(rows["key"]),
        caption="Layers, worst first",
    )


def _relations(rows: pd.DataFrame, prefix: str) -> dict[str, list[str]]:
    """A tensor marks the layers that read it, a layer the tensors that it reads."""
    related: dict[str, list[str]] = {}
    for key, readers in zip(rows["key"], rows["read_by"], strict=True):
        for reader in str(readers).split(", ") if isinstance(readers, str) and readers else []:
            related.setdefault(key, []).append(f"{prefix}l:{reader}")
            related.setdefault(f"{prefix}l:{reader}", []).append(key)
    return related


def _decimals(digits: int) -> Any:
    return lambda value: f"{value:.{digits}f}" if abs(value) != float("inf") else "∞" if value > 0 else "−∞"


def _significant(value: float) -> str:
    return f"{value:.4g}"
