"""--recipe and the flags of its single fields: what every command that quantizes shares.
What the fields mean is the recipe's business.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonargparse

from pytorch_quantizer.command_line import add_flags
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.idle_fields import with_changes
from pytorch_quantizer.quantization.recipe import Recipe, list_recipes

DEFAULT_RECIPE = "w8a4_aciq"


def add_recipe_flags(parser: jsonargparse.ArgumentParser) -> None:
    """Add --recipe, and a flag a field of it; ``recipe_from`` reads them."""
    parser.add_argument(
        "--recipe", default=DEFAULT_RECIPE, help=f"{', '.join(list_recipes())}, or a file, YAML or JSON"
    )
    add_flags(parser, Recipe, "single fields of the recipe (default: as the recipe says)", optional=True)


def recipe_from(flags: dict[str, Any]) -> Recipe:
    """The recipe with the fields that were given as flags; its name says which of them differ from the recipe's.

    What only the recipe set, and a flag makes idle, is at its default: nobody asked for it, and nobody is warned.
    """
    recipe = Recipe.load(flags["recipe"])
    given = {field.name: flags[field.name] for field in fields(Recipe) if field.name in flags}
    if given.get("seed") is None:
        given.pop("seed", None)  # not given: the recipe's own
    changed = {name: value for name, value in given.items() if value != getattr(recipe, name)}
    parts = [f"{name.replace('_', '-')}-{str(value).lower()}" for name, value in changed.items() if name != "seed"]
    name = Path(flags["recipe"]).stem if recipe.name == Recipe.name else recipe.name  # a file that gives itself none
    return with_changes(recipe, changed | {"name": "_".join([name, *parts])}, asked=given)


def refuse_recipe(flags: dict[str, Any]) -> None:
    """Raise InputError where the flags want a recipe for what is quantized already."""
    given = [entry.name for entry in fields(Recipe) if entry.name in flags and entry.name != "seed"]
    given += ["recipe"] * (flags["recipe"] != DEFAULT_RECIPE)
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"--packed FILE is quantized already: leave out {names}")
