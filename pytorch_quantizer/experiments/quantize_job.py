"""A job's network quantized as its settings say: by this process, or by several, each with the same in the end.
Which images and network these are, inference.py says; what a process's share is, ranks.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.data import ImageLoader
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.export.checkpoint import load, save
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantize import quantize
from pytorch_quantizer.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from pytorch_quantizer.experiments.inference_config import ResolvedConfig


def quantize_job(
    model: nn.Module,
    recipe: Recipe,
    batches: ImageLoader,
    config: ResolvedConfig,
    resources: Resources,
    ranks: Ranks = ALONE,
) -> QuantizedModel:
    """Quantize ``model`` with ranges from ``batches``; all ranks share the work, and end with the same, to the bit.

    Where the recipe learns, the first does it alone, and the others get its packed checkpoint. Raises InputError as
    quantize() does, on every rank.
    """

    def made(by: Ranks) -> QuantizedModel:
        return quantize(
            model,
            recipe,
            batches,
            statistics_file=config.statistics_file,
            strict=config.strict,
            max_memory=resources.memory_bytes,
            resume=resources.resume,
            ranks=by,
            progress=ranks.is_first,
        )

    return made(ranks) if ranks.count == 1 or not is_learned(recipe) else _by_the_first(ranks, model, made)


def is_learned(recipe: Recipe) -> bool:
    """Whether quantizing trains something: steps that build on each other, which several processes can't share."""
    return recipe.reconstruction != "none" or recipe.tuning_epochs > 0


def _by_the_first(ranks: Ranks, model: nn.Module, made: Callable[[Ranks], QuantizedModel]) -> QuantizedModel:
    kept: list[QuantizedModel] = []

    def packed() -> bytes:
        kept.append(made(ALONE))
        with tempfile.TemporaryDirectory() as folder:
            save(kept[0], Path(folder) / "learned.safetensors")
            return (Path(folder) / "learned.safetensors").read_bytes()

    content = ranks.from_first(packed)
    return kept[0] if ranks.is_first else _unpacked(content, model)


def _unpacked(content: bytes, model: nn.Module) -> QuantizedModel:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learned.safetensors"
        path.write_bytes(content)
        return load(path, model=model, device=device_of(model))
