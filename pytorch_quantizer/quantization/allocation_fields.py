"""What a recipe's fields of bit allocation and mixed precision must keep to.
The fields are recipe.py's; who gets which bits is calibration/allocate.py's and mix_precisions.py's business.
"""

from __future__ import annotations

import math
from typing import Any

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.qtypes import NumberType

ALLOCATIONS = ("none", "bits", "bins", "midtread")


def check_allocation(recipe: Any) -> None:
    """Raise InputError where a Recipe's fields that divide bits are out of their rules."""
    if recipe.activation_allocation != "none" and recipe.activation_granularity != "per_channel":
        raise InputError("activation_allocation gives channels their bits: set activation_granularity per_channel")
    if recipe.weight_allocation != "none" and recipe.weight_granularity != "per_channel":
        raise InputError("weight_allocation gives each channel its bits: set weight_granularity per_channel")
    if recipe.statistics != "offline" and recipe.activation_allocation != "none":
        raise InputError("activation_allocation needs to know the channels: set statistics offline")
    if recipe.statistics != "offline" and recipe.mixed_precision in ("activations", "both"):
        raise InputError("mixed_precision of activations needs to know the tensors: set statistics offline")
    _check_integers(recipe)
    _check_budget(recipe)
    _check_other_budgets(recipe)


def _check_integers(recipe: Any) -> None:
    """Bits can be divided among uniform grids alone."""
    asked = (
        ("weight_allocation", "weights", recipe.weight_allocation != "none"),
        ("activation_allocation", "activations", recipe.activation_allocation != "none"),
        ("mixed_precision", "weights", recipe.mixed_precision in ("weights", "both")),
        ("mixed_precision", "activations", recipe.mixed_precision in ("activations", "both")),
    )
    for name, what, is_asked in asked:
        if is_asked and NumberType.parse(getattr(recipe, what)).name != "int":
            given = f"{name} divides bits among int types, and {what} are {getattr(recipe, what)}"
            raise InputError(f"{given}: set {what} to int4 or the like, or {name} to none")


def _check_budget(recipe: Any) -> None:
    budget = recipe.mixed_precision_budget
    if budget is None:
        return
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 2 <= budget <= 8:
        raise InputError(f"mixed_precision_budget must be from 2 to 8 bits a value, or left out, got {budget!r}")
    if recipe.mixed_precision == "none":
        raise InputError("mixed_precision_budget needs mixed_precision: weights, activations or both")


def _check_other_budgets(recipe: Any) -> None:
    for name in ("mixed_precision_size", "mixed_precision_bit_operations"):
        given = getattr(recipe, name)
        if given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
            raise InputError(f"{name} must be a positive number, or left out, got {given!r}")
        if recipe.mixed_precision == "none":
            raise InputError(f"{name} needs mixed_precision: weights, activations or both")
    if recipe.mixed_precision_size is not None and recipe.mixed_precision == "activations":
        raise InputError("mixed_precision_size limits weights: set mixed_precision weights or both")
    if recipe.mixed_precision_criterion != "noise" and recipe.mixed_precision == "none":
        raise InputError("mixed_precision_criterion needs mixed_precision: weights, activations or both")
