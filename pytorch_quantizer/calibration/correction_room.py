"""For how many images corrections keep tensors: as many as memory, and a limit of it, have room for.
What corrections do with them is corrections.py's business.
"""

from __future__ import annotations

import warnings

import torch
from torch import fx

from pytorch_quantizer.calibration.corrections import list_corrections
from pytorch_quantizer.calibration.memory import (
    UNLIMITED_MEMORY,
    MemoryLimit,
    correction_bytes,
    largest_size,
    rounding_bytes,
)
from pytorch_quantizer.calibration.second_order import has_few_inputs, windows_seen
from pytorch_quantizer.environment import free_memory
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import layer_nodes
from pytorch_quantizer.quantization.recipe import Recipe

TENSORS_AT_ONCE = 6  # of the largest size, that correcting holds of each image: 4.1 (ResNet-18) to 5.0 (SqueezeNet)
CORRECTION_BYTES = 8 * 2**30


class CorrectionRoom:
    """For how many images a correction may keep tensors, and for how many this machine could."""

    def __init__(
        self, graph: fx.GraphModule, device: torch.device, recipe: Recipe, limit: MemoryLimit = UNLIMITED_MEMORY
    ) -> None:
        self.graph, self.limit, self.wanted = graph, limit, recipe.correction_images
        steps = [step.name for step in list_corrections(recipe) if step.needs_images]
        self._rounds, self._walks = "weight_rounding" in steps, bool({*steps} - {"weight_rounding"})
        self._rounded = [(node, layer) for node, layer in layer_nodes(graph) if has_few_inputs(layer)]
        self.image_bytes = TENSORS_AT_ONCE * largest_size(graph) * torch.float32.itemsize
        self.most = max(1, CORRECTION_BYTES // self.image_bytes)
        self.free = free_memory(device)
        self._has_warned = False

    def granted(self, kept: int, more: int) -> int:
        """How many more images may be kept, of a batch. Raises InputError where they find no room."""
        given = min(more, self.most - kept)
        if given < more and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"correction_images: {self.most} are used, which take 8 GiB of memory", stacklevel=4)
        if given:
            self._keep_to_limit(kept + given, given)
        needed = (kept + given) * self.image_bytes
        if needed > self.free:
            raise InputError(
                f"correcting on {kept + given} images takes about {needed / 2**30:.1f} GiB and {self.free / 2**30:.1f} "
                f"are free: set correction_images to {self.free // self.image_bytes} or fewer"
            )
        return given

    def _keep_to_limit(self, images: int, batch: int) -> None:
        """Hold what correcting on all images that are wanted takes to the limit, once those that are kept exceed it."""
        if self.limit.bytes is None or self._bytes(images, batch) <= self.limit.bytes:
            return
        wanted = min(self.wanted, self.most)
        beside = self._bytes(0, batch)
        fitting = (self.limit.bytes - beside) // (self._bytes(1, batch) - beside)
        remedy = f"set correction_images to {fitting} or fewer" if fitting > 0 else "without corrections it is less"
        self.limit.require(self._bytes(wanted, batch), f"correcting on {wanted} images", remedy)

    def _bytes(self, images: int, batch: int) -> int:
        rounded = 0
        if self._rounds:
            of_all = min(self.wanted, self.most)
            found = (rounding_bytes(layer, windows_seen(node, layer, batch, of_all)) for node, layer in self._rounded)
            rounded = max(found, default=0)
        return correction_bytes(self.graph, images, walks=self._walks, rounded=rounded)
