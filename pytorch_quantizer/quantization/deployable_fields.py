"""What a recipe's fields must be for integer kernels to run what comes of it.
The fields are recipe.py's; what a runtime does with the model is export/'s business.
"""

from __future__ import annotations

from typing import Any

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.dynamic_fields import DYNAMIC, NEEDED_TO_DEPLOY_DYNAMIC, check_deployable_dynamic
from pytorch_quantizer.quantization.qtypes import NumberType

NEEDED_TO_DEPLOY = {
    "rounding": "half_even",
    "activation_granularity": "per_tensor",
    "weight_allocation": "none",
    "activation_allocation": "none",
}
NEEDED_OFFLINE = {"bias": "int32", "statistics": "offline"}


def check_deployable(recipe: Any) -> None:
    """Raise InputError where a Recipe is to be deployable and can't be."""
    if not recipe.deployable:
        return
    wanted = [recipe.weights, recipe.activations, recipe.residual, recipe.first, recipe.last]
    wanted += [text for override in recipe.overrides for text in (override.weights, override.activations)]
    for text in wanted:
        if text and not NumberType.parse(text).is_integer:
            raise InputError(f"{text} tensors can't run in integer kernels; set deployable: false to simulate them")
    dynamic = recipe.statistics == DYNAMIC
    for name, needed in (NEEDED_TO_DEPLOY | (NEEDED_TO_DEPLOY_DYNAMIC if dynamic else NEEDED_OFFLINE)).items():
        value = getattr(recipe, name)
        if value != needed:
            raise InputError(f"{name}={value!r} can't run in integer kernels; set deployable: false to simulate it")
    if dynamic:
        check_deployable_dynamic(recipe)
