"""Tuning as quantize() runs it: calibration's images kept for it, memory limited, a sentence about what came of it.
The learning itself is tune.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx

from pytorch_quantizer.calibration.activation_cache import ActivationCache, Rows
from pytorch_quantizer.calibration.calibrate import images_of
from pytorch_quantizer.calibration.memory import Need, release_memory, smaller, tuning_bytes
from pytorch_quantizer.calibration.tune import tune
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.user_warnings import warn_user


class TuningRun:
    """What a recipe asks for, or nothing. max_memory: bytes; the images lie in files where there is such a limit.

    images: how many were kept.
    """

    def __init__(self, recipe: Recipe, max_memory: int | None = None) -> None:
        self.recipe, self.is_asked = recipe, recipe.tuning_epochs > 0
        self._cache = ActivationCache(math.inf if max_memory is None else 0)
        self._images: Rows | None = None
        self.images = 0

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
                images = next(images_of([batch], torch.device("cpu")))
                if self._images is None:
                    self._images = self._cache.room(self.recipe.tuning_images, images.shape[1:])
                self._images.append(images[: self._missing])
                self.images = self._images.written
            yield batch

    @property
    def _missing(self) -> int:
        """How many images are still to be kept."""
        kept = 0 if self._images is None else self._images.written
        return self.recipe.tuning_images - kept if self.is_asked else 0

    def keep_rest(self, batches: Iterator[Any] | None) -> None:
        """Read on until there are as many images as the recipe says; calibration may have needed fewer, or none."""
        while self._missing and batches is not None and next(batches, None) is not None:
            pass

    def needs(self, model: QuantizedModel) -> list[Need]:
        """What tuning the simulated model takes."""
        if not self.is_asked:
            return []
        needed = tuning_bytes(model, self.recipe.tuning_batch, weights=self.recipe.tuning_weight_rate > 0)
        return [Need(needed, "tuning the network", smaller("tuning_batch", self.recipe.tuning_batch))]

    def carry_out(self, model: QuantizedModel, graph: fx.GraphModule, *, progress: bool) -> list[str]:
        """Tune in place; a sentence about what was done."""
        if not self.is_asked:
            return []
        assert self._images is not None
        recipe = self.recipe
        release_memory(cycles=True)
        done = tune(
            model,
            graph,
            self._images,
            epochs=recipe.tuning_epochs,
            learning_rate=recipe.tuning_rate,
            batch_size=recipe.tuning_batch,
            block_weight=recipe.tuning_blocks,
            mirror=recipe.tuning_mirror,
            seed=recipe.seed,
            weight_rate=recipe.tuning_weight_rate,
            progress=progress,
        )
        self._images = None
        learned = f"{'weights, ' if done.weights else ''}scales, biases and steps"
        if recipe.tuning_weight_rate and not done.weights:
            warn_user("tuning_weight_rate changed nothing: no weight is on a uniform grid; set tuning_weight_rate 0")
        what = "learned by distillation"
        if not done.kept:
            found = done.after != done.before
            why = "nothing better was found" if found else "nothing can be learned"
            remedy = "try a lower tuning_rate or more tuning_images, or set" if found else "set"
            what = f"left as they were, for {why}"
            warn_user(f"tuning was asked for and changed nothing in this network: {why}; {remedy} tuning_epochs 0")
        return [
            f"tuning: {learned} {what} "
            f"(distance from the float network {done.before:.4g} before, {done.after:.4g} after)"
        ]
