"""What a recipe's fields of reconstruction must keep to, by themselves and together with the others.
The fields are recipe.py's; what they mean is calibration/reconstruct.py's business.
"""

from __future__ import annotations

from typing import Any

from pytorch_quantizer.errors import InputError

RECONSTRUCTIONS = ("none", "layer", "block")
LEARNED = ("both", "weights", "activations")
COUNTS = ("reconstruction_iterations", "reconstruction_batch", "reconstruction_images")


def check_reconstruction(recipe: Any) -> None:
    """Raise InputError where a Recipe's fields of reconstruction are out of their rules."""
    for name in COUNTS:
        value = getattr(recipe, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, got {value!r}")
    drop, seed = recipe.reconstruction_drop, recipe.seed
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop <= 1:
        raise InputError(f"reconstruction_drop must be a probability from 0 to 1, got {drop!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise InputError(f"seed must be between 0 and 2^64 - 1, got {seed!r}")
    if not isinstance(recipe.reconstruction_blocks, str):
        raise InputError(
            f"reconstruction_blocks must be patterns divided by commas, got {recipe.reconstruction_blocks!r}"
        )
    if recipe.reconstruction == "none":
        return
    if recipe.reconstruction_learns != "activations" and not recipe.deployable and recipe.weight_correction != "none":
        raise InputError(
            "weight_correction shifts weights off the grid whose rounding reconstruction learns: "
            "set weight_correction none, deployable true, or reconstruction_learns activations"
        )
