"""Which ingredient did what: top-1 of each row of an ablation, at each width, beside the float network.
The table for people is experiments/ablation.py's.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from pytorch_quantizer.reports.chart import Chart, bars_chart, legend_above, source_of
from pytorch_quantizer.reports.palette import BLACK, styles
from pytorch_quantizer.reports.section import Drawing, Markup, Section
from pytorch_quantizer.reports.table import html_table, percent, written

PANEL = ["arch", "setting"]
TOOLTIPS = [
    *[("network", "@arch, @setting setting"), ("ingredient", "@row"), ("bits", "@column")],
    ("top-1", "@percent{0.00} % (@low{0.00} … @high{0.00})"),
]


def ablation_rows(record: dict[str, Any]) -> pd.DataFrame:
    """A row a cell of ablation.json: arch, setting, column (8W4A), row, deployable, percent, low, high, fp32_percent.

    low, high: the 95 % interval; all of them in %.
    """
    return pd.DataFrame(
        [
            {"arch": network["arch"], "fp32_percent": 100 * network["fp32"]["top1"]}
            | {name: cell[name] for name in ("setting", "column", "row", "deployable", "samples")}
            | {"percent": 100 * cell["top1"]}
            | {end: 100 * value for end, value in zip(("low", "high"), cell["top1_interval"], strict=True)}
            for network in record["networks"]
            for cell in network["cells"]
        ]
    )


def ablation_section(record: dict[str, Any], prefix: str, title: str) -> Section:
    """A chart a network and setting, and the table."""
    rows = ablation_rows(record)
    parts: list[Drawing | Markup] = []
    for (arch, setting), part in rows.groupby(PANEL, sort=False):
        caption = f"{arch} on {record['dataset']}, {setting} setting; all but the last add one thing to the first."
        parts.append(Drawing(ablation_chart(part), caption, half=True))
    heads = {"percent": "top-1", "row": "ingredient", "column": "bits", "samples": "images"}
    shown = rows[[*PANEL, "column", "row", "deployable", "samples", "percent"]].rename(columns=heads)
    formats = {"top-1": lambda value: percent(value / 100), "deployable": written}
    parts.append(html_table(shown, f"{prefix}_cells", formats=formats, whole=rows, caption="All cells"))
    calibration = record["calibration"]
    lead = (
        f"The ablation of Banner et al. (2019); the dashed line is the float network. Ranges from "
        f"{calibration['samples']} images of the {calibration['split']} split, seed {record['seed']}."
    )
    return Section(title, lead, parts)


def ingredients(part: pd.DataFrame) -> list[str]:
    """The table's rows in its order, whichever of them a width lacks: what has all of them is the last."""
    return sorted(dict.fromkeys(part["row"]), key=lambda row: row == "all")


def ablation_chart(part: pd.DataFrame) -> Chart:
    """A line a row of the table, a mark a width; the first row on top."""
    made = bars_chart(ingredients(part), x_label="top-1 (%)", tooltips=TOOLTIPS)
    made.vspan(x=[part["fp32_percent"].iloc[0]], line_color=BLACK, line_dash="dashed", legend_label="float32")
    for column, style in styles(part["column"]).items():
        made.scatter(
            "percent", "row", source=source_of(part[part["column"] == column]), marker=style.shape, color=style.colour,
            size=10, fill_alpha=0.8, legend_label=column,
        )  # fmt: skip
    made.height = max(made.height, 230)
    legend_above(made, columns=4)
    return made
