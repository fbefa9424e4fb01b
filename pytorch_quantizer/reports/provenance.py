"""Where figures come from: the recipe, the calibration, versions and machine, as tables.
Those of a sweep, which may have several, are sweep_origin.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.reports.section import Markup, Section
from pytorch_quantizer.reports.table import pairs_table

ORIGINS = {"versions": "Versions", "machine": "Machine", "calibration": "Calibration"}


def recipe_section(recipe: dict[str, Any], prefix: str, title: str) -> Section:
    """The recipe: what it changes of the defaults, then all of it."""
    defaults = json.loads(json.dumps(asdict(Recipe())))  # as a record has them
    changed = {name: value for name, value in recipe.items() if name not in defaults or value != defaults[name]}
    parts = (
        pairs_table(changed, f"{prefix}_recipe_changes", "What differs from the defaults"),
        Markup("<details><summary>All fields</summary>"),
        pairs_table(recipe, f"{prefix}_recipe", ""),
        Markup("</details>"),
    )
    return Section(title, "", parts)


def origin_section(record: dict[str, Any], prefix: str, title: str) -> Section:
    """Versions, machine, calibration, and plain facts of a record."""
    return Section(title, "", list(_origins(record, prefix)))


def _origins(record: dict[str, Any], prefix: str) -> Iterator[Markup]:
    facts = {name: value for name, value in record.items() if isinstance(value, str | int | float | bool)}
    yield pairs_table(facts, f"{prefix}_run", "Run")
    for key, caption in ORIGINS.items():
        if isinstance(record.get(key), dict):
            yield pairs_table(record[key], f"{prefix}_{key}", caption)
    skipped = record.get("skipped_images") or []
    if skipped:
        yield pairs_table(
            {str(i): path for i, path in enumerate(skipped, 1)}, f"{prefix}_skipped", "Images passed over"
        )
