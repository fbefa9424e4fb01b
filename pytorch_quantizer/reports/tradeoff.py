"""Accuracy against size and bits: every point of a sweep and every run, with the Pareto front.
The points' numbers come from sources.py's tables; nothing is measured here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from bokeh.models import ColumnDataSource, FactorRange

from pytorch_quantizer.reports.chart import Chart, chart, legend_above, rows_where, source_of
from pytorch_quantizer.reports.palette import BLACK, GREY, styles
from pytorch_quantizer.reports.pareto import on_front
from pytorch_quantizer.reports.section import Drawing, Markup, Section, paragraph
from pytorch_quantizer.reports.table import bytes_text, counted, html_table, percent, points, written

GROUP = ("dataset", "arch", "recipe", "weights", "activations")
APART = {"checkpoint": "weights of", "samples": "images", "calibration_samples": "images for ranges", "settings": ""}
NEEDED = (*GROUP, "seed", "top1", "fp32_top1", "size_bytes", "error")
NAMED_BITS = {"binary": 1, "ternary": 2}
WIDE = 30  # times the smallest size, from which on a logarithmic axis shows more
DRAWN = ("key", "recipe", "setting", "weights", "activations", "seed", "percent", "drop", "kib", "front", "same")
TOOLTIPS = [
    ("recipe", "@recipe"),
    ("bits", "@setting (@weights, @activations)"),
    ("seed", "@seed"),
    ("top-1", "@percent{0.00} % (@drop{+0.00} points)"),
    ("same prediction", "@same{0.00} %"),
    ("size", "@kib{0,0.0} KiB"),
    ("on the front", "@front"),
]
FIGURES = {
    **{"recipe": "recipe", "weights": "weights", "activations": "activations", "seed": "seed", "top1": "top-1"},
    **{"drop": "change", "agreement": "same prediction", "f1": "F1", "size_bytes": "size", "ratio": "of float32's"},
    **{"seconds": "seconds", "deployable": "deployable"},
}


def bits_of(number_type: str) -> float:
    """The bits that a number type's name tells: 4 of int4, uint4 and mxfp4, 32 of float32; NaN where it tells none.

    So also for several: "int2 … int8, mixed".
    """
    if "…" in str(number_type):
        return math.nan
    found = re.search(r"\d+", str(number_type))
    return float(found.group()) if found else float(NAMED_BITS.get(str(number_type), math.nan))


def tradeoff_points(results: pd.DataFrame) -> pd.DataFrame:
    """A row for each row of a sweep that has figures, with what charts need beside.

    panel: network and data set, and weights and number of images where there are several. setting: W4A8. bits: of
    weights and activations together. percent, drop: top-1 in % and its difference to float32 in points. kib: size in
    KiB. front: whether its recipe, by its mean over seeds, is on the Pareto front of top-1 against size in its panel.
    """
    rows = results[results["top1"].notna()].reset_index(drop=True)
    weights, activations = (rows[name].map(bits_of) for name in ("weights", "activations"))
    drop = 100 * (rows["top1"] - rows["fp32_top1"])
    rows = rows.assign(
        key=[f"p{i}" for i in range(len(rows))],
        panel=_panels(rows),
        setting=[f"W{_short(w)}A{_short(a)}" for w, a in zip(weights, activations, strict=True)],
        bits=weights.astype(float) + activations.astype(float),
        percent=100 * rows["top1"],
        fp32_percent=100 * rows["fp32_top1"],
        drop=drop,
        kib=rows["size_bytes"].astype("float64") / 1024,
        same=100 * rows["agreement"] if "agreement" in rows else math.nan,
        ratio=rows["size_bytes"].astype("float64") / rows.get("fp32_size_bytes", pd.Series(math.nan, rows.index)),
    )
    groups = grouped_by(rows)
    return rows.merge(mean_points(rows)[[*groups, "front"]], on=groups, how="left")


def grouped_by(rows: pd.DataFrame) -> list[str]:
    """The columns in which rows of one setting are equal: they differ in their seeds alone."""
    return [*GROUP, *(name for name in APART if name in rows)]


def _panels(rows: pd.DataFrame) -> pd.Series:
    """What the charts of each row are called: rows under one name have one float network, on the same images."""
    names = rows["arch"].astype(str) + " on " + rows["dataset"].astype(str)
    written = {"checkpoint": _file_names(rows), "samples": rows.get("samples", names).astype(str) + " images"}
    found = names
    for column, text in written.items():
        if column in rows:
            is_one_of_several = rows.groupby(names)[column].transform("nunique", dropna=False) > 1
            found = found.where(~is_one_of_several, found + ", " + text)
    return found


def _file_names(rows: pd.DataFrame) -> pd.Series:
    """Checkpoints by their file's name, or their path where two are called the same; those that have none by nature."""
    paths = rows.get("checkpoint", pd.Series("", rows.index)).fillna("").astype(str)
    names = {path: Path(path).name or "its own weights" for path in paths.unique()}
    return paths.map(names) if len(set(names.values())) == len(names) else paths


def mean_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The means over seeds of what ``tradeoff_points`` gives its rows: a row a recipe, with ``front``."""
    means = rows.groupby(grouped_by(rows), sort=False, as_index=False, dropna=False).agg(
        percent=("percent", "mean"), kib=("kib", "mean"), panel=("panel", "first"), setting=("setting", "first")
    )
    fronts = [
        pd.Series(on_front([_three_digits(size) for size in part["kib"]], list(part["percent"])), index=part.index)
        for _, part in means.groupby("panel", sort=False)
    ]
    return means.assign(front=pd.concat(fronts).astype(bool) if fronts else pd.Series(dtype=bool))


def front_line(means: pd.DataFrame) -> tuple[list[float], list[float]]:
    """The corners of a panel's front, a step from each size to the next: (KiB, top-1 in %)."""
    corners = means[means["front"]].drop_duplicates(["kib", "percent"]).sort_values("kib")
    xs, ys = list(corners["kib"]), list(corners["percent"])
    return [x for pair in zip(xs, xs[1:] + xs[-1:], strict=True) for x in pair], [y for y in ys for _ in range(2)]


def tradeoff_section(results: pd.DataFrame, name: str, title: str) -> Section:
    """The charts and the table of a sweep's rows. name: of the files that tables are saved as."""
    rows = tradeoff_points(results)
    failed = results[results["error"].fillna("") != ""]
    lead = (
        f"{len(rows)} of {len(results)} points have figures. A point is on the Pareto front where no other of its "
        "network is at most as large (in three digits) and at least as accurate."
    )
    parts: list[Drawing | Markup] = []
    linked = []
    for number, (panel, part) in enumerate(rows.groupby("panel", sort=False)):
        source = source_of(part, f"{name}{number}", DRAWN)
        linked.append(source)
        parts += _drawings(part, source, str(panel))
    parts += [_table(rows, results, name)] if len(rows) else [paragraph("No point has figures yet.")]
    parts += [_failures(failed, name)] if len(failed) else []
    return Section(title, lead, parts, linked)


def _drawings(part: pd.DataFrame, source: ColumnDataSource, panel: str) -> Iterator[Drawing]:
    means = mean_points(part)
    if part["kib"].notna().any():
        yield Drawing(by_size(part, means, source), f"{panel}: top-1 against the size of the packed file.", half=True)
    yield Drawing(by_bits(part, source), f"{panel}: top-1 at each width of weights (W) and activations (A).", half=True)


def by_size(part: pd.DataFrame, means: pd.DataFrame, source: ColumnDataSource) -> Chart:
    """Top-1 against size, with the front."""
    sizes = part["kib"].dropna()
    scale = "log" if sizes.max() > WIDE * sizes.min() else "linear"
    made = chart(x_label="size of the file (KiB)", y_label="top-1 (%)", tooltips=TOOLTIPS, x_axis_type=scale)
    xs, ys = front_line(means)
    made.line(xs, ys, color=GREY, line_width=2, legend_label="Pareto front (means over seeds)")
    _scatter(made, part, source, "kib")
    return made


def by_bits(part: pd.DataFrame, source: ColumnDataSource) -> Chart:
    """Top-1 at each setting, settings in the order of their bits."""
    settings = part.drop_duplicates("setting").sort_values(["bits", "setting"])["setting"]
    made = chart(x_label="bits", y_label="top-1 (%)", tooltips=TOOLTIPS, x_range=FactorRange(*settings))
    if len(settings) > 8:
        made.xaxis.major_label_orientation = 1.2
    _scatter(made, part, source, "setting")
    return made


def _scatter(made: Chart, part: pd.DataFrame, source: ColumnDataSource, x: str) -> None:
    made.hspan(y=[part["fp32_percent"].iloc[0]], line_color=BLACK, line_dash="dashed", legend_label="float32")
    for kind, style in styles(part["activations"]).items():
        view = rows_where("activations", kind)
        made.scatter(
            x, "percent", source=source, view=view, size=9, marker=style.shape, color=style.colour, fill_alpha=0.75,
            legend_label=f"activations {kind}", nonselection_alpha=0.25,
            selection_line_color=BLACK, selection_line_width=2,
        )  # fmt: skip
    legend_above(made)


def _table(rows: pd.DataFrame, results: pd.DataFrame, name: str) -> Markup:
    networks = ["arch", "dataset"] if rows["panel"].nunique() > 1 else []
    networks += [name for name, head in APART.items() if head and name in rows and rows[name].nunique() > 1]
    names = [*networks, *(column for column in FIGURES if column in rows and rows[column].notna().any())]
    shown = (
        rows[names]
        .assign(**{"Pareto front": ["●" if front else "" for front in rows["front"]]})
        .rename(columns=FIGURES | APART)
    )
    formats = {"top-1": percent, "same prediction": percent, "change": lambda drop: points(drop / 100)}
    formats |= {"F1": lambda value: f"{value:.4f}", "size": bytes_text, "of float32's": lambda ratio: f"{ratio:.2f} x"}
    formats |= {"seconds": lambda seconds: f"{seconds:.1f}", "deployable": written}
    return html_table(shown, name, formats=formats, whole=results, keys=list(rows["key"]), caption="All points")


def _failures(failed: pd.DataFrame, name: str) -> Markup:
    shown = failed[["arch", "dataset", "recipe", "weights", "activations", "seed", "error"]]
    return html_table(shown, f"{name}_failed", caption=f"{counted(len(failed), 'point')} failed")


def _three_digits(size: float) -> float:
    """What is compared: a recipe's name is part of the file, and no reason to prefer another."""
    return float(f"{size:.3g}")


def _short(bits: float) -> str:
    return "?" if math.isnan(bits) else f"{bits:g}"
