"""What a recipe makes calibration measure: statistics of activations or a file of them, inputs of weights, images.
The measuring itself is calibrate.py's and covariance.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from pytorch_quantizer.calibration.activation_cache import ActivationCache
from pytorch_quantizer.calibration.calibrate import (
    Observer,
    Statistics,
    calibrate,
    device_of,
    images_of,
    statistics_key,
    wanted_statistics,
)
from pytorch_quantizer.calibration.correction_room import CorrectionRoom
from pytorch_quantizer.calibration.corrections import list_corrections
from pytorch_quantizer.calibration.covariance import InputMoments, MomentsByName, window_count
from pytorch_quantizer.calibration.memory import UNLIMITED_MEMORY, MemoryLimit, Need, moments_bytes
from pytorch_quantizer.calibration.statistics_file import counted_images, known_statistics, save_statistics
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import layer_nodes
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.clipping import ANY_VALUES
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantization.statistics import UNLIMITED
from pytorch_quantizer.ranks import ALONE, Ranks


def measure(
    graph: fx.GraphModule,
    sites: tuple[Site, ...],
    recipe: Recipe,
    batches: Iterable[Any] | None,
    *,
    statistics_file: str | Path | None = None,
    max_memory: int | None = None,
    most_images: int | None = None,
    ranks: Ranks = ALONE,
    progress: bool = True,
) -> Measured:
    """Run what batches the recipe needs through the float graph. batches: as for calibrate.images_of; None: none.

    statistics_file: read instead of measuring activations where it is there already, else written. max_memory: bytes
    that second moments and the images kept for corrections may take. most_images: calibrate.count_images of the
    batches. ranks: as calibrate has them.
    Raises InputError where images are needed and there are none, as keep_some does where max_memory is too little, and
    as calibrate, load_statistics and save_statistics do.
    """
    measured = Measured(graph, sites, recipe, MemoryLimit(max_memory), most_images)
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

    images: kept for corrections. ``moments``: of what weights read. limit: what all of it is held to. most_images: how
    many are to come, where that is known.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        sites: tuple[Site, ...],
        recipe: Recipe,
        limit: MemoryLimit = UNLIMITED_MEMORY,
        most_images: int | None = None,
    ) -> None:
        self.graph, self.recipe, self.images = graph, recipe, list[Tensor]()
        self.limit, self.most_images = limit, most_images
        self.statistics: Statistics = {}
        self.count: int | None = 0
        self.was_read = False
        self.device = device_of(graph)
        self._inputs = _inputs_by_weight(graph, sites, None if limit.bytes is None else ActivationCache(0))
        self._activations = bool(wanted_statistics(sites))
        self.observers: dict[str, list[Observer]] = {}
        for node, inputs in self._inputs.values():
            self.observers.setdefault(node.all_input_nodes[0].name, []).append(inputs)

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
        where this one has no room for them, and where they and second moments of such batches exceed the limit: as soon
        as what all of them will take does, where it is known how many come, else once what has come does.
        """
        wanted = self.recipe.correction_images if self._keeps_images else 0
        room, kept = CorrectionRoom(self.graph, self.device), 0
        expected = min(wanted, room.most, wanted if self.most_images is None else self.most_images)
        for batch in batches:
            images = next(images_of([batch], self.device))
            self.count = (self.count or 0) + len(images)
            taken = images[: room.granted(kept, min(wanted - kept, len(images)))]
            if len(taken):
                self.images.append(taken if len(taken) == len(images) else taken.clone())  # not the batch it is of
                kept += len(taken)
            if self.limit.bytes is not None:
                self._check_limit(images, expected)
            yield images

    def moments(self) -> Mapping[str, Tensor]:
        """By weight, the second moments of its layer's inputs; about their mean where corrections mend the mean.

        Each is computed when it is asked for.
        """
        centred = any(correction.mends_means for correction in list_corrections(self.recipe))
        return MomentsByName({name: inputs for name, (_, inputs) in self._inputs.items()}, centred=centred)

    def _check_limit(self, images: Tensor, expected: int) -> None:
        """Raise InputError, as keep_some has it. images: a batch, expected: how many are to be kept in the end."""
        kept = sum(batch.nbytes for batch in self.images)
        at_last = max(kept, expected * images.nbytes // max(1, len(images)))
        keeping = Need(at_last, f"keeping up to {expected} images for corrections", "fewer correction_images take less")
        needs = [keeping, *self._moments_needs(len(images), at_last)]
        so_far = [keeping._replace(bytes=kept), *self._moments_needs(len(images), kept)]
        if self.most_images is not None or not self.limit.holds(*so_far):
            self.limit.require(*needs)

    def _moments_needs(self, images: int, kept: int) -> list[Need]:
        """What second moments of batches of so many images take, beside so many bytes of images that are kept."""
        needs = []
        for name, (node, inputs) in self._inputs.items():
            read, made = node.all_input_nodes[0].meta["shape"], node.meta["shape"]
            rows = window_count(inputs.layer, read, made, images)
            needed = kept + moments_bytes(self.graph, inputs.layer, rows)
            needs.append(Need(needed, f"choosing {name} by its outputs", "weight_clip mse takes less"))
        return needs


def _inputs_by_weight(
    graph: fx.GraphModule, sites: tuple[Site, ...], cache: ActivationCache | None
) -> dict[str, tuple[fx.Node, InputMoments]]:
    """For each weight whose range its outputs choose: the call of its layer, and what sums up what that reads.

    cache: where the sums lie; unless given, on the layer's device.
    """
    wanted = {site.node for site in sites if site.by_outputs and site.quantizer is not None}
    found = {}
    for node, layer in layer_nodes(graph):
        if f"{node.target}.weight" in wanted:
            found[f"{node.target}.weight"] = (node, InputMoments(layer, cache))
    return found
