"""Draws what bench_kernels.py measured: the bandwidth of each op against the tensor's size, beside copy_'s.

    python benchmarks/kernel_picture.py benchmarks/results/kernels_cpu.json [--png FILE] [--html FILE]

Nothing is measured here. The PNG goes to figures/, the page, which needs no network, to results/ (which git ignores).
Bandwidth: the bytes that the op must move, by its time.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from bars import Row, bandwidth
from bokeh.embed import file_html
from bokeh.models import HoverTool
from bokeh.palettes import Category20
from bokeh.plotting import figure
from bokeh.resources import INLINE

from pytorch_quantizer.atomic import atomic_path, write_atomically
from pytorch_quantizer.command_line import run
from pytorch_quantizer.errors import InputError

COPY = "copy_"
FORMS = {  # of an op: the dash of each; all others are drawn in one stroke
    **{"axis 0": "dashed", "axis 1": "dotted", "256 words": "dashed", "int2": "dashed", "int1": "dotted"},
    "stochastic": "dotted",
}
Curves = dict[str, list[tuple[int, float]]]


def curves(rows: list[Row], dtype: str, layout: str) -> Curves:
    """By op, and first of all by COPY, (elements, GB/s) in the order of size; the copy's is the median of its rows."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = COPY if row["implementation"] == "copy" else row["op"] if row["implementation"] == "ours" else None
        if name and (row["dtype"], row["layout"]) == (dtype, layout) and " call, " not in row["op"]:
            found[name][row["elements"]].append(bandwidth(row) / 1e9)
    names = sorted(found, key=lambda name: name != COPY)
    return {name: [(size, statistics.median(found[name][size])) for size in sorted(found[name])] for name in names}


def looks(names: list[str]) -> dict[str, tuple[str, str]]:
    """(colour, dash) of each: the copy's black and dashed; an op's forms share a colour, apart by their dashes."""
    palette = [*Category20[20][::2], *Category20[20][1::2]]
    ops = list(dict.fromkeys(_op_and_form(name)[0] for name in names if name != COPY))
    found = {COPY: ("#000000", "dashed")}
    for name in names:
        op, form = _op_and_form(name)
        if name != COPY:
            found[name] = palette[ops.index(op) % len(palette)], FORMS.get(form, "solid")
    return found


def _op_and_form(name: str) -> tuple[str, str]:
    """("fake_quantize", "axis 1")."""
    op, _, form = name.partition(" ")
    return op, form


def page(found: Curves, title: str) -> str:
    """The picture as an HTML page; a click on a name hides its curve."""
    plot = figure(x_axis_type="log", width=1000, height=600, title=title, x_axis_label="elements", y_axis_label="GB/s")
    plot.y_range.start = 0
    look = looks(list(found))
    for name, points in found.items():
        source = {"elements": [size for size, _ in points], "rate": [rate for _, rate in points]}
        source |= {"op": [name] * len(points)}
        colour, dash = look[name]
        plot.line("elements", "rate", source=source, color=colour, legend_label=name, line_width=2, line_dash=dash)
        plot.scatter("elements", "rate", source=source, color=colour, legend_label=name, size=6)
    plot.add_tools(HoverTool(tooltips=[("op", "@op"), ("elements", "@elements{0,0}"), ("GB/s", "@rate{0.0}")]))
    plot.legend.click_policy = "hide"
    plot.add_layout(plot.legend[0], "right")
    return file_html(plot, INLINE, title=title)


def save_png(found: Curves, title: str, path: Path) -> None:
    """The same for the README, by matplotlib: bokeh's PNGs need a browser."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    look = looks(list(found))
    for name, points in found.items():
        sizes, rates = zip(*points, strict=True)
        colour, dash = look[name]
        axes.plot(sizes, rates, ls=dash, marker="o", ms=3.5, color=colour, label=name)
    axes.set(xscale="log", ylim=(0, None), xlabel="elements", ylabel="GB/s")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
    with atomic_path(path) as temporary:
        drawn.savefig(temporary, format="png", dpi=150)
    plt.close(drawn)


def heading(row: Row, dtype: str, layout: str) -> str:
    """What was measured, where and when, as a row tells."""
    machine = row["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    return f"Bandwidth of each op on {where}: {dtype}, {layout} ({row['date']})"


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="the JSON file of bench_kernels.py")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layout", default="contiguous")
    parser.add_argument("--png", type=Path, help="default: figures/, by the JSON file's name")
    parser.add_argument("--html", type=Path, help="default: results/, by the JSON file's name")
    options = parser.parse_args()
    if not options.measured.is_file():
        raise InputError(f"{options.measured} isn't there: make it by bench_kernels.py --json {options.measured}")
    rows = json.loads(options.measured.read_text())
    found = curves(rows, options.dtype, options.layout)
    if not found:
        raise InputError(f"{options.measured} has no rows of {options.dtype}, {options.layout}")
    title = heading(rows[0], options.dtype, options.layout)
    name = options.measured.stem
    png, html = options.png or Path("figures", f"{name}.png"), options.html or Path("results", f"{name}.html")
    save_png(found, title, png)
    write_atomically(html, page(found, title).encode())
    print(f"wrote {png} and {html}")


if __name__ == "__main__":
    run("kernel_picture.py", main)
