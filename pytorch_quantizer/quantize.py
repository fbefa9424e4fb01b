"""quantize(): the main job, each stage of it a call: capture, fold, place, calibrate, fit, insert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pytorch_quantizer.calibration.calibrate import calibrate, device_of, fit, images_of
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.fold import fold
from pytorch_quantizer.graph.insert import insert
from pytorch_quantizer.graph.place import place
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe

EXAMPLES = 2  # images of the first batch that mark the graph's tensors and check it against the model


def quantize(
    model: nn.Module,
    recipe: Recipe | str = "w8a8",
    calibration: Iterable[Any] | None = None,
    *,
    strict: bool = False,
    progress: bool = True,
) -> QuantizedModel:
    """Quantize a trained network without retraining; ``model`` itself is not touched.

    recipe: a Recipe, the name of a shipped one, or a YAML file. calibration: batches, each a float tensor of images
    [N, …] or a tuple or list that begins with one; a tensor by itself is one batch; may be None where the recipe
    quantizes weights alone. strict: a module that can't be captured is an error. Batch norms are folded, in eval mode.
    Raises InputError for what can't be done: see capture, place, calibrate and fit.
    """
    _check_model(model)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    example, batches = _peek(model, calibration)
    captured = capture(model, example, strict=strict)
    graph, kept = fold(captured)
    sites = place(graph, recipe, {**captured.opaque, **kept})
    statistics = {}
    if any(site.is_activation and site.quantizer is not None for site in sites):
        if calibration is None:
            raise InputError("the recipe quantizes activations: give calibration=, an iterable of image batches")
        statistics = calibrate(graph, sites, batches, progress=progress)
    return insert(graph, fit(graph, sites, statistics), recipe)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"quantize needs a model, an nn.Module, got {type(model).__name__}")
    if isinstance(model, QuantizedModel):
        raise InputError("the model is quantized already; quantize the float model it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(f"{name} is {kind}; grids and int32 biases need float32: call model.float() first")


def _peek(model: nn.Module, calibration: Iterable[Any] | None) -> tuple[Tensor | None, Iterator[Any]]:
    """A few images of the first batch, and all batches, that one included."""
    if calibration is None:
        return None, iter(())
    batches = iter([calibration] if isinstance(calibration, Tensor) else calibration)
    first = next(batches, None)
    if first is None:
        raise InputError("the calibration set is empty; give at least one batch of images")
    images = next(images_of([first], device_of(model)))
    return images[:EXAMPLES], chain([first], batches)
