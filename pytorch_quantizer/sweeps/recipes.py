"""A sweep's recipes: shipped ones by name, files, fields written out, and grids over fields.
What a recipe's fields mean is Recipe's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.idle_fields import with_changes
from pytorch_quantizer.quantization.recipe import Recipe

BASE, GRID = "recipe", "grid"  # keys of an entry that are no fields of a recipe


def parse_recipes(place: str, entries: Sequence[Any]) -> list[Recipe]:
    """The recipes that a list means, in its order. Raises InputError, which names the entry by ``place``."""
    return [recipe for number, entry in enumerate(entries) for recipe in _of_entry(f"{place}[{number}]", entry)]


def _of_entry(place: str, entry: Any) -> list[Recipe]:
    """Of a name or path: one. Of {recipe, fields …, grid: {field: [values]}}: one for each combination."""
    try:
        if isinstance(entry, str):
            return [_named(entry)]
        if not isinstance(entry, dict):
            raise InputError(
                f"must be a recipe's name, a file in YAML or JSON, or a mapping of its fields, got {entry!r}"
            )
        return _of_mapping(entry)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _of_mapping(entry: Mapping[str, Any]) -> list[Recipe]:
    base = _named(entry[BASE]) if BASE in entry else Recipe()
    changes = {name: value for name, value in entry.items() if name not in (BASE, GRID, "name")}
    names, values = _axes(entry.get(GRID) or {}, changes)
    if "seed" in changes or "seed" in names:
        raise InputError("a recipe's seed is the point's: leave it out, and give seeds")
    name = entry.get("name") or _name(base.name, changes)
    made = [dict(zip(names, chosen, strict=True)) for chosen in product(*values)]
    return [_changed(base, _name(name, chosen), changes | chosen) for chosen in made]


def _axes(grid: Any, changes: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    if not isinstance(grid, dict):
        raise InputError(f"grid must be a mapping of fields to lists of values, got {grid!r}")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{name} must be a list of values with at least one, got {values!r}")
        if name in changes:
            raise InputError(f"{name} has one value beside the grid and several in it: leave one of them out")
    return list(grid), list(grid.values())


def _changed(base: Recipe, name: str, changes: dict[str, Any]) -> Recipe:
    try:
        return with_changes(base, changes | {"name": name})
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _named(text: Any) -> Recipe:
    """A shipped recipe or a file's; one that gives itself no name has the file's."""
    if not isinstance(text, str):
        raise InputError(f"{BASE} must be a recipe's name or a file in YAML or JSON, got {text!r}")
    recipe = Recipe.load(text)
    return recipe.replace(name=Path(text).stem) if recipe.name == Recipe.name else recipe


def _name(base: str, changes: Mapping[str, Any]) -> str:
    return " ".join([base, *(f"{name}={_shown(value)}" for name, value in changes.items())])


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
