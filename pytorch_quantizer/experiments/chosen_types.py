"""The number types that a run's tensors got, for its record and headline: of mixed precision the widths it chose.
Who gets which width is calibration/mix_precisions.py's.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.qtypes import NumberType
from pytorch_quantizer.quantization.recipe import Recipe

BUDGETS = ("mixed_precision_budget", "mixed_precision_size", "mixed_precision_bit_operations")


def chosen_types(model: QuantizedModel, asked: Recipe | None) -> dict[str, str]:
    """For people, of weights and of activations: the recipe's number type, or where mixed precision chose what it gave.

    asked: the recipe as it was before that choice was written out. Of several widths the ends: "int2 … int8, mixed", of
    those tensors that took part: first and last layer have 8 bits beside. "int8" where all got the same. With None, as
    that recipe isn't known of a packed checkpoint, all that is overridden is told like what mixed precision chose.
    """
    return {what: _chosen(model, asked, what) for what in ("weights", "activations")}


def budgets_of(asked: Recipe) -> dict[str, float]:
    """The budgets of mixed precision that a recipe gives, by field."""
    return {name: getattr(asked, name) for name in BUDGETS if getattr(asked, name) is not None}


def _chosen(model: QuantizedModel, asked: Recipe | None, what: str) -> str:
    carried_out = model.recipe
    added = carried_out.overrides[0 if asked is None else len(asked.overrides) :]
    changed = [override.layers for override in added if getattr(override, what) is not None]
    usual = NumberType.parse(getattr(carried_out, what))
    mixes = bool(changed) and usual.name == "int" if asked is None else asked.mixed_precision in (what, "both")
    if not mixes:
        return str(usual)
    bits = [
        site.quantizer.bits
        for site in model.sites
        if site.quantizer is not None and _is_of(site, what)
        if site.quantizer.bits == usual.bits or any(fnmatchcase(n, p) for n in site.consumers for p in changed)
    ]
    least, most = min(bits, default=usual.bits), max(bits, default=usual.bits)
    return f"int{least}" if least == most else f"int{least} … int{most}, mixed"


def _is_of(site: Site, what: str) -> bool:
    return site.kind == "weight" if what == "weights" else site.kind in ("activation", "input") and not site.is_wide
