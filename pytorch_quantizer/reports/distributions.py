"""Histograms of tensors with clipping range and grid drawn over them, and ranges across calibration batches.
One tensor is shown at a time, picked from a list. The numbers are those of details.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bokeh.models import AdaptiveTicker, ColumnDataSource, HoverTool, Range1d

from pytorch_quantizer.evaluation.distributions import CODE
from pytorch_quantizer.reports.chart import Chart, chart, legend_above
from pytorch_quantizer.reports.palette import BLUE, PURPLE, SKY, VERMILION
from pytorch_quantizer.reports.section import Drawing, Markup, Section

MARGIN = 0.04  # of what is shown, on both sides


@dataclass(frozen=True)
class Distribution:
    """One tensor's entry of details.json, and its min and max in each calibration batch (empty where unknown)."""

    entry: dict[str, Any]
    batches: list[list[float]]

    @property
    def name(self) -> str:
        """The tensor's."""
        return str(self.entry["name"])

    @property
    def total(self) -> int:
        """Values counted."""
        histogram = self.entry["histogram"]
        return int(sum(histogram["counts"]) + histogram["zeros"])

    def bars(self) -> dict[str, Any]:
        """left, right: edges of the bins. share: of all values, in %. floor: half a value's share. count."""
        histogram = self.entry["histogram"]
        counts, width = histogram["counts"], 2.0 ** histogram["exponent"]
        start = (histogram["first"] - histogram["bins"] // 2) * width
        total = self.total or 1
        return {
            "left": [start + i * width for i in range(len(counts))],
            "right": [start + (i + 1) * width for i in range(len(counts))],
            "share": [100 * count / total for count in counts],
            "floor": [50 / total] * len(counts),
            "count": counts,
        }

    def ends(self) -> list[float]:
        """The representable range."""
        return [self.entry["low"], self.entry["high"]]

    def view(self) -> list[float]:
        """What an axis should show: all values and the range, and a margin."""
        bars = self.bars()
        low, high = min(bars["left"] + self.ends()), max(bars["right"] + self.ends())
        margin = MARGIN * ((high - low) or 1.0)
        return [low - margin, high + margin]

    def batches_view(self) -> list[float]:
        """What the axes of its batches should show: left, right, low, high."""
        values = [*self.ends(), *(value for pair in self.batches for value in pair)]
        margin = MARGIN * ((max(values) - min(values)) or 1.0)
        return [0.5, max(len(self.batches), 1) + 0.5, min(values) - margin, max(values) + margin]

    def label(self) -> str:
        """What its axis is called."""
        return "code before rounding, x / s + z of each channel" if self.entry["unit"] == CODE else "value"

    def said(self) -> str:
        """The tensor in a sentence."""
        entry, zeros = self.entry, self.entry["histogram"]["zeros"]
        grid = f", step {entry['step']:.4g}" if entry["step"] is not None and entry["unit"] != CODE else ""
        levels = f", {len(entry['levels'])} levels drawn" if entry["levels"] else ", too many levels to draw"
        if entry["levels"] is None and entry["step"] is None:
            levels = ", no common levels to draw"
        exact = f" Zeros, {100 * zeros / (self.total or 1):.1f} % of the values, are left out." if zeros else ""
        ends = f"[{entry['low']:.4g}, {entry['high']:.4g}]"
        return f"{self.name}: {entry['type']}, range {ends}{grid}{levels}; {self.total:,} values.{exact}"

    def batches_said(self) -> str:
        """Its ranges in a sentence."""
        if self.entry["kind"] == "weight":
            return f"{self.name} is a weight: it is the same for all batches."
        if not self.batches:
            return f"{self.name}: its batches are not known; statistics from a file don't tell them apart."
        if len(self.batches) == 1:
            return f"{self.name}: smallest and largest value of the one calibration batch."
        return f"{self.name}: smallest and largest value of each of {len(self.batches)} calibration batches."


def distributions_of(details: dict[str, Any]) -> list[Distribution]:
    """Those of details.json, in its order."""
    return [Distribution(entry, details["batches"].get(entry["name"], [])) for entry in details["tensors"]]


def distributions_section(details: dict[str, Any], prefix: str, title: str, worst: str | None = None) -> Section:
    """The list of tensors, two histograms and the ranges by batch. worst: the tensor that is shown at first."""
    found = distributions_of(details)
    shown = next((one for one in found if one.name == worst), found[0])
    sources = _Sources(shown, prefix)
    lead = (
        "How a tensor's values lie over the grid of its quantizer: what lies outside the dashed lines is clipped, thin "
        "lines are the grid's levels. Weights with a grid a channel are shown in codes, which all channels share."
    )
    parts: Sequence[Drawing | Markup] = (
        _picker(found, shown, prefix),
        Drawing(_histogram(shown, sources, f"{prefix}linear", "linear"), "Share of the values in each bin.", half=True),
        Drawing(
            _histogram(shown, sources, f"{prefix}logarithmic", "log"),
            "The same on a logarithmic scale: the tails.",
            half=True,
        ),
        *([_batches_drawing(shown, prefix)] if any(one.batches for one in found) else []),
        Markup(f'<p data-batches="{escape(prefix)}">{escape(shown.batches_said())}</p>'),
    )
    return Section(title, lead, parts, exchanged={prefix: {f"{prefix}t:{one.name}": _exchanged(one) for one in found}})


def _exchanged(one: Distribution) -> dict[str, Any]:
    """What page.js needs to show it."""
    return {
        **{"histogram": one.entry["histogram"], "levels": one.entry["levels"], "ends": one.ends()},
        **{"low": [low for low, _ in one.batches], "high": [high for _, high in one.batches]},
        **{"view": one.view(), "batches_view": one.batches_view()},
        **{"label": one.label(), "said": one.said(), "batches": one.batches_said()},
    }


def _picker(found: list[Distribution], shown: Distribution, prefix: str) -> Markup:
    options = "".join(
        f'<option value="{escape(prefix)}t:{escape(one.name)}"{" selected" if one is shown else ""}>'
        f"{escape(one.name)} ({escape(one.entry['type'])})</option>"
        for one in found
    )
    return Markup(
        f'<div class="pick"><label for="{prefix}pick">Tensor</label>'
        f'<select id="{prefix}pick" data-exchange="{escape(prefix)}">{options}</select></div>'
        f'<p data-said="{escape(prefix)}">{escape(shown.said())}</p>'
    )


class _Sources:
    """What both histograms of a section draw: the values' bars, the grid's levels, the ends of its range."""

    def __init__(self, shown: Distribution, prefix: str) -> None:
        self.bars = ColumnDataSource(dict(shown.bars()), name=f"{prefix}bars")
        self.levels = ColumnDataSource({"x": shown.entry["levels"] or []}, name=f"{prefix}levels")
        self.ends = ColumnDataSource({"x": shown.ends()}, name=f"{prefix}ends")
        self.view = Range1d(start=shown.view()[0], end=shown.view()[1])  # one for both: they zoom together


def _histogram(shown: Distribution, sources: _Sources, name: str, scale: str) -> Chart:
    made = chart(
        x_label=shown.label(), y_label="share of the values (%)", y_axis_type=scale, x_range=sources.view,
        height=320, name=name,
    )  # fmt: skip
    made.vspan(x="x", source=sources.levels, line_color=SKY, line_width=1, legend_label="level")
    bars = made.quad(
        left="left", right="right", top="share", bottom=0 if scale == "linear" else "floor", source=sources.bars,
        color=BLUE, fill_alpha=0.75, line_color=None, legend_label="values",
    )  # fmt: skip
    made.vspan(x="x", source=sources.ends, line_color=VERMILION, line_width=2, line_dash="dashed", legend_label="range")
    tooltips = [("values", "@left{0.0000} … @right{0.0000}"), ("share", "@share{0.000} %"), ("count", "@count{0,0}")]
    made.add_tools(HoverTool(tooltips=tooltips, renderers=[bars]))
    legend_above(made, columns=3)
    return made


def _batches_drawing(shown: Distribution, prefix: str) -> Drawing:
    caption = "Ranges across calibration batches, and the range that was chosen."
    return Drawing(_ranges(shown, prefix), caption, called=f"{prefix}batches", hidden=not shown.batches)


def _ranges(shown: Distribution, prefix: str) -> Chart:
    columns: dict[str, Any] = {
        "batch": list(range(1, len(shown.batches) + 1)),
        **{end: [pair[i] for pair in shown.batches] for i, end in enumerate(("low", "high"))},
    }
    batches = ColumnDataSource(columns, name=f"{prefix}batches")
    chosen = ColumnDataSource({"y": shown.ends() if shown.batches else []}, name=f"{prefix}range")
    left, right, low, high = shown.batches_view()
    made = chart(
        x_label="calibration batch", y_label="value", height=260, x_range=Range1d(start=left, end=right),
        y_range=Range1d(start=low, end=high), name=f"{prefix}ranges",
    )  # fmt: skip
    made.xaxis.ticker = AdaptiveTicker(min_interval=1)  # no half batches
    made.hspan(y="y", source=chosen, line_color=VERMILION, line_width=2, line_dash="dashed", legend_label="range")
    for end, shape, colour in (("high", "triangle", BLUE), ("low", "inverted_triangle", PURPLE)):
        made.line("batch", end, source=batches, color=colour, line_alpha=0.5)
        legend = "largest value" if end == "high" else "smallest value"
        dots = made.scatter("batch", end, source=batches, marker=shape, color=colour, size=8, legend_label=legend)
        made.add_tools(HoverTool(tooltips=[("batch", "@batch"), (legend, f"@{end}{{0.0000}}")], renderers=[dots]))
    legend_above(made, columns=3)
    return made
