"""What a recipe's fields of end-to-end tuning must keep to.
The fields are recipe.py's; what they mean is calibration/tune.py's business.
"""

from __future__ import annotations

import math
from typing import Any

from pytorch_quantizer.errors import InputError

COUNTS = {"tuning_epochs": 0, "tuning_batch": 1, "tuning_images": 1}  # the least of each


def check_tuning(recipe: Any) -> None:
    """Raise InputError where a Recipe's fields of tuning are out of their rules."""
    for name, least in COUNTS.items():
        value = getattr(recipe, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number of {least} or more, got {value!r}")
    rate = recipe.tuning_rate
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise InputError(f"tuning_rate must be above 0 and at most 1, a scale's share, got {rate!r}")
    weight = recipe.tuning_blocks
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise InputError(f"tuning_blocks must be a weight of 0 or more, got {weight!r}")
    rate = recipe.tuning_weight_rate
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise InputError(f"tuning_weight_rate must be from 0 to 1, in steps of a weight's grid, got {rate!r}")
