"""What a recipe makes calibration measure: statistics of activations or a file of them, inputs of weights, images.
The measuring itself is calibrate.py's and covariance.py's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pytorch_quantizer.calibration.calibrate import (
    Observer,
    Statistics,
    calibrate,
    device_of,
    images_of,
    statistics_key,
    wanted_statistics,
)
from pytorch_quantizer.calibration.corrections import list_corrections
from pytorch_quantizer.calibration.covariance import InputMoments
from pytorch_quantizer.calibration.statistics_file import counted_images, known_statistics, save_statistics
from pytorch_quantizer.environment import free_memory
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import layer_nodes
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.clipping import ANY_VALUES
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantization.statistics import UNLIMITED
from pytorch_quantizer.ranks import ALONE, Ranks

TENSORS_AT_ONCE = 6  # of the largest size, that correcting holds of each image: 4.1 (ResNet-18) to 5.0 (SqueezeNet)
CORRECTION_BYTES = 8 * 2**30
# Under max_memory the peak counts, what freed memory leaves unused included: of such tensors an image, measured with
# ResNet-20, 11.2 (activations), 8.9 (batch norms), 8.3 (weights), 6.1 (rounding).
PEAK_TENSORS, PEAK_OF_ROUNDING = 12, 7
PEAK_BESIDE = 64 * 2**20


def measure(
    graph: fx.GraphModule,
    sites: tuple[Site, ...],
    recipe: Recipe,
    batches: Iterable[Any] | None,
    *,
    statistics_file: str | Path | None = None,
    max_memory: int | None = None,
    ranks: Ranks = ALONE,
    progress: bool = True,
) -> Measured:
    """Run what batches the recipe needs through the float graph. batches: as for calibrate.images_of; None: none.

    statistics_file: read instead of measuring activations where it is there already, else written. max_memory: bytes
    that corrections may take with the images kept for them. ranks: as calibrate has them.
    Raises InputError where images are needed and there are none, where corrections take more than max_memory, and as
    calibrate, load_statistics and save_statistics do.
    """
    measured = Measured(graph, sites, recipe, max_memory)
    known = known_statistics(statistics_file, graph, sites)
    if measured.needs_images(known is None):
        if batches is None:
            raise InputError(
                f"the recipe {measured.purpose(known is None)}: give calibration=, an iterable of image batches"
            )
        asked = sites if known is None else ()
        kept = measured.keep_some(batches)
        measured.statistics = calibrate(graph, asked, kept, also=measured.observers, ranks=ranks, progress=progress)
    if statistics_file is not None and known is None and ranks.is_first:
        save_statistics(statistics_file, measured.statistics, graph, measured.count)
    if statistics_file is not None and known is not None:
        measured.statistics, measured.was_read = known, True
        measured.count = counted_images(statistics_file)
    return measured


def batch_extremes(sites: Iterable[Site], statistics: Statistics) -> dict[str, Tensor]:
    """Min and max of each activation in each calibration batch, float64 [batches, 2] by site name, on the CPU.

    Of the tensor itself, where its range was chosen at a ReLU's input; without tensors whose batches nobody kept apart
    (a statistics file) or that are empty in one.
    """
    found = {}
    for site in sites:
        record = statistics.get(statistics_key(site)) if site.is_activation and site.quantizer is not None else None
        if record is None or record.extremes is None or not bool(record.extremes.isfinite().all()):
            continue
        limits = getattr(site.quantizer, "domain", ANY_VALUES).limits
        rows = record.extremes.cpu()
        found[site.name] = rows if limits == UNLIMITED else rows.clamp(*limits)
    return found


class Measured:
    """What calibration saw. statistics: of activations, was_read: from a file, count: of how many images, if known.

    images: kept for corrections. ``moments``: of what weights read.
    """

    def __init__(
        self, graph: fx.GraphModule, sites: tuple[Site, ...], recipe: Recipe, max_memory: int | None = None
    ) -> None:
        self.graph, self.recipe, self.images = graph, recipe, list[Tensor]()
        self._max_memory = max_memory
        self.statistics: Statistics = {}
        self.count: int | None = 0
        self.was_read = False
        self.device = device_of(graph)
        self._inputs = _inputs_by_weight(graph, sites)
        self._activations = bool(wanted_statistics(sites))
        self.observers: dict[str, list[Observer]] = {}
        for node, inputs in self._inputs.values():
            self.observers.setdefault(node, []).append(inputs)

    def purpose(self, statistics: bool) -> str:
        """Why images are needed, for an error's text; statistics: those of activations too."""
        if statistics and self._activations:
            return "quantizes activations"
        if self.recipe.mixed_precision_criterion == "measured":
            return "measures what widths cost"
        return "chooses weights by their outputs" if self._inputs else "corrects what quantization shifts"

    def needs_images(self, statistics: bool) -> bool:
        """Whether anything has to be measured on images; statistics: those of activations too."""
        return (statistics and self._activations) or bool(self._inputs) or self._keeps_images

    @property
    def _keeps_images(self) -> bool:
        measures = self.recipe.mixed_precision_criterion == "measured"
        return measures or any(correction.needs_images for correction in list_corrections(self.recipe))

    def keep_some(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; the first images of them are kept for corrections, as many as the recipe says.

        At most as many as take CORRECTION_BYTES, with a warning: the same number on every machine. Raises InputError
        where this one has no room for them.
        """
        wanted = self.recipe.correction_images if self._keeps_images else 0
        room, kept = _Room(self.graph, self.device, self.recipe, self._max_memory), 0
        for batch in batches:
            images = next(images_of([batch], self.device))
            self.count = (self.count or 0) + len(images)
            taken = images[: room.granted(kept, min(wanted - kept, len(images)))]
            if len(taken):
                self.images.append(taken)
                kept += len(taken)
            yield images

    def moments(self) -> dict[str, Tensor]:
        """By weight, the second moments of its layer's inputs; about their mean where corrections mend the mean."""
        centred = any(correction.mends_means for correction in list_corrections(self.recipe))
        return {name: inputs.second_moments(centred=centred) for name, (_, inputs) in self._inputs.items()}


class _Room:
    """For how many images a correction may keep tensors, and for how many this machine could."""

    def __init__(
        self, graph: fx.GraphModule, device: torch.device, recipe: Recipe, max_memory: int | None = None
    ) -> None:
        self.wanted, self.max_memory = recipe.correction_images, max_memory
        walks = any(step.needs_images and step.name != "weight_rounding" for step in list_corrections(recipe))
        shapes = [node.meta.get("shape") or () for node in graph.graph.nodes]
        largest = max(math.prod(shape[1:]) for shape in shapes)
        self.image_bytes = TENSORS_AT_ONCE * largest * torch.float32.itemsize
        self.peak_bytes = (PEAK_TENSORS if walks else PEAK_OF_ROUNDING) * largest * torch.float32.itemsize
        self.most = max(1, CORRECTION_BYTES // self.image_bytes)
        self.free = free_memory(device)
        self._has_warned = False

    def granted(self, kept: int, more: int) -> int:
        """How many more images may be kept. Raises InputError where they find no room."""
        given = min(more, self.most - kept)
        if given < more and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"correction_images: {self.most} are used, which take 8 GiB of memory", stacklevel=4)
        self._keep_to_limit(kept + given)
        needed = (kept + given) * self.image_bytes
        if needed > self.free:
            raise InputError(
                f"correcting on {kept + given} images takes about {needed / 2**30:.1f} GiB and {self.free / 2**30:.1f} "
                f"are free: set correction_images to {self.free // self.image_bytes} or fewer"
            )
        return given

    def _keep_to_limit(self, images: int) -> None:
        if self.max_memory is None or not images or PEAK_BESIDE + images * self.peak_bytes <= self.max_memory:
            return
        wanted = min(self.wanted, self.most)
        least = -(-(PEAK_BESIDE + wanted * self.peak_bytes) // 2**20)
        fitting = (self.max_memory - PEAK_BESIDE) // self.peak_bytes
        remedy = f"; or set correction_images to {fitting} or fewer" if fitting > 0 else ""
        raise InputError(
            f"max_memory must be at least {least} MiB, which correcting on {wanted} images takes, "
            f"got {self.max_memory / 2**20:.0f} MiB{remedy}"
        )


def _inputs_by_weight(graph: fx.GraphModule, sites: tuple[Site, ...]) -> dict[str, tuple[str, InputMoments]]:
    """For each weight whose range its outputs choose: the node that its layer reads, and what sums that up."""
    wanted = {site.node for site in sites if site.by_outputs and site.quantizer is not None}
    found = {}
    for node, layer in layer_nodes(graph):
        if f"{node.target}.weight" in wanted:
            found[f"{node.target}.weight"] = (node.all_input_nodes[0].name, InputMoments(layer))
    return found
