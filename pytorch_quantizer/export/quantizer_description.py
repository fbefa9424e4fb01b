"""Quantizers as plain values, and back: what a file says of each beside the tensors of its ``storage``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast, get_args

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.plain_values import decode, encode
from pytorch_quantizer.quantization.clipping import Domain, Support
from pytorch_quantizer.quantization.qtypes import NUMBER_TYPES, BiasQuantizer, IntQuantizer, Quantizer
from pytorch_quantizer.quantization.qtypes.allocated_quantizer import AllocatedQuantizer
from pytorch_quantizer.quantization.qtypes.mid_tread_quantizer import MidTreadQuantizer
from pytorch_quantizer.quantization.qtypes.online_quantizer import OnlineQuantizer

SETTINGS: dict[str, Any] = {  # and what they are
    **{"signed": bool, "narrow": bool, "symmetric": bool, "axis": int | None},
    **{"clip": str, "across_batches": str, "rounding": str, "seed": int},
}
# By class, what of its storage it starts from, and the settings that it does not ask for.
LEVELS: dict[type[Quantizer], str] = {AllocatedQuantizer: "bits", MidTreadQuantizer: "levels"}
FIXED: dict[type[Quantizer], tuple[str, ...]] = {MidTreadQuantizer: ("narrow", "symmetric")}


def types() -> dict[str, type[Quantizer]]:
    """By class name, what a file may ask for: the registry's number types and those that recipes make of them."""
    made: list[type[Quantizer]] = [AllocatedQuantizer, MidTreadQuantizer, OnlineQuantizer, BiasQuantizer]
    classes = [*NUMBER_TYPES.values(), *made]
    return {cls.__name__: cls for cls in classes}


def describe_quantizer(quantizer: Quantizer) -> dict[str, Any]:
    """Class, settings and the place of a stochastic one's generator; JSON can hold it. Tensors are in ``storage``."""
    name = type(quantizer).__name__
    if types().get(name) is not type(quantizer):
        raise InputError(f"{name} is no number type of the registry (NUMBER_TYPES), so no file can ask for it; add it")
    if isinstance(quantizer, BiasQuantizer):
        return {"type": name, "input_scale": quantizer.input_scale.item()}
    found = {"type": name, "bits": quantizer.bits, "drawn": getattr(quantizer, "drawn", 0)}
    found |= {setting: getattr(quantizer, setting) for setting in SETTINGS if hasattr(quantizer, setting)}
    domain = getattr(quantizer, "domain", None)
    if domain is not None:
        found["domain"] = {name: encode(value) for name, value in asdict(domain).items()}
    return found


def build_quantizer(
    description: dict[str, Any], storage: dict[str, Tensor], *, weight_scale: Tensor | None = None
) -> Quantizer:
    """The quantizer that was described. weight_scale: of the layer's outputs, which a bias's grid follows from.

    Raises InputError, KeyError, TypeError or ValueError where description and storage don't fit together.
    """
    cls = types().get(description["type"])
    if cls is None:
        raise InputError(f"the file asks for a number type {description['type']!r}, which is not in the registry")
    if cls is BiasQuantizer:
        return _build_bias(description["input_scale"], weight_scale)
    settings = _settings(cls, description)
    made, built = cast("Callable[..., Any]", cls), None
    if cls in LEVELS:
        built = made(storage[LEVELS[cls]], **settings)
    elif cls is OnlineQuantizer:
        built = OnlineQuantizer(IntQuantizer(description["bits"], **settings))
    else:
        built = made(description["bits"], **settings)
    if hasattr(built, "drawn"):
        built.drawn = description["drawn"]
    restored: Quantizer = built.restore(storage)
    if restored.storage().keys() != storage.keys() or restored.bits != description["bits"]:
        raise InputError(
            f"the file says {description['bits']} bits and holds {', '.join(sorted(storage)) or 'nothing'} of a "
            f"quantizer of {restored.bits} bits that has {', '.join(sorted(restored.storage())) or 'nothing'}: "
            "they contradict each other"
        )
    return restored


def _build_bias(input_scale: Any, weight_scale: Tensor | None) -> BiasQuantizer:
    if weight_scale is None:
        raise InputError("a bias has a grid, its layer's weight has none")
    if not isinstance(input_scale, float) or not 0 < input_scale < math.inf:
        raise InputError(f"input_scale must be a positive number, got {input_scale!r}")
    return BiasQuantizer(torch.tensor(input_scale, dtype=torch.float32), weight_scale)


def _settings(cls: type[Quantizer], description: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a number type, each of the kind that it must be. What the values mean is the type's to check."""
    kinds = {**SETTINGS, "bits": int, "drawn": int}
    for name, kind in kinds.items():
        value = description.get(name)
        if name in description and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise InputError(f"{name} of a quantizer can't be {value!r}")
    if not 0 <= description["drawn"] < 2**63:
        raise InputError(f"drawn must lie in [0, 2^63), got {description['drawn']}")
    settings = {name: description[name] for name in SETTINGS if name in description and name not in FIXED.get(cls, ())}
    if "domain" in description:
        settings["domain"] = _domain(**{name: decode(value) for name, value in description["domain"].items()})
    return settings


def _domain(support: Any, upper: Any) -> Domain:
    if support not in get_args(Support) or not isinstance(upper, float | int | None):
        raise InputError(f"a quantizer can't be for values that are {support!r} up to {upper!r}")
    return Domain(support, upper)
