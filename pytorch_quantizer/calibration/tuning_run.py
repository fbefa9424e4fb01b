"""Tuning as quantize() runs it: calibration's images kept for it, and a sentence about what came of it.
The learning itself is tune.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from pytorch_quantizer.calibration.calibrate import device_of, images_of
from pytorch_quantizer.calibration.tune import tune
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe


class TuningRun:
    """What a recipe asks for, or nothing."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.is_asked = recipe, recipe.tuning_epochs > 0
        self._images: list[Tensor] = []
        self._missing = recipe.tuning_images if self.is_asked else 0

    def keep_images(self, batches: Iterable[Any] | None) -> Iterator[Any] | None:
        """The batches; the first images of them are kept on the way, on the CPU, as many as the recipe says.

        Raises InputError where they are needed and there are none.
        """
        if batches is None and self.is_asked:
            raise InputError("tuning learns on images: give calibration=, an iterable of image batches")
        return None if batches is None else self._kept(batches)

    def _kept(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if self._missing:
                images = next(images_of([batch], torch.device("cpu")))[: self._missing]
                self._images.append(images)
                self._missing -= len(images)
            yield batch

    def keep_rest(self, batches: Iterator[Any] | None) -> None:
        """Read on until there are as many images as the recipe says; calibration may have needed fewer, or none."""
        while self._missing and batches is not None and next(batches, None) is not None:
            pass

    def carry_out(self, model: QuantizedModel, graph: fx.GraphModule, *, progress: bool) -> list[str]:
        """Tune in place; a sentence about what was done."""
        if not self.is_asked:
            return []
        recipe, images = self.recipe, [images.to(device_of(graph)) for images in self._images]
        done = tune(
            model,
            graph,
            images,
            epochs=recipe.tuning_epochs,
            learning_rate=recipe.tuning_rate,
            batch_size=recipe.tuning_batch,
            block_weight=recipe.tuning_blocks,
            mirror=recipe.tuning_mirror,
            seed=recipe.seed,
            progress=progress,
        )
        self._images = []
        what = "learned by distillation" if done.kept else "left as they were, for nothing better was found"
        return [
            f"tuning: scales, biases and steps {what} "
            f"(distance on images held out {done.before:.4g} before, {done.after:.4g} after)"
        ]
