"""The leaderboard: every method at every width, as recipes, and the parts of it that flags name.
Measuring is cells.py's, rows, means and tables are leaderboard_table.py's, the command is commands/leaderboard.py's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.network_list import parse_names
from pytorch_quantizer.graph.requests import EIGHT_BITS
from pytorch_quantizer.quantization.qtypes import NumberType
from pytorch_quantizer.quantization.recipe import Recipe

DEFAULT_SETTINGS = "W8A8,W8A4,W4A8,W4A4,W3A3,W2A4,W2A2"
RESIDUALS = {"narrow": False, "wide": True}  # block outputs as additions read them: the activations' bits, or 8
AFFINE_UP_TO = 3  # bits: there all weights' grids have zero points; symmetric narrow ones have 3 of 4 levels, or 7 of 8

BEST_RANGES = {"clip": "mse", "weight_clip": "output_mse"}
STATISTICAL = {**BEST_RANGES, "activation_correction": "both"}
SECOND_ORDER = {**BEST_RANGES, "weight_rounding": "second_order", "rounding_order": "size", "correction_images": 1024}
MIXED = {**BEST_RANGES, "mixed_precision": "both"}
CHANNELS = {"deployable": False, "activation_granularity": "per_channel"}
LEARNED = {"clip": "mse", "weight_clip": "mse"}
QDROP = {**LEARNED, "reconstruction": "block", "reconstruction_drop": 0.5, "reconstruction_iterations": 1000}
BRECQ = {**QDROP, "reconstruction_drop": 0.0}
TUNING = {"tuning_epochs": 10, "tuning_rate": 0.005, "tuning_blocks": 1.0, "tuning_mirror": True}

# A method by name: the fields of a recipe that it changes beside the widths. A new method is a line here.
METHODS: dict[str, dict[str, Any]] = {
    "minmax": {},
    "mse": {"clip": "mse", "weight_clip": "mse"},
    "aciq laplace": {"clip": "laplace", "weight_clip": "laplace"},
    "aciq paper": {
        **CHANNELS,
        **{"clip": "laplace", "weight_clip": "mse", "weight_correction": "both"},
        **{"activation_allocation": "bits", "weight_allocation": "bits"},
    },
    "output mse": BEST_RANGES,
    "mixed precision": MIXED,
    "mixed precision measured": {**MIXED, "mixed_precision_criterion": "measured"},
    "statistical": STATISTICAL,
    "gptq": {**STATISTICAL, "weight_rounding": "gptq"},
    "second order": SECOND_ORDER,
    "second order + tuning": {**SECOND_ORDER, **TUNING},
    "second order + tuned weights": {**SECOND_ORDER, **TUNING, "tuning_epochs": 20, "tuning_weight_rate": 0.002},
    "adaround": {**BRECQ, "reconstruction": "layer"},
    "brecq": BRECQ,
    "brecq + tuning": {**BRECQ, **TUNING},
    "qdrop": QDROP,
    "qdrop + tuning": {**QDROP, **TUNING},
    "long qdrop + tuning": {**QDROP, "reconstruction_iterations": 2500, **TUNING},
    "qat": {**LEARNED, "weight_narrow": False, "weight_symmetric": True},
}
TRAINED = ("qat",)  # methods whose network is trained before it is measured (trained_cell.py)


@dataclass(frozen=True)
class Setting:
    """A width of weights and one of activations."""

    weights: int
    activations: int

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"


def parse_settings(text: str) -> list[Setting]:
    """Read "W4A4,W2A4". Raises InputError for anything else."""
    return list(dict.fromkeys(_parse_setting(part) for part in parse_names("--settings", text)))


def parse_methods(text: str | None) -> list[str]:
    """The methods that are named, all for None. Raises InputError for one that isn't there."""
    if text is None:
        return list(METHODS)
    return [_known("--methods", part, METHODS) for part in parse_names("--methods", text)]


def parse_residuals(text: str) -> list[str]:
    """Read "narrow,wide". Raises InputError for another."""
    return [_known("--residual", part, RESIDUALS) for part in parse_names("--residual", text)]


def parse_seeds(text: str) -> list[int]:
    """Read "0,1,2". Raises InputError for what isn't a whole number of 0 or more."""
    parts = parse_names("--seeds", text)
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--seeds must be whole numbers of 0 or more, divided by commas, got {text!r}")
    return [int(part) for part in parts]


def recipe_of(method: str, setting: Setting, residual: str, seed: int) -> Recipe:
    """A cell's recipe. Raises InputError where the method's fields don't allow these widths."""
    fields: dict[str, Any] = {"wide_residual": RESIDUALS[residual], "seed": seed}
    fields |= {"weight_symmetric": setting.weights > AFFINE_UP_TO, **METHODS[method]}
    weights, activations = f"int{setting.weights}", f"int{setting.activations}"
    return Recipe(name=f"{method} {setting}", weights=weights, activations=activations, **fields)


def policy(recipe: Recipe) -> dict[str, Any]:
    """What a row says of its recipe beside method and widths."""
    first_last = [text or _at_least_8_bits(recipe) for text in (recipe.first, recipe.last)]
    granularity = f"weights {recipe.weight_granularity}, activations {recipe.activation_granularity}"
    return {
        "first_last": "/".join(dict.fromkeys(first_last)),
        "granularity": granularity.replace("_", "-"),
        "weight_grid": "symmetric" if recipe.weight_symmetric else "affine",
        "deployable": recipe.deployable,
    }


def _at_least_8_bits(recipe: Recipe) -> str:
    """What first and last layer have where the recipe leaves it open: 8 bits, or as the others where wider."""
    weights, activations = (
        str(max(NumberType.parse(text), EIGHT_BITS, key=lambda number_type: number_type.bits))
        for text in (recipe.weights, recipe.activations)
    )
    return weights if weights == activations else f"weights {weights}, activations {activations}"


def _known(flag: str, part: str, known: Sequence[str] | dict[str, Any]) -> str:
    if part in known:
        return part
    close = difflib.get_close_matches(part, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"{flag} must be among {', '.join(known)}, got {part!r}{hint}")


def _parse_setting(text: str) -> Setting:
    match = re.fullmatch(r"w(\d+)a(\d+)", text.lower())
    if not match or not all(2 <= int(bits) <= 16 for bits in match.groups()):
        raise InputError(f"--settings must be like W4A8, weights and activations of 2 to 16 bits, got {text!r}")
    return Setting(int(match[1]), int(match[2]))
