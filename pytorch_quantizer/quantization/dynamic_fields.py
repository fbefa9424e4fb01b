"""What a recipe's fields must keep to where ranges are dynamic: each input's from its own batch.
The fields are recipe.py's; which layers that concerns is graph/place.py's business.
"""

from __future__ import annotations

from typing import Any

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.qtypes import NumberType

DYNAMIC = "dynamic"
DYNAMIC_LAYERS = ("linear", "recurrent", "convolution")
# ONNX's DynamicQuantizeLinear knows no other range.
NEEDED_TO_DEPLOY_DYNAMIC = {"clip": "minmax", "activation_symmetric": False}


def check_dynamic(recipe: Any) -> None:
    """Raise InputError where other fields don't go with a Recipe's ranges of each batch."""
    if recipe.statistics != DYNAMIC:
        if recipe.dynamic_layers != type(recipe).dynamic_layers:
            raise InputError("dynamic_layers says what statistics dynamic quantizes: set statistics dynamic")
        return
    if recipe.bias != "float32":
        raise InputError("with statistics dynamic no grid of a layer's sums is fixed: set bias float32")
    if recipe.wide_residual or recipe.residual is not None:
        raise InputError("with statistics dynamic additions stay in float: leave out residual and wide_residual")


def check_deployable_dynamic(recipe: Any) -> None:
    """Raise InputError for what kernels that choose ranges themselves don't take: they read uint8 and int8 weights."""
    read = [recipe.activations, recipe.first, recipe.last, *(override.activations for override in recipe.overrides)]
    for text in filter(None, read):
        if NumberType.parse(text).bits != 8:
            raise InputError(
                f"with statistics dynamic integer kernels read int8 tensors alone, not {text}; "
                "set deployable: false to simulate it"
            )
    for text in filter(None, [recipe.weights, *(override.weights for override in recipe.overrides)]):
        if NumberType.parse(text).bits > 8:
            raise InputError(
                f"with statistics dynamic integer kernels take weights of 8 bits or fewer, not {text}; "
                "set deployable: false to simulate it"
            )
    for override in recipe.overrides:
        if override.clip not in (None, "minmax"):
            raise InputError(f"clip={override.clip!r} can't run in integer kernels; set deployable: false")


def layers_in_order(names: str) -> str:
    """Some of DYNAMIC_LAYERS, divided by commas, in that table's order. Raises InputError for others."""
    given = [name.strip() for name in names.split(",")] if isinstance(names, str) else []
    if not given or any(name not in DYNAMIC_LAYERS for name in given):
        raise InputError(
            f"dynamic_layers must be some of {', '.join(DYNAMIC_LAYERS)}, divided by commas, got {names!r}"
        )
    return ", ".join(name for name in DYNAMIC_LAYERS if name in given)
