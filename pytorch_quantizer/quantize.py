"""quantize(): the main job, each stage of it a call: capture, fold, place, calibrate, fit, insert, correct, ties."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytorch_quantizer.calibration.allocate import allocate_channels
from pytorch_quantizer.calibration.calibrate import count_images, device_of, images_of
from pytorch_quantizer.calibration.correction_memory import correction_needs
from pytorch_quantizer.calibration.corrections import list_corrections
from pytorch_quantizer.calibration.fit import fit
from pytorch_quantizer.calibration.measured import batch_extremes, measure
from pytorch_quantizer.calibration.memory import large_tensors_given_back
from pytorch_quantizer.calibration.mix_precisions import mix_precisions
from pytorch_quantizer.calibration.reconstruct import starting_scales
from pytorch_quantizer.calibration.reconstruction_run import ReconstructionRun, check_limits
from pytorch_quantizer.calibration.tuning_run import TuningRun
from pytorch_quantizer.calibration.width_errors import width_errors
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.digest import network_digest
from pytorch_quantizer.graph.equalize import equalize
from pytorch_quantizer.graph.fold import fold
from pytorch_quantizer.graph.insert import insert
from pytorch_quantizer.graph.operations import layer_nodes
from pytorch_quantizer.graph.place import place
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import ensure_biases
from pytorch_quantizer.graph.share import own_tensors
from pytorch_quantizer.graph.ties import move_off_ties
from pytorch_quantizer.quantization.idle_fields import idle_sentences
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.ranks import ALONE, Ranks
from pytorch_quantizer.user_warnings import warn_user

EXAMPLES = 2  # images of the first batch that mark the graph's tensors and check it against the model
LEFT_SHOWN = 3  # layers that a warning names


def quantize(
    model: nn.Module,
    recipe: Recipe | str = "w8a8",
    calibration: Iterable[Any] | None = None,
    *,
    statistics_file: str | Path | None = None,
    strict: bool = False,
    max_memory: int | None = None,
    resume: str | Path | None = None,
    ranks: Ranks = ALONE,
    progress: bool = True,
) -> QuantizedModel:
    """Quantize a trained network without retraining; ``model`` itself is not touched.

    recipe: a Recipe, the name of a shipped one, or a file of one. calibration: batches, each a float tensor of images
    [N, …] or a tuple or list that begins with one; a tensor by itself is one batch; may be None where the recipe
    quantizes weights alone, or takes ranges from each batch. statistics_file: what calibration saw of the activations,
    read where it is there already, else collected and written (calibration/statistics_file.py). strict: a module that
    can't be captured is an error. Batch norms are folded, in eval mode. max_memory: for recipes that ask for
    reconstruction or tuning, the bytes that all of this may take beside what evaluating ``model`` on the same batches
    does, of the CPU's memory and the device's together; unless given reconstruction takes half of what is free. For it
    glibc's mmap and trim thresholds are set, unless the environment sets one, and stay at 32 MiB. resume: a folder for
    the blocks that reconstruction finishes; with those of a run that was stopped, it goes on behind them and comes to
    the same end, to the bit. ranks: of several processes (ranks.joined_ranks) that are all given all batches, and share
    the work of measuring activations; each ends with the same model, to the bit. Warns of fields of the recipe that
    change nothing.
    Raises InputError for what can't be done: see capture, place, calibrate and fit.
    """
    _check_model(model)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    for sentence in idle_sentences(recipe):
        warn_user(sentence)
    check_limits(recipe, max_memory, resume)
    with large_tensors_given_back(max_memory):
        return _quantized(
            model,
            recipe,
            calibration,
            statistics_file=statistics_file,
            strict=strict,
            max_memory=max_memory,
            resume=resume,
            ranks=ranks,
            progress=progress,
        )


def _quantized(
    model: nn.Module,
    recipe: Recipe,
    calibration: Iterable[Any] | None,
    *,
    statistics_file: str | Path | None,
    strict: bool,
    max_memory: int | None,
    resume: str | Path | None,
    ranks: Ranks,
    progress: bool,
) -> QuantizedModel:
    """The stages, one after the other."""
    example, batches = _peek(model, calibration)
    captured = capture(model, example, strict=strict, share_parameters=True)
    network = network_digest(captured.graph)
    graph, kept = fold(captured, inplace=True)
    notes = []
    learning = ReconstructionRun(recipe, max_memory, resume)
    tuning = TuningRun(recipe, max_memory)
    batches = tuning.keep_images(learning.keep_images(batches))
    if recipe.equalize:
        graph, pairs = equalize(graph)
        notes.append(_note("equalize", "pairs of layers equalized", pairs))
    reasons = {**captured.opaque, **kept}
    sites = place(graph, recipe, reasons)
    measured = measure(
        graph,
        sites,
        recipe,
        batches,
        statistics_file=statistics_file,
        max_memory=max_memory,
        most_images=count_images(calibration),
        ranks=ranks,
        progress=progress,
    )
    learning.keep_rest(batches)
    tuning.keep_rest(batches)
    if recipe.mixed_precision != "none":
        errors = partial(width_errors, graph, measured, reasons, progress=progress)
        recipe = mix_precisions(graph, sites, measured.statistics, recipe, errors)
        sites = place(graph, recipe, reasons)
    sites = allocate_channels(graph, sites, measured.statistics, recipe)
    corrections = list_corrections(recipe)
    if corrections or learning.is_asked or tuning.is_asked:
        ensure_biases(layer for _, layer in layer_nodes(graph))
    fitted = fit(graph, sites, measured.statistics, measured.moments())
    needs_float = bool(corrections) or learning.is_asked or tuning.is_asked
    quantized = insert(graph, fitted, recipe, inplace=not needs_float)
    own_tensors(quantized, model)
    limit = measured.limit
    if limit.bytes is not None:
        corrected = correction_needs(quantized, graph, measured.images, limit)
        limit.require(*corrected, *learning.needs(quantized), *tuning.needs(quantized))
    scales = starting_scales(quantized) if learning.is_asked else {}
    for correction in corrections:
        done = correction.carry_out(quantized, graph, measured.images, progress=progress)
        notes.append(_note(correction.name, "tensors corrected", [entry.tensor for entry in done if entry.kept]))
        notes += _left_note(correction.name, correction.left(quantized))
        if learning.is_asked and correction.name == "weight_rounding":
            scales = starting_scales(quantized)  # it chose them anew: no gains
    if learning.is_asked:
        notes += learning.carry_out(quantized, graph, scales, progress=progress)
    notes += tuning.carry_out(quantized, graph, progress=progress)
    if recipe.deployable:
        move_off_ties(quantized)
    seen = measured.count if measured.was_read else max(measured.count or 0, learning.images, tuning.images)
    quantized.meta.update(notes=tuple(notes), calibration_images=seen, statistics_read=measured.was_read)
    quantized.meta["network"] = network
    quantized.meta["batch_extremes"] = batch_extremes(sites, measured.statistics)
    return quantized


def _note(step: str, what: str, names: list[str]) -> str:
    """A sentence about what a step did; a warning where it did nothing, which nobody who asks for it expects."""
    if not names:
        warn_user(f"{step} was asked for and changed nothing in this network")
    return f"{step}: {len(names)} {what}" + (f" ({', '.join(names)})" if names else "")


def _left_note(step: str, left: dict[str, str]) -> list[str]:
    """A sentence about the weights that a step can't change, and a warning. left: their layers, with the reason."""
    if not left:
        return []
    shown = [f"{path}: {reason}" for path, reason in left.items()]
    more = f"; {len(shown) - LEFT_SHOWN} more in the notes" if shown[LEFT_SHOWN:] else ""
    warn_user(f"{step} left {len(shown)} weights as they were ({', '.join(shown[:LEFT_SHOWN])}{more})")
    return [f"{step}: weights left as they were ({', '.join(shown)})"]


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"quantize needs a model, an nn.Module, got {type(model).__name__}")
    if isinstance(model, QuantizedModel):
        raise InputError("the model is quantized already; quantize the float model it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(f"{name} is {kind}; grids and int32 biases need float32: call model.float() first")


def _peek(model: nn.Module, calibration: Iterable[Any] | None) -> tuple[Tensor | None, Iterator[Any] | None]:
    """A few images of the first batch, and all batches, that one included."""
    if calibration is None:
        return None, None
    batches = iter([calibration] if isinstance(calibration, Tensor) else calibration)
    first = next(batches, None)
    if first is None:
        raise InputError("the calibration set is empty; give at least one batch of images")
    images = next(images_of([first], device_of(model)))
    return images[:EXAMPLES], chain([first], batches)
