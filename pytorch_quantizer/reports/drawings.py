"""The page's charts as matplotlib draws them for papers, from the same tables.
Which of them are drawn of what, and where they are written, is figures.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pytorch_quantizer.reports.ablation import ingredients
from pytorch_quantizer.reports.confusion import COUNTED, DARK, Matrix
from pytorch_quantizer.reports.costs import LOOKS
from pytorch_quantizer.reports.distributions import Distribution
from pytorch_quantizer.reports.layers import KINDS
from pytorch_quantizer.reports.palette import (
    BLACK,
    BLUE,
    DIVERGING,
    GREEN,
    GREY,
    PURPLE,
    SHADES,
    SKY,
    VERMILION,
    styles,
)
from pytorch_quantizer.reports.tradeoff import WIDE, front_line, mean_points

Figure = Any  # matplotlib's, which need not be installed where nothing is drawn
MOST_LETTERS = 30  # of a name beside a bar
WIDTH = 3.4  # inches, a column of a paper
MARKS = {
    **{"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "inverted_triangle": "v", "hex": "h"},
    **{"star": "*", "plus": "P"},
}


def blank(height: float, columns: int = 1, width: float = WIDTH, **options: Any) -> tuple[Figure, Any]:
    """(an empty figure, its axes: one, or an array of them). Sizes in inches."""
    from matplotlib.figure import Figure as Drawn

    made = Drawn(figsize=(width, height), layout="constrained")
    return made, made.subplots(1, columns, **options)


def draw_size(part: pd.DataFrame) -> Figure:
    """Top-1 against size with the Pareto front, of tradeoff_points of one network."""
    made, axes = blank(2.6)
    axes.plot(*front_line(mean_points(part)), color=GREY, linewidth=1, label="Pareto front", zorder=1)
    sizes = part["kib"].dropna()
    if sizes.max() > WIDE * sizes.min():
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
    _scatter(axes, part, "kib")
    axes.set_xlabel("size of the file (KiB)")
    return made


def draw_bits(part: pd.DataFrame) -> Figure:
    """Top-1 at each setting, in the order of bits."""
    made, axes = blank(2.6)
    settings = list(part.drop_duplicates("setting").sort_values(["bits", "setting"])["setting"])
    _scatter(axes, part.assign(place=[settings.index(setting) for setting in part["setting"]]), "place")
    axes.set_xticks(range(len(settings)), settings, rotation=60 if len(settings) > 8 else 0)
    return made


def draw_methods(part: pd.DataFrame) -> Figure:
    """Top-1 of each method with its interval, of method_points of one network and setting."""
    ordered = part.sort_values("percent", kind="stable")
    made, axes = blank(0.2 * len(ordered) + 0.9)
    axes.axvline(100 * part["fp32_top1"].iloc[0], color=BLACK, linestyle="--", linewidth=0.8, label="float32")
    for kind, style in styles(["deployable", "not deployable"]).items():
        rows = ordered[ordered["kind"] == kind]
        halves = [rows["percent"] - rows["low"], rows["high"] - rows["percent"]]
        if len(rows):
            axes.errorbar(
                rows["percent"], rows["method"], xerr=np.array(halves), fmt=MARKS[style.shape], color=style.colour,
                markersize=4, linewidth=0.8, label=kind,
            )  # fmt: skip
    axes.set_yticks(list(ordered["method"]), [_cut(name) for name in ordered["method"]])
    axes.set_xlabel("top-1 (%)")
    _legend(axes)
    return made


def draw_ablation(part: pd.DataFrame) -> Figure:
    """Top-1 of each ingredient at each width, of ablation_rows of one network and setting."""
    names = ingredients(part)
    made, axes = blank(0.2 * len(names) + 0.9)
    axes.axvline(part["fp32_percent"].iloc[0], color=BLACK, linestyle="--", linewidth=0.8, label="float32")
    for column, style in styles(part["column"]).items():
        rows = part[part["column"] == column]
        axes.plot(rows["percent"], [names.index(row) for row in rows["row"]], MARKS[style.shape], color=style.colour,
                  markersize=4, alpha=0.8, label=column)  # fmt: skip
    _names_down(axes, range(len(names)), names)
    axes.set_xlabel("top-1 (%)")
    _legend(axes)
    return made


def draw_noise(rows: pd.DataFrame) -> Figure:
    """SQNR of tensors, by themselves and accumulated, of measured_tensors."""
    made, axes = blank(0.13 * len(rows) + 0.9)
    for kind, part in rows.groupby("kind", sort=False):
        colour, hatch = KINDS.get(str(kind), (GREEN, "."))
        axes.barh(part.index, part["sqnr_db_shown"], color=colour, hatch=hatch.strip() * 3, edgecolor="white",
                  linewidth=0, label=f"{kind}, by itself")  # fmt: skip
    axes.plot(rows["accumulated_sqnr_db_shown"], rows.index, "o", color=BLACK, markersize=2.5, label="accumulated")
    _names_down(axes, rows.index, rows["name"])
    axes.set_xlabel("SQNR (dB)")
    _legend(axes)
    return made


def draw_sensitivity(rows: pd.DataFrame) -> Figure:
    """Points lost and regained, and SQNR of the logits, layer by layer, of sensitive_layers."""
    made, (left, right) = blank(0.14 * len(rows) + 0.9, 2, 2 * WIDTH, sharey=True)
    left.barh(rows.index, rows["drop_points"], color=VERMILION, label="lost by it alone")
    left.plot(rows["gain_points"], rows.index, "o", color=BLACK, markersize=2.5, label="regained by all but it")
    right.barh(rows.index, rows["alone_shown"], color=BLUE, label="it alone")
    right.plot(rows["all_but_shown"], rows.index, "o", color=BLACK, markersize=2.5, label="all but it")
    _names_down(left, rows.index, rows["layer"])
    left.set_xlabel("top-1 (points)")
    right.set_xlabel("SQNR of the logits (dB)")
    _legend(left)
    _legend(right)
    return made


def draw_distribution(one: Distribution) -> Figure:
    """The histogram of a tensor with range and levels, linear and logarithmic."""
    bars = one.bars()
    made, pair = blank(2.2, 2, 2 * WIDTH)
    widths = [right - left for left, right in zip(bars["left"], bars["right"], strict=True)]
    for axes, scale in zip(pair, ("linear", "log"), strict=True):
        for level in one.entry["levels"] or []:
            axes.axvline(level, color=SKY, linewidth=0.5)
        axes.bar(bars["left"], bars["share"], widths, align="edge", color=BLUE, alpha=0.8)
        for end in one.ends():
            axes.axvline(end, color=VERMILION, linestyle="--", linewidth=1)
        axes.set_yscale(scale)
        axes.set_xlabel(one.label())
    _plain_ticks(pair[1].yaxis)
    pair[0].set_ylabel("share of the values (%)")
    made.suptitle(f"{one.name}, {one.entry['type']}", fontsize="medium")
    return made


def draw_batches(one: Distribution) -> Figure:
    """Smallest and largest value of a tensor in each calibration batch, and its range."""
    made, axes = blank(2.0)
    numbers = range(1, len(one.batches) + 1)
    for place, (name, mark, colour) in enumerate((("smallest", "v", PURPLE), ("largest", "^", BLUE))):
        values = [pair[place] for pair in one.batches]
        axes.plot(numbers, values, f"{mark}-", color=colour, markersize=4, linewidth=0.8, label=f"{name} value")
    for end, label in zip(one.ends(), ("range", None), strict=True):
        axes.axhline(end, color=VERMILION, linestyle="--", linewidth=1, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("calibration batch")
    axes.set_ylabel(one.name)
    _legend(axes)
    return made


def draw_changes(table: pd.DataFrame) -> Figure:
    """Points of each class, of class_changes."""
    rows = table.reset_index(drop=True)
    made, axes = blank(0.16 * len(rows) + 0.7)
    axes.barh(rows.index, 100 * rows["change"], color=[VERMILION if change < 0 else BLUE for change in rows["change"]])
    axes.axvline(0, color=BLACK, linewidth=0.8)
    _names_down(axes, rows.index, rows["class"])
    axes.set_xlabel("change of the share recognised (points)")
    return made


def draw_matrices(before: Matrix, after: Matrix, names: Sequence[str]) -> Figure:
    """The two confusion matrices and their difference."""
    from matplotlib.colors import LinearSegmentedColormap

    made, three = blank(2.6, 3, 3 * WIDTH * 0.8)
    titles = ("float", "quantized", "difference")
    for axes, matrix, title in zip(three, (before, after, after - before), titles, strict=True):
        signed = title == "difference"
        shaded = matrix if signed else matrix - np.diag(np.diag(matrix))
        most = max(int(np.abs(shaded).max()), 1)
        colours = LinearSegmentedColormap.from_list(title, DIVERGING if signed else SHADES[:7], N=257)
        axes.imshow(shaded, cmap=colours, vmin=-most if signed else 0, vmax=most)
        for place in zip(*np.nonzero(matrix), strict=True) if len(names) <= COUNTED else ():
            ink = "white" if abs(int(shaded[place])) > DARK * most else BLACK
            axes.text(place[1], place[0], str(matrix[place]), ha="center", va="center", fontsize=5, color=ink)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(title)
        axes.set_xlabel("prediction")
        axes.grid(visible=False)
    three[0].set_ylabel("label")
    return made


def draw_costs(rows: pd.DataFrame, name: str, value: str, label: str) -> Figure:
    """Bars of latency or size, each with its figure; whiskers where there are percentiles."""
    made, axes = blank(0.32 * len(rows) + 0.6)
    for place, row in enumerate(rows.to_dict("records")):
        colour, hatch = LOOKS.get(row["label"], (GREY, " "))
        axes.barh(place, row[value], color=colour, hatch=hatch.strip() * 3, edgecolor="white", linewidth=0, height=0.6)
        if "p10_ms" in row:
            axes.plot([row["p10_ms"], row["p90_ms"]], [place, place], "|-", color=BLACK, linewidth=0.8, markersize=5)
        axes.annotate(f"{row[value]:,.2f}", (max(row[value], row.get("p90_ms", 0)), place), (3, 0),
                      textcoords="offset points", va="center", fontsize=6)  # fmt: skip
    _names_down(axes, range(len(rows)), rows[name])
    axes.margins(x=0.18)
    axes.set_xlabel(label)
    return made


def draw_training(rows: pd.DataFrame) -> Figure:
    """Loss, and accuracy on validation images where there is one, of epochs_table."""
    made, axes = blank(2.2)
    axes.plot(rows["epoch"], rows["loss"], "o-", color=VERMILION, markersize=2.5, linewidth=1, label="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    if "accuracy" in rows:
        other = axes.twinx()
        other.plot(rows["epoch"], 100 * rows["accuracy"], "s-", color=BLUE, markersize=2.5, linewidth=1)
        other.set_ylabel("accuracy on validation images (%)", color=BLUE)
        other.grid(visible=False)
    return made


def _scatter(axes: Any, part: pd.DataFrame, x: str) -> None:
    axes.axhline(part["fp32_percent"].iloc[0], color=BLACK, linestyle="--", linewidth=0.8, label="float32")
    for kind, style in styles(part["activations"]).items():
        rows = part[part["activations"] == kind]
        axes.plot(rows[x], rows["percent"], MARKS[style.shape], color=style.colour, markersize=4, alpha=0.8,
                  linestyle="none", label=f"activations {kind}")  # fmt: skip
    axes.set_ylabel("top-1 (%)")
    _legend(axes)


def _plain_ticks(axis: Any) -> None:
    """Write a logarithmic axis' ticks as 0.01, 1, 100: 10² would be mathematics, as which no text here is read."""
    from matplotlib.ticker import FuncFormatter, LogFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(LogFormatter())  # nothing, unless the axis is shorter than a power of ten


def _names_down(axes: Any, places: Any, names: Any) -> None:
    axes.set_yticks(list(places), [_cut(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top


def _cut(name: object) -> str:
    """A name that leaves room for what it names."""
    text = str(name)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


def _legend(axes: Any) -> None:
    axes.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
