"""What a model costs: latencies and sizes, each with its label (simulated, dequantized-weights, integer) and runtime.
The numbers are those of result.json, or of bench.json.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from bokeh.models import ColumnDataSource
from bokeh.models.annotations import LabelSet, Whisker

from pytorch_quantizer.reports.chart import Chart, bars_chart, source_of
from pytorch_quantizer.reports.palette import BLUE, GREEN, GREY, ORANGE
from pytorch_quantizer.reports.section import Drawing, Markup, Section
from pytorch_quantizer.reports.table import html_table

MODELS = {"fp32": "float network", "quantized": "quantized network", "exported": "exported network"}
HEADS = {
    **{"median_ms": "median (ms)", "p10_ms": "10 % (ms)", "p90_ms": "90 % (ms)", "minimum_ms": "minimum (ms)"},
    **{"batch_size": "batch", "repeats": "passes"},
}
LOOKS = {"simulated": (ORANGE, "/"), "dequantized-weights": (GREEN, "x"), "integer": (BLUE, " ")}
WARNING = (
    "'simulated' computes in floating point on the quantization grid: its latency says nothing of integer hardware. "
)


def latency_rows(record: dict[str, Any]) -> pd.DataFrame:
    """A row a model and batch size of result.json: model, Latency's fields, and name, what its bar is called."""
    found = [
        {"model": MODELS[key], **entry, "name": f"{entry['label']}, batch of {entry['batch_size']}"}
        for key in MODELS
        for entry in record.get(key, {}).get("latency", [])
    ]
    return pd.DataFrame(found).sort_values("batch_size", kind="stable").reset_index(drop=True)


def size_rows(record: dict[str, Any]) -> pd.DataFrame:
    """A row a model: model, bytes, kib, what is counted, and its label."""
    found = [
        {"model": MODELS[key], "bytes": entry["size_bytes"], "kib": entry["size_bytes"] / 1024}
        | {"counted": entry.get("size_label", ""), "label": entry.get("execution", "")}
        for key in MODELS
        if (entry := record.get(key))
    ]
    return pd.DataFrame(found)


def timed_rows(record: dict[str, Any]) -> pd.DataFrame:
    """``latency_rows`` of bench.json: a row a form and batch size, smaller batches first."""
    rows = pd.DataFrame(record["rows"])
    rows["name"] = [f"{row.model}, batch of {row.batch_size}" for row in rows.itertuples()]
    return rows.drop(columns=["bytes", "file"]).sort_values("batch_size", kind="stable").reset_index(drop=True)


def form_sizes(record: dict[str, Any]) -> pd.DataFrame:
    """``size_rows`` of bench.json: a row a form."""
    forms = pd.DataFrame(record["rows"]).drop_duplicates("model").reset_index(drop=True)
    forms["kib"] = forms["bytes"] / 1024
    return forms[["model", "bytes", "kib", "file", "label"]].rename(columns={"file": "counted"})


def costs_section(record: dict[str, Any], prefix: str, title: str) -> Section:
    """Bars of latency and of size, and the tables, of result.json."""
    return _section(latency_rows(record), size_rows(record), prefix, title)


def bench_section(record: dict[str, Any], prefix: str, title: str) -> Section:
    """The same of bench.json; also which forms were left out, and why."""
    height, width = record["image"][-2:]
    lead = f"{record['arch']} on {record['dataset']}, recipe {record['recipe']['name']}, images {height} x {width}. "
    lead += "".join(f"{form} is left out: {reason}. " for form, reason in record["left_out"].items())
    return _section(timed_rows(record), form_sizes(record), prefix, title, lead)


def _section(latencies: pd.DataFrame, sizes: pd.DataFrame, prefix: str, title: str, lead: str = "") -> Section:
    simulated = "simulated" in set(latencies["label"])
    parts = (
        Drawing(
            latency_chart(latencies), "Latency: the median, and from where to where 80 % of the passes lie.", half=True
        ),
        Drawing(size_chart(sizes), "Size of the file on disk.", half=True),
        _latency_table(latencies, f"{prefix}_latency"),
        html_table(
            sizes.rename(columns={"kib": "KiB"}), f"{prefix}_sizes", whole=sizes, caption="Size",
            formats={"KiB": lambda size: f"{size:,.1f}", "bytes": lambda size: f"{size:,}"},
        ),
    )  # fmt: skip
    return Section(title, lead + (WARNING if simulated else ""), parts)


def _latency_table(latencies: pd.DataFrame, name: str) -> Markup:
    whole = latencies.drop(columns="name")
    shown = whole.rename(columns=HEADS)
    return html_table(shown, name, whole=whole, formats=dict.fromkeys(list(HEADS.values())[:4], _ms), caption="Latency")


def latency_chart(rows: pd.DataFrame) -> Chart:
    """A bar a model and batch size."""
    source = source_of(rows)
    _add_looks(source)
    source.data["text"] = [f" {median:.2f} ms" for median in rows["median_ms"]]
    tooltips = [
        *[("model", "@model"), ("label", "@label"), ("median", "@median_ms{0.00} ms")],
        *[("10 % … 90 %", "@p10_ms{0.00} … @p90_ms{0.00} ms"), ("by", "@runtime"), ("on", "@device, @threads threads")],
    ]
    made = bars_chart(list(rows["name"]), x_label="milliseconds a batch", tooltips=tooltips)
    _bars(made, source, "name", "median_ms", float(rows["p90_ms"].max()))
    made.add_layout(Whisker(base="name", lower="p10_ms", upper="p90_ms", source=source, dimension="width"))
    return made


def size_chart(rows: pd.DataFrame) -> Chart:
    """A bar a model."""
    source = source_of(rows)
    _add_looks(source)
    first = float(rows["bytes"].iloc[0])
    source.data["text"] = [
        f" {size / 1024:,.1f} KiB" + ("" if i == 0 else f" ({size / first:.2f} x)")
        for i, size in enumerate(rows["bytes"])
    ]
    tooltips = [("model", "@model"), ("file", "@bytes{0,0} bytes"), ("counted", "@counted")]
    made = bars_chart(list(rows["model"]), x_label="KiB", tooltips=tooltips)
    _bars(made, source, "model", "kib", float(rows["kib"].max()))
    return made


def _bars(made: Chart, source: ColumnDataSource, name: str, value: str, most: float) -> None:
    """The bars, each with its figure over it."""
    made.height = 46 * len(source.data[name]) + 70
    made.hbar(
        y=name, right=value, height=0.36, source=source, color="colour", fill_alpha=0.85, hatch_pattern="hatch",
        hatch_color="white",
    )  # fmt: skip
    made.x_range.start, made.x_range.end = 0, 1.08 * most
    made.add_layout(LabelSet(x=0, y=name, text="text", source=source, y_offset=11, text_font_size="12px"))


def _add_looks(source: ColumnDataSource) -> None:
    looks = [LOOKS.get(str(label), (GREY, " ")) for label in list(source.data["label"])]
    source.data["colour"], source.data["hatch"] = [colour for colour, _ in looks], [hatch for _, hatch in looks]


def _ms(value: float) -> str:
    return f"{value:.3f}"
