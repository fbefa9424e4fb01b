"""Simulation, integer reference and ONNX Runtime side by side: what compare.json says.
The comparison itself is experiments/comparison.py's.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from pytorch_quantizer.reports.chart import Chart, bars_chart, legend_above, source_of
from pytorch_quantizer.reports.palette import Style, styles
from pytorch_quantizer.reports.section import Drawing, Markup, Section
from pytorch_quantizer.reports.table import html_table, percent

NAMES = {"alone": "each tensor alone, in integers", "integer": "integer reference", "onnxruntime": "ONNX Runtime"}
MOST_ROWS = 60  # of the chart; the table holds all


def differing_tensors(record: dict[str, Any]) -> pd.DataFrame:
    """A row a tensor and model: tensor, type, model, share of the codes that differ, by how much at most, and why."""
    return pd.DataFrame(
        [
            {"tensor": tensor["name"], "type": tensor["type"], "model": name}
            | {"share": tensor[key]["share"], "most": tensor[key]["most"], "why": tensor.get("why", "")}
            for tensor in record["tensors"]
            for key, name in NAMES.items()
            if tensor.get(key)
        ]
    )


def agreement_section(record: dict[str, Any], prefix: str, title: str) -> Section:
    """Top-1 and predictions of each model, and the share of codes that differ tensor by tensor."""
    rows = differing_tensors(record)
    models = pd.DataFrame({"top-1": record["top1"], "same prediction": record["predictions_agree"]}).reset_index()
    models = models.rename(columns={"index": "model"})
    parts: list[Drawing | Markup] = [
        html_table(models, f"{prefix}_models", formats={"top-1": percent, "same prediction": percent}, caption="Models")
    ]
    apart = rows[rows["share"] > 0]
    if len(apart):
        named = list(dict.fromkeys(apart["tensor"]))[:MOST_ROWS]
        caption = "Codes that differ from the simulation's, tensors in the order of execution."
        parts.append(Drawing(differences_chart(apart[apart["tensor"].isin(named)], named), caption))
    formats = {"share": lambda share: f"{share:.2e}" if share else "0"}
    parts.append(html_table(rows, f"{prefix}_tensors", formats=formats, caption="Tensors"))
    lead = f"{record['arch']} on {record['dataset']}, {record.get('images', '?')} images. " + (
        "A difference of one code at a tie is what float32's rounding alone can make."
    )
    return Section(title, lead, parts)


def differences_chart(rows: pd.DataFrame, named: list[str]) -> Chart:
    """A mark a tensor and model, on a logarithmic scale."""
    tooltips = [
        ("tensor", "@tensor"),
        ("model", "@model"),
        ("differ", "@share{0.00e+0}"),
        ("at most by", "@most codes"),
    ]
    made = bars_chart(named, x_label="share of the codes that differ", x_axis_type="log", tooltips=tooltips)
    looks: dict[str, Style] = styles(NAMES.values())
    for model, part in rows.groupby("model", sort=False):
        source = source_of(part)
        style = looks[str(model)]
        made.scatter(
            "share", "tensor", source=source, marker=style.shape, color=style.colour, size=8, legend_label=str(model)
        )
    legend_above(made, columns=1)
    return made
