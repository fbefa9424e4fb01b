"""Which classes suffer: answers of the float and the quantized network class by class, and their confusion matrices.
The counts are those of details.json (evaluation/answers.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.transform import linear_cmap
from numpy.typing import NDArray

from pytorch_quantizer.reports.chart import Chart, bars_chart, chart, source_of
from pytorch_quantizer.reports.palette import BLUE, DIVERGING, SHADES, VERMILION
from pytorch_quantizer.reports.section import Drawing, Markup, Section
from pytorch_quantizer.reports.table import counted, html_table, percent, points

MOST_CLASSES = 20  # of a matrix, and of the bars
DARK = 0.6  # of the deepest shade, from which on black ink can't be read
COUNTED = 12  # classes of a matrix up to which counts are written into its cells
Matrix = NDArray[np.int64]


def confusion_matrices(answers: dict[str, Any]) -> tuple[Matrix, Matrix]:
    """Counts [label, prediction] of the float and of the quantized network, [classes, classes] each."""
    classes = len(answers["classes"])
    found = []
    for who in ("fp32", "quantized"):
        matrix = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(matrix, (answers["label"], answers[who]), answers["count"])
        found.append(matrix)
    return found[0], found[1]


def class_changes(answers: dict[str, Any]) -> pd.DataFrame:
    """A row a class that has images, the one that loses most first.

    images; fp32, quantized: shares of them that are recognised; change: their difference; lost, won: images that only
    the float, only the quantized network recognises; changed: images of whatever answer that differs; taken_for: what
    the quantized network says most often of those that it gets wrong, empty where there is none.
    """
    rows = pd.DataFrame({name: answers[name] for name in ("label", "fp32", "quantized", "count")})
    was, now = rows["fp32"] == rows["label"], rows["quantized"] == rows["label"]
    parts = {"images": rows["count"] > 0, "right_before": was, "right_after": now}
    parts |= {"lost": was & ~now, "won": ~was & now, "changed": rows["fp32"] != rows["quantized"]}
    masked = pd.DataFrame({name: rows["count"].where(mask, 0) for name, mask in parts.items()})
    sums = masked.groupby(rows["label"]).sum()
    names = distinct(answers["classes"])
    table = pd.DataFrame({"class": [names[label] for label in sums.index], "images": sums["images"]})
    table["fp32"], table["quantized"] = (sums[name] / sums["images"] for name in ("right_before", "right_after"))
    table["change"] = (sums["won"] - sums["lost"]) / sums["images"]
    table[["lost", "won", "changed"]] = sums[["lost", "won", "changed"]]
    table["taken_for"] = [_most_taken_for(rows[~now], label, names) for label in sums.index]
    return table.sort_values(["change", "lost"], ascending=[True, False], kind="stable")


def confusion_section(answers: dict[str, Any], prefix: str, title: str) -> Section:
    """Change of each class, the two matrices and their difference, and the table of classes."""
    table = class_changes(answers)
    bars, chosen = shown_classes(table)
    before, after = (matrix[np.ix_(chosen, chosen)] for matrix in confusion_matrices(answers))
    every = distinct(answers["classes"])
    names = [every[i] for i in chosen]
    bars = bars.assign(key=[f"{prefix}c:{name}" for name in bars["class"]])
    source = source_of(bars, f"{prefix}_classes")
    matrices = [
        (before, "Float network", False),
        (after, "Quantized network", False),
        (after - before, "Difference: more answers of the quantized network in vermilion, fewer in blue", True),
    ]
    few = len(table) <= MOST_CLASSES
    which = "" if few else f" The charts show the {MOST_CLASSES} classes that change most, the table all {len(table)}."
    lost, won, changed, images = (int(table[name].sum()) for name in ("lost", "won", "changed", "images"))
    lead = (
        f"The float network alone recognises {counted(lost, 'image')}, the quantized one alone {won}; {changed} of "
        f"{images} answers differ.{which}"
    )
    parts: list[Drawing | Markup] = [
        Drawing(change_chart(bars, source), "Change of the share of each class that is recognised.", half=True),
        *(Drawing(matrix_chart(*entry, names), f"{entry[1]}.", half=True) for entry in matrices),
        _table(table, prefix),
    ]
    return Section(title, lead, parts, [source])


def shown_classes(table: pd.DataFrame) -> tuple[pd.DataFrame, list[int]]:
    """(the classes that change most, as many as charts can show; their numbers in ascending order)."""
    most = table.sort_values("changed", ascending=False, kind="stable").head(MOST_CLASSES)
    bars = table[table.index.isin(most.index)]
    return bars, sorted(int(label) for label in bars.index)


def distinct(names: list[str]) -> list[str]:
    """The names, with a number behind those that occur again: two of ImageNet's classes are cranes."""
    seen: dict[str, int] = {}
    found = []
    for name in map(str, names):
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return found


def change_chart(table: pd.DataFrame, source: ColumnDataSource) -> Chart:
    """A bar a class: points of recall."""
    source.data["points"] = [100 * change for change in table["change"]]
    source.data["colour"] = [VERMILION if change < 0 else BLUE for change in table["change"]]
    tooltips = [
        *[("class", "@class"), ("images", "@images"), ("recognised", "@fp32{0.0 %} → @quantized{0.0 %}")],
        *[("lost, won", "@lost, @won"), ("taken for", "@taken_for")],
    ]
    made = bars_chart([str(name) for name in table["class"]], x_label="points recognised", tooltips=tooltips)
    made.hbar(
        y="class", right="points", height=0.8, source=source, color="colour", fill_alpha=0.85, nonselection_alpha=0.3
    )
    made.vspan(x=[0], line_color="black", line_width=1)
    made.height = max(made.height, 300)
    return made


def matrix_chart(matrix: Matrix, name: str, signed: bool, names: list[str]) -> Chart:
    """Labels down, predictions across; shades of counts, on the diagonal too for a difference alone."""
    wrong = matrix if signed else matrix - np.diag(np.diag(matrix))
    most = max(int(np.abs(wrong).max()), 1)
    cells = _cells(matrix, wrong, names)
    made = chart(
        x_label="prediction", y_label="label", height=340, x_range=names, y_range=names[::-1],
        x_axis_location="above",
    )  # fmt: skip
    made.grid.grid_line_color = None
    if max(map(len, names)) > 2:
        made.xaxis.major_label_orientation = 0.9
    low, palette = (-most, DIVERGING) if signed else (0, SHADES[:7])
    cell = made.rect(
        "prediction", "label", 1, 1, source=cells, line_color="#e8e8e8",
        fill_color=linear_cmap("shade", palette, low, most),
    )  # fmt: skip
    if len(names) <= COUNTED:
        made.text(
            "prediction", "label", text="text", source=cells, text_align="center", text_baseline="middle",
            text_font_size="11px",
            text_color="ink",
        )  # fmt: skip
    tooltips = [("label", "@label"), ("prediction", "@prediction"), ("images", "@count{+0}" if signed else "@count")]
    made.add_tools(HoverTool(tooltips=tooltips, renderers=[cell]))
    return made


def _cells(matrix: Matrix, wrong: Matrix, names: list[str]) -> ColumnDataSource:
    places = [(i, j) for i in range(len(names)) for j in range(len(names))]
    counts = [int(matrix[place]) for place in places]
    most = max(int(np.abs(wrong).max()), 1)
    return ColumnDataSource(
        {
            "label": [names[i] for i, _ in places],
            "prediction": [names[j] for _, j in places],
            "count": counts,
            "text": [str(count) if count else "" for count in counts],
            "shade": [int(wrong[place]) for place in places],
            "ink": ["white" if abs(wrong[place]) > DARK * most else "black" for place in places],
        }
    )


def _most_taken_for(wrong: pd.DataFrame, label: Any, names: list[str]) -> str:
    counts = wrong[wrong["label"] == label].groupby("quantized")["count"].sum()
    return f"{names[int(counts.idxmax())]} ({int(counts.max())})" if len(counts) else ""


def _table(table: pd.DataFrame, prefix: str) -> Markup:
    names = {"fp32": "float32", "taken_for": "taken for"}
    formats = {"float32": percent, "quantized": percent, "change": points}
    keys = [f"{prefix}c:{name}" for name in table["class"]]
    return html_table(
        table.rename(columns=names), f"{prefix}_classes", formats=formats, whole=table, keys=keys,
        caption="Classes, the one that loses most first",
    )  # fmt: skip
