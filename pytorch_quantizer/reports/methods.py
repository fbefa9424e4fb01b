"""The leaderboard: what each method keeps of the accuracy at each width, with its interval over seeds.
Means and intervals are experiments/leaderboard_table.py's.
"""

from __future__ import annotations

import math

import pandas as pd
from bokeh.models import ColumnDataSource, Range1d
from bokeh.models.annotations import Whisker

from pytorch_quantizer.experiments.leaderboard_table import summary
from pytorch_quantizer.reports.chart import Chart, bars_chart, legend_above, rows_where, source_of
from pytorch_quantizer.reports.palette import BLACK, styles
from pytorch_quantizer.reports.section import Drawing, Markup, Section
from pytorch_quantizer.reports.table import counted, html_table, percent, written

PANEL = ["dataset", "arch", "residual"]
MARGIN = 0.05  # of what is shown, on both sides
DRAWN = ("key", "method", "setting", "percent", "low", "high", "seeds", "deployable", "seconds", "kind")
NEEDED = (*PANEL, "method", "weights", "activations", "seed", "top1", "fp32_top1", "error")


def method_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard's means with setting (W4A4), percent, low and high (the interval, in %) and a key each."""
    table = summary(rows).dropna(subset=["top1"]).reset_index(drop=True)
    half = 100 * table["half_interval"].fillna(0.0)
    percentage = 100 * table["top1"]
    return table.assign(
        key=[f"m{i}" for i in range(len(table))],
        setting="W" + table["weights"].str[3:] + "A" + table["activations"].str[3:],
        percent=percentage,
        low=percentage - half,
        high=percentage + half,
        kind=["deployable" if bool(is_so) else "not deployable" for is_so in table["deployable"]],
    )


def methods_section(rows: pd.DataFrame, name: str, title: str) -> Section:
    """A chart a network and setting, and the table."""
    table = method_points(rows)
    parts: list[Drawing | Markup] = []
    linked = []
    for number, (panel, part) in enumerate(table.groupby([*PANEL, "setting"], sort=False)):
        dataset, arch, residual, setting = panel
        source = source_of(part, f"{name}{number}", DRAWN)
        linked.append(source)
        caption = f"{setting}, {arch} on {dataset}, {residual} residual stream."
        parts.append(Drawing(methods_chart(part, source), caption, half=True))
    parts.append(_table(table, rows, name))
    lead = "Top-1 of each method, the mean over seeds with its 95 % interval; the dashed line is the float network."
    failed = rows[rows["error"].fillna("") != ""]
    if len(failed):
        shown = failed[["arch", "method", "weights", "activations", "seed", "error"]]
        parts.append(html_table(shown, f"{name}_failed", caption=f"{counted(len(failed), 'cell')} failed"))
    return Section(title, lead, parts, linked)


def methods_chart(part: pd.DataFrame, source: ColumnDataSource) -> Chart:
    """A dot a method, the best on top, with its interval."""
    order = part.sort_values("percent", ascending=False, kind="stable")["method"]
    tooltips = [
        *[("method", "@method"), ("bits", "@setting"), ("top-1", "@percent{0.00} % (@low{0.00} … @high{0.00})")],
        *[("seeds", "@seeds"), ("deployable", "@deployable"), ("seconds", "@seconds{0.0}")],
    ]
    made = bars_chart(list(order), x_label="top-1 (%)", tooltips=tooltips)
    made.vspan(x=[100 * part["fp32_top1"].iloc[0]], line_color=BLACK, line_dash="dashed", legend_label="float32")
    made.add_layout(Whisker(base="method", lower="low", upper="high", source=source, dimension="width"))
    for kind, style in styles(["deployable", "not deployable"]).items():
        made.scatter(
            "percent", "method", source=source, view=rows_where("kind", kind), size=9, marker=style.shape,
            color=style.colour, legend_label=kind, nonselection_alpha=0.3,
        )  # fmt: skip
    ends = [float(part["low"].min()), max(float(part["high"].max()), 100 * float(part["fp32_top1"].iloc[0]))]
    margin = MARGIN * ((ends[1] - ends[0]) or 1.0)
    made.x_range = Range1d(start=ends[0] - margin, end=ends[1] + margin)  # whiskers have no say in a chart's own range
    legend_above(made, columns=3)
    return made


def _table(table: pd.DataFrame, rows: pd.DataFrame, name: str) -> Markup:
    names = [
        "arch",
        "dataset",
        "residual",
        "method",
        "setting",
        "top1",
        "half_interval",
        "fp32_top1",
        "seeds",
        "seconds",
    ]
    shown = table[[*names, "deployable"]].rename(
        columns={"top1": "top-1", "half_interval": "±", "fp32_top1": "float32"}
    )
    formats = {"top-1": percent, "float32": percent, "±": lambda half: "" if math.isnan(half) else f"{100 * half:.2f}"}
    formats |= {"seconds": lambda seconds: f"{seconds:.1f}", "deployable": written}
    return html_table(shown, name, formats=formats, whole=rows, keys=list(table["key"]), caption="All methods")
