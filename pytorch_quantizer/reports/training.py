"""How a training went: loss, and accuracy on validation images, epoch by epoch.
The numbers are those that training/ writes beside the weights.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from bokeh.models import AdaptiveTicker

from pytorch_quantizer.reports.chart import Chart, chart, source_of
from pytorch_quantizer.reports.palette import BLUE, VERMILION
from pytorch_quantizer.reports.section import Drawing, Markup, Section
from pytorch_quantizer.reports.table import html_table, pairs_table, percent


def epochs_table(record: dict[str, Any]) -> pd.DataFrame:
    """A row an epoch: epoch, loss, and where there are validation images their accuracy, precision, recall and f1."""
    return pd.DataFrame([{**epoch, **epoch.get("validation", {})} for epoch in record["epochs"]]).drop(
        columns="validation", errors="ignore"
    )


def training_section(record: dict[str, Any], prefix: str, title: str) -> Section:
    """Curves of loss and accuracy, the epochs, the settings."""
    rows = epochs_table(record)
    test = record["test"]
    lead = f"Top-1 {percent(test['top1'])} on {test['samples']} test images."
    parts: list[Drawing | Markup] = [Drawing(curve(rows, "loss", "loss", VERMILION), "Loss in training.", half=True)]
    if "accuracy" in rows:
        shown = rows.assign(percentage=100 * rows["accuracy"])
        drawn = curve(shown, "percentage", "accuracy on validation images (%)", BLUE)
        parts.append(Drawing(drawn, "Accuracy on validation images.", half=True))
    formats = {"loss": lambda loss: f"{loss:.4f}", "accuracy": percent}
    formats |= {name: lambda rate: f"{rate:.4f}" for name in ("precision", "recall", "f1")}
    parts.append(html_table(rows, f"{prefix}_epochs", formats=formats, caption="Epochs"))
    parts.append(pairs_table(record["config"], f"{prefix}_config", "Settings"))
    parts += [
        pairs_table(record[key], f"{prefix}_{key}", key.capitalize())
        for key in ("versions", "machine")
        if key in record
    ]
    return Section(title, lead, parts)


def curve(rows: pd.DataFrame, column: str, label: str, colour: str) -> Chart:
    """A column against the epoch."""
    source = source_of(rows.assign(value=rows[column]), columns=("epoch", "value"))
    made = chart(x_label="epoch", y_label=label, height=300, tooltips=[("epoch", "@epoch"), (label, "@value{0.0000}")])
    made.xaxis.ticker = AdaptiveTicker(min_interval=1)  # no half epochs
    made.line("epoch", "value", source=source, color=colour, line_width=2)
    made.scatter("epoch", "value", source=source, color=colour, size=6)
    return made
