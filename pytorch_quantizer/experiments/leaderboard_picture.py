"""The leaderboard as a picture: what each method loses at each width, with the interval over seeds.
The numbers are leaderboard.py's.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Range1d
from bokeh.models.annotations import Whisker
from bokeh.palettes import Category20
from bokeh.plotting import figure
from bokeh.resources import INLINE

from pytorch_quantizer.experiments.leaderboard import summary


def leaderboard_picture(rows: pd.DataFrame, title: str) -> str:
    """An HTML page that needs no network: of each network and residual policy a chart of bars, a group a setting."""
    table = summary(rows).dropna(subset=["top1"])
    charts = [
        _chart(part, f"{title}: {arch} on {dataset}, {residual} residual stream")
        for (dataset, arch, residual), part in table.groupby(["dataset", "arch", "residual"], sort=False)
    ]
    return file_html(column(*charts), INLINE, title=title)


def _chart(part: pd.DataFrame, title: str) -> Any:
    setting = "W" + part["weights"].str[3:] + "A" + part["activations"].str[3:]
    half = 100 * part["half_interval"].fillna(0.0)
    shown = part.assign(percent=100 * part["top1"], low=100 * part["top1"] - half, high=100 * part["top1"] + half)
    shown["place"] = list(zip(setting, shown["method"], strict=True))
    methods = list(dict.fromkeys(shown["method"]))
    palette = Category20[20]
    shown["colour"] = [palette[methods.index(method) % 20] for method in shown["method"]]
    source = ColumnDataSource({str(name): list(shown[name]) for name in shown})
    places = FactorRange(*shown["place"])
    floor, ceiling = max(0.0, float(shown["low"].min()) - 2), 100 * float(part["fp32_top1"].max()) + 1
    width = max(900, 18 * len(shown))
    plot = figure(x_range=places, y_range=Range1d(start=floor, end=ceiling), width=width, height=420, title=title)
    plot.vbar("place", 0.85, "percent", source=source, color="colour", legend_group="method")
    plot.add_layout(Whisker(base="place", lower="low", upper="high", source=source))
    plot.hspan(y=[100 * part["fp32_top1"].iloc[0]], line_color="black", line_dash="dashed")
    plot.yaxis.axis_label = "top-1 (%)"
    plot.add_tools(HoverTool(tooltips=_tooltips()))
    plot.xaxis.major_label_orientation = 1.2
    plot.add_layout(plot.legend[0], "right")  # beside the bars, not over them
    return plot


def _tooltips() -> list[tuple[str, str]]:
    plain = [(name, f"@{name}") for name in ("method", "weights", "activations", "seeds", "granularity", "deployable")]
    return [*plain, ("top-1", "@percent{0.00} % (@low{0.00} – @high{0.00})"), ("seconds", "@seconds{0}")]
