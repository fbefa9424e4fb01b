"""Reconstruction as quantize() runs it: calibration's images kept for it, memory limited, finished blocks read again.
The learning itself is reconstruct.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pytorch_quantizer.calibration.activation_cache import ActivationCache, Rows
from pytorch_quantizer.calibration.calibrate import images_of
from pytorch_quantizer.calibration.finished_blocks import FinishedBlocks, identity_of
from pytorch_quantizer.calibration.memory import Need, largest_need
from pytorch_quantizer.calibration.reconstruct import (
    Reconstruction,
    blocks_of,
    learnable_layers,
    reconstruct,
    schedule_of,
)
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.user_warnings import warn_user


class ReconstructionRun:
    """What a recipe asks for, or nothing. max_memory: bytes; resume: a folder for finished blocks, where it is made.

    images: how many were kept. Raises InputError where the folder can't be.
    """

    def __init__(self, recipe: Recipe, max_memory: int | None, resume: str | Path | None) -> None:
        self.is_asked = recipe.reconstruction != "none"
        self._wanted = recipe.reconstruction_images
        self._max_memory, self._resume = max_memory, None if resume is None else Path(resume)
        if self._resume is not None:
            _make_folder(self._resume)
        self._cache = ActivationCache(math.inf if max_memory is None else 0, self._resume)
        self._images: Rows | None = None
        self.images = 0

    def keep_images(self, batches: Iterable[Any] | None) -> Iterator[Any] | None:
        """The batches; the first images of them are kept on the way, as many as the recipe says.

        Raises InputError where they are needed and there are none.
        """
        if not self.is_asked:
            return None if batches is None else iter(batches)
        if batches is None:
            raise InputError("reconstruction learns on images: give calibration=, an iterable of image batches")
        return self._kept(batches)

    def _kept(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            images = next(images_of([batch], torch.device("cpu")))
            if self._images is None:
                self._images = self._cache.room(self._wanted, images.shape[1:])
            self._images.append(images[: self._wanted - self._images.written])
            self.images = self._images.written
            yield batch

    def keep_rest(self, batches: Iterator[Any] | None) -> None:
        """Read on until there are as many images as the recipe says; calibration may have needed fewer, or none."""
        while self.is_asked and batches is not None and (self._images is None or self._images.written < self._wanted):
            if next(batches, None) is None:
                return

    def needs(self, model: QuantizedModel) -> list[Need]:
        """What learning the simulated model takes: the block that takes most."""
        blocks = blocks_of(model) if self.is_asked else []
        return [largest_need(model, blocks, schedule_of(model.recipe).batch)] if blocks else []

    def carry_out(
        self, model: QuantizedModel, graph: fx.GraphModule, scales: Mapping[str, Tensor], *, progress: bool
    ) -> list[str]:
        """Reconstruct in place; sentences about what was done, and what was left and why."""
        assert self._images is not None
        images = self._images
        finished = None if self._resume is None else FinishedBlocks(self._resume, identity_of(model, images))
        done = reconstruct(
            model, graph, images, self._cache, scales, max_memory=self._max_memory, finished=finished, progress=progress
        )
        self._images = None
        return _notes(model, done, images.written)


def check_limits(recipe: Recipe, max_memory: int | None, resume: str | Path | None) -> None:
    """Raise InputError for a max_memory that is no number of bytes, and for either where nothing is learned."""
    reconstructs, tunes = recipe.reconstruction != "none", recipe.tuning_epochs > 0
    if max_memory is not None and (isinstance(max_memory, bool) or not isinstance(max_memory, int) or max_memory < 1):
        raise InputError(f"max_memory must be a number of bytes, 1 or more, got {max_memory!r}")
    if max_memory is not None and not (reconstructs or tunes):
        raise InputError("max_memory is for reconstruction and tuning; the recipe asks for neither: leave it out")
    if resume is not None and not reconstructs:
        raise InputError("resume is for reconstruction, which the recipe doesn't ask for: leave it out")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"resume: {folder} can't be a folder ({error.strerror}); give another") from error


def _notes(model: QuantizedModel, done: list[Reconstruction], images: int) -> list[str]:
    kept = [entry.block for entry in done if entry.kept]
    told, count = f" ({', '.join(kept)})", f"{len(kept)} of {len(done)} blocks learned on {images} images"
    if not kept:
        why, remedy = _why_none(done)
        told = f": {why}"
        warn_user(f"reconstruction was asked for and changed nothing in this network: {why}; {remedy}")
    notes = [f"reconstruction: {count}{told}"]
    left = learnable_layers(model)[1]
    if left and model.recipe.reconstruction_learns != "activations":
        shown = ", ".join(f"{path}: {reason}" for path, reason in left.items())
        notes.append(f"reconstruction: weights left as they were ({shown})")
    return notes


def _why_none(done: list[Reconstruction]) -> tuple[str, str]:
    """Why no block was kept, and what to do. A block in which nothing could be learned has one error twice."""
    learned = sum(entry.error_after != entry.error_before for entry in done)
    if not learned:
        return "it has no block that can be learned", "set reconstruction none"
    blocks = "the one block that was learned" if learned == 1 else f"of the {learned} blocks that were learned none"
    came = "came no nearer" if learned == 1 else "came nearer"
    remedy = "more reconstruction_iterations or reconstruction_images may help"
    return f"{blocks} {came} to the float network than before", remedy
