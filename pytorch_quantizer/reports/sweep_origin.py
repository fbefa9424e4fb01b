"""What a sweep ran and on what: its recipes, networks and images, versions and machines.
Those of a single run are provenance.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from pytorch_quantizer.reports.section import Markup, Section, paragraph
from pytorch_quantizer.reports.table import html_table, pairs_table, written

RUN = {
    **{"dataset": "data sets", "arch": "networks", "checkpoint": "weights", "samples": "images evaluated"},
    **{"calibration_samples": "images for ranges", "calibration_split": "of the split", "seed": "seeds"},
    **{"device": "device", "threads": "threads", "code": "code"},
}
MOST_LISTED = 12  # values of a column


def recipes_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a recipe in the order of the table: recipe, and the fields that differ from the defaults."""
    different = rows.drop_duplicates(["recipe", "settings"])
    fields = [json.loads(text or "{}") for text in different["settings"].fillna("")]
    texts = [written({name: value for name, value in each.items() if name != "name"}) for each in fields]
    return pd.DataFrame({"recipe": list(different["recipe"]), "what differs from the defaults": texts})


def sweep_origin_section(rows: pd.DataFrame, origins: dict[str, Any], name: str, title: str) -> Section:
    """Recipes, what was run, versions and machines. origins: those of origins.json, by code."""
    parts: list[Markup] = []
    if "settings" in rows:
        parts.append(html_table(recipes_table(rows), f"{name}_recipes", caption="Recipes"))
    facts = {head: _listed(rows[column]) for column, head in RUN.items() if column in rows}
    parts.append(pairs_table(facts, f"{name}_run", "Run"))
    parts += _measured_with(rows, origins, name)
    return Section(title, "", parts)


def _measured_with(rows: pd.DataFrame, origins: dict[str, Any], name: str) -> Iterator[Markup]:
    codes = [code for code in rows["code"].dropna().unique() if code in origins] if "code" in rows else []
    if not codes:
        yield paragraph("No origins.json lies beside the table: versions and machine are not known.")
    for number, code in enumerate(codes, 1):
        of, part = ("", name) if len(codes) == 1 else (f" of code {code}", f"{name}{number}")
        yield pairs_table(origins[code]["versions"], f"{part}_versions", f"Versions{of}")
        machines = pd.DataFrame(origins[code]["machines"])
        yield html_table(machines, f"{part}_machines", caption=f"Machines{of}")


def _listed(values: pd.Series) -> str:
    found = [str(value) for value in values.dropna().unique() if str(value)]
    more = f", … ({len(found)})" if len(found) > MOST_LISTED else ""
    return f"{', '.join(found[:MOST_LISTED])}{more}"
