"""How much memory corrections take, from the shapes of what both networks hold while they are walked side by side.
The walks themselves are corrections.py's and second_order.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

from torch import Tensor, fx

from pytorch_quantizer.calibration.corrections import list_corrections, list_targets, still_needed
from pytorch_quantizer.calibration.memory import (
    BESIDE,
    FLOAT_BYTES,
    FREED,
    MemoryLimit,
    Need,
    networks_bytes,
    rounding_bytes,
    size_of,
)
from pytorch_quantizer.calibration.sampled_windows import padded_size
from pytorch_quantizer.calibration.second_order import layers_to_round, windows_seen
from pytorch_quantizer.calibration.stepper import Stepper, Values
from pytorch_quantizer.graph.branches import Branches, affected
from pytorch_quantizer.graph.quantized_model import QuantizedModel

ANEW = 2  # more tensors of all images at a target: a layer's output computed once more, and of weights of ones
JUDGED = 4  # tensors of a batch, of the target's size, while its error is measured
PADDED = 2  # tensors of a batch, of what a layer reads with zeros in and around it, while windows of it are taken


def correction_needs(
    model: QuantizedModel, graph: fx.GraphModule, batches: Sequence[Tensor], limit: MemoryLimit
) -> list[Need]:
    """What each correction that the model's recipe asks for takes on these images, of those that need any.

    model: the simulated network, graph: the float one. The remedy is what of it keeps to the limit.
    """
    steps = [step.name for step in list_corrections(model.recipe) if step.needs_images]
    if not steps or not batches:
        return []
    walks = _Walks(model, graph, batches, steps)
    remedy = walks.remedy(math.inf if limit.bytes is None else limit.bytes)
    return [Need(walks.needed(steps, walks.images), f"correcting on {walks.images} images", remedy)]


class _Moment(NamedTuple):
    """What is held at a moment of a walk: values of each image and of each of the largest batch, and what codes take.

    fixed: bytes, window: bytes of each window that is looked at, windows: how many, of batches of a size and of images.
    """

    image: int
    batch: int = 0
    fixed: int = 0
    window: int = 0
    windows: Callable[[int, int], int] | None = None

    def bytes(self, images: int, batch: int) -> int:
        """Of so many images, the largest batch of them so large."""
        windows = 0 if self.windows is None else self.windows(batch, images)
        return FLOAT_BYTES * (images * self.image + batch * self.batch) + self.fixed + self.window * windows


class _Walks:
    """What corrections take, by their fields, on the first of these images, however many."""

    def __init__(
        self, model: QuantizedModel, graph: fx.GraphModule, batches: Sequence[Tensor], steps: Sequence[str]
    ) -> None:
        self.beside = BESIDE + FREED + networks_bytes(model)
        self.moments = {
            step: _rounded(model, graph)
            if step == "weight_rounding"
            else _walked(model, graph, list_targets(step, model, graph))
            for step in steps
        }
        self.taken = _taken(batches)
        self.images = len(self.taken)

    def needed(self, steps: Sequence[str], images: int) -> int:
        """Bytes that these corrections take on so many images."""
        return self.beside + self.taken[images - 1][1] + max(self._held(step, images) for step in steps)

    def remedy(self, limit: float) -> str:
        """The fewest fields to leave out, and the most images then, with which the rest keeps to a limit; maybe none.

        Needs don't fall with every image less: of fewer images more windows each are looked at.
        """
        for count in range(len(self.moments), 0, -1):
            for steps in combinations(self.moments, count):
                images = self._most_images(steps, limit)
                if images:
                    return _advice([step for step in self.moments if step not in steps], images, self.images)
        return _advice([*self.moments], self.images, self.images)

    def _most_images(self, steps: Sequence[str], limit: float) -> int:
        """On how many images these corrections keep to a limit; 0: on none."""
        return next((images for images in range(self.images, 0, -1) if self.needed(steps, images) <= limit), 0)

    def _held(self, step: str, images: int) -> int:
        batch = self.taken[images - 1][0]
        return max((moment.bytes(images, batch) for moment in self.moments[step]), default=0)


def _taken(batches: Sequence[Tensor]) -> list[tuple[int, int]]:
    """For each number of images, the size of the largest batch that they come in, and their bytes."""
    found = [(0, 0)]
    for batch in batches:
        largest, before = found[-1]
        image = batch.nbytes // len(batch)
        found += [(max(largest, count), before + count * image) for count in range(1, len(batch) + 1)]
    return found[1:]


def _advice(left_out: Sequence[str], images: int, of_all: int) -> str:
    parts = [f"leave out {' and '.join(left_out)}"] if left_out else []
    return " and ".join(parts + ([f"set correction_images to {images}"] if images < of_all else []))


class _Sizes(Stepper):
    """A Stepper that computes nothing. peak: the most values of an image held since ``peak_to`` began."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, [])
        self.peak = 0

    def step(self, node: fx.Node) -> Values:
        """Hold a node's values, none in number."""
        found = super().step(node)
        self.peak = max(self.peak, self.held)
        return found

    @property
    def held(self) -> int:
        """How many values of an image are held, the image's own not counted."""
        return sum(size_of(node) for node in self.values if node.op != "placeholder")

    def peak_to(self, node: fx.Node) -> int:
        """The most that is held on the way to a node."""
        self.peak = self.held
        self.run_to(node)
        return self.peak


def _walked(model: QuantizedModel, graph: fx.GraphModule, targets: Mapping[fx.Node, Branches]) -> list[_Moment]:
    """What is held while each of these tensors' layers are corrected: see corrections.py."""
    simulated, expected, needed = _Sizes(model), _Sizes(graph), still_needed(model, targets)
    originals, moments = {node.name: node for node in graph.graph.nodes}, []
    for node in _computed(model):
        simulated.step(node)
        if node in targets:
            again = [size_of(other) for other in affected(targets[node])]
            kept = simulated.held + expected.peak_to(originals[node.name]) + ANEW * max(again)
            moments.append(_Moment(kept, sum(again) + JUDGED * size_of(node)))
        moments.append(_Moment(simulated.held + expected.held))
        simulated.forget(node, needed[node])
    return moments


def _rounded(model: QuantizedModel, graph: fx.GraphModule) -> list[_Moment]:
    """What is held while codes are chosen by second moments: see second_order.py."""
    targets, simulated, expected = layers_to_round(model), _Sizes(model), _Sizes(graph)
    originals, moments = {node.name: node for node in graph.graph.nodes}, []
    for node in _computed(model):
        if node in targets:
            original, layer = originals[node.name], targets[node]
            source = original.all_input_nodes[0]
            kept = simulated.held + (expected.peak_to(source) if model.recipe.weight_rounding != "gptq" else 0)
            padded = PADDED * padded_size(layer, source.meta["shape"])
            fixed, one = (rounding_bytes(layer, windows) for windows in (0, 1))
            windows = partial(windows_seen, original, layer)
            moments.append(_Moment(kept, padded, fixed, one - fixed, windows))
        simulated.step(node)
        moments.append(_Moment(simulated.held + expected.held))
        simulated.forget(node, set())
    return moments


def _computed(model: QuantizedModel) -> list[fx.Node]:
    return [node for node in model.graph.nodes if node.op != "output"]
