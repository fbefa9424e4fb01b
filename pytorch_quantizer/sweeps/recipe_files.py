"""A sweep's recipes as files, OUTPUT/recipes/NAME.yaml, so that any point can be looked at by `pq run --recipe`.
What a sweep's own file says of recipes is recipes.py's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.sweeps.point import Point

FOLDER = "recipes"


def write_recipes(points: Iterable[Point], folder: Path) -> None:
    """Write the recipe of each name, its seed left to the command that reads it; files that are right stay as they are.

    A name's other characters than letters, digits and -+=.,: become _; names that then are the same get a number.
    """
    taken: Counter[str] = Counter()
    for name, recipe in {point.recipe.name: point.recipe for point in points}.items():
        plain = re.sub(r"[^A-Za-z0-9=.,:+-]+", "_", name)
        taken[plain] += 1
        path = Path(folder) / FOLDER / (f"{plain}.yaml" if taken[plain] == 1 else f"{plain}_{taken[plain]}.yaml")
        wanted = recipe.replace(seed=Recipe.seed)
        if not path.is_file() or path.read_bytes() != wanted.to_yaml().encode():
            wanted.save(path)
