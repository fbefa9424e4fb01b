"""A chart as all sections want it: as wide as its place, with tools to zoom, without a title on the canvas.
What is drawn in it is the sections' business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from bokeh.models import CDSView, ColumnDataSource, GroupFilter, HoverTool
from bokeh.plotting import figure

Chart = Any  # bokeh's figure: its options are more than its types tell

ROW_HEIGHT = 15  # pixels of a bar with its name
TOOLS = "pan,box_zoom,wheel_zoom,tap,reset,save"


def chart(
    *, x_label: str, y_label: str = "", height: int = 360, tooltips: Any = None, tools: str = TOOLS, **options: Any
) -> Chart:
    """An empty chart. tooltips: bokeh's, of what is drawn; values in them are escaped. options: those of ``figure``."""
    made: Chart = figure(height=height, sizing_mode="stretch_width", tools=tools, active_drag=None, **options)
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.xaxis.axis_label, made.yaxis.axis_label = x_label, y_label or None
    for axis in made.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
    made.grid.grid_line_color = "#e8e8e8"
    made.outline_line_color = None
    made.min_border_right = 12
    if tooltips:
        made.add_tools(HoverTool(tooltips=tooltips, attachment="vertical"))
    return made


def bars_chart(names: list[str], *, x_label: str, **options: Any) -> Chart:
    """A chart of horizontal bars, a name a row, the first on top, as tall as it needs to be."""
    height = ROW_HEIGHT * len(names) + 110
    made = chart(x_label=x_label, height=height, y_range=list(reversed(names)), **options)
    made.ygrid.grid_line_color = None
    made.yaxis.major_label_text_font_size = "11px"
    made.yaxis.major_tick_line_color = None
    return made


def legend_above(made: Chart, columns: int = 2) -> None:
    """Put the legend over the chart, where it hides nothing; a click on an entry hides what it stands for."""
    if not made.legend:
        return
    legend = made.legend[0]
    legend.click_policy, legend.ncols = "hide", columns
    legend.label_text_font_size, legend.border_line_color, legend.padding = "12px", None, 2
    made.add_layout(legend, "above")


def source_of(table: pd.DataFrame, name: str | None = None, columns: Sequence[str] | None = None) -> ColumnDataSource:
    """A table as what charts draw, infinite values as missing. columns: those wanted, if they are there; None: all."""
    wanted = [str(column) for column in table if columns is None or column in columns]
    data: dict[str, Any] = {column: [_plain(value) for value in table[column]] for column in wanted}
    return ColumnDataSource(data, name=name)


def rows_where(column: str, value: str) -> CDSView:
    """A view of the rows whose ``column`` is ``value``."""
    return CDSView(filter=GroupFilter(column_name=column, group=value))


def _plain(value: Any) -> Any:
    return None if value is pd.NA or (isinstance(value, float) and math.isinf(value)) else value
