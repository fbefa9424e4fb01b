"""quantize(): the main job, each stage of it a call: capture, fold, place, calibrate, fit, insert, correct."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytorch_quantizer.calibration.allocate import allocate_channels, mix_precisions
from pytorch_quantizer.calibration.calibrate import (
    calibrate,
    device_of,
    images_of,
)
from pytorch_quantizer.calibration.corrections import list_corrections
from pytorch_quantizer.calibration.fit import fit
from pytorch_quantizer.calibration.measured import Measured
from pytorch_quantizer.calibration.statistics_file import known_statistics, save_statistics
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.equalize import equalize
from pytorch_quantizer.graph.fold import fold
from pytorch_quantizer.graph.insert import insert
from pytorch_quantizer.graph.operations import layer_nodes
from pytorch_quantizer.graph.place import place
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import ensure_biases
from pytorch_quantizer.quantization.recipe import Recipe

EXAMPLES = 2  # images of the first batch that mark the graph's tensors and check it against the model


def quantize(
    model: nn.Module,
    recipe: Recipe | str = "w8a8",
    calibration: Iterable[Any] | None = None,
    *,
    statistics_file: str | Path | None = None,
    strict: bool = False,
    progress: bool = True,
) -> QuantizedModel:
    """Quantize a trained network without retraining; ``model`` itself is not touched.

    recipe: a Recipe, the name of a shipped one, or a YAML file. calibration: batches, each a float tensor of images
    [N, …] or a tuple or list that begins with one; a tensor by itself is one batch; may be None where the recipe
    quantizes weights alone. statistics_file: what calibration saw of the activations, read where it is there already,
    else collected and written (calibration/statistics_file.py). strict: a module that can't be captured is an error.
    Batch norms are folded, in eval mode.
    Raises InputError for what can't be done: see capture, place, calibrate and fit.
    """
    _check_model(model)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    example, batches = _peek(model, calibration)
    captured = capture(model, example, strict=strict)
    graph, kept = fold(captured)
    if recipe.equalize:
        graph, _ = equalize(graph)
    reasons = {**captured.opaque, **kept}
    sites = place(graph, recipe, reasons)
    measured = Measured(graph, sites, recipe)
    known = known_statistics(statistics_file, graph, sites)
    statistics = known or {}
    if measured.needs_images(known is None):
        if calibration is None:
            raise InputError(f"the recipe {measured.purpose}: give calibration=, an iterable of image batches")
        asked = sites if known is None else ()
        seen = calibrate(graph, asked, measured.keep_some(batches), also=measured.observers, progress=progress)
        statistics = {**statistics, **seen}
    if statistics_file is not None and known is None:
        save_statistics(statistics_file, statistics, graph, measured.count)
    if recipe.mixed_precision != "none":
        recipe = mix_precisions(graph, sites, statistics, recipe)
        sites = place(graph, recipe, reasons)
    sites = allocate_channels(graph, sites, statistics, recipe)
    if list_corrections(recipe):
        ensure_biases(layer for _, layer in layer_nodes(graph))
    quantized = insert(graph, fit(graph, sites, statistics, measured.moments()), recipe)
    for correction in list_corrections(recipe):
        correction.carry_out(quantized, graph, measured.images, progress=progress)
    return quantized


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
