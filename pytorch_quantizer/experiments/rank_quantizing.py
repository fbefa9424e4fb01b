"""Quantizing in several processes: shared where batches can be, and done once, by the first, where it is learned.
What a process's share is, ranks.py says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.export.checkpoint import load, save
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.ranks import ALONE, Ranks


def quantized_by(
    ranks: Ranks, model: nn.Module, recipe: Recipe, make: Callable[[Ranks], QuantizedModel]
) -> QuantizedModel:
    """What ``make`` gives, on every rank, to the bit; model: the float network.

    make: is called on all ranks with all of them, and shares their work; where the recipe learns, on the first alone,
    from which the others get the packed checkpoint. Raises what ``make`` raises, on every rank.
    """
    if ranks.count == 1 or not is_learned(recipe):
        return make(ranks)
    kept: list[QuantizedModel] = []

    def packed() -> bytes:
        kept.append(make(ALONE))
        with tempfile.TemporaryDirectory() as folder:
            save(kept[0], Path(folder) / "learned.safetensors")
            return (Path(folder) / "learned.safetensors").read_bytes()

    content = ranks.from_first(packed)
    return kept[0] if ranks.is_first else _unpacked(content, model)


def is_learned(recipe: Recipe) -> bool:
    """Whether quantizing trains something: steps that build on each other, which several processes can't share."""
    return recipe.reconstruction != "none" or recipe.tuning_epochs > 0


def _unpacked(content: bytes, model: nn.Module) -> QuantizedModel:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learned.safetensors"
        path.write_bytes(content)
        return load(path, model=model, device=device_of(model))
