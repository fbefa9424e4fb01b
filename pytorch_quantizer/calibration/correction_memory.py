"""How much memory corrections take, from the shapes of what both networks hold while they are walked side by side.
The walks themselves are corrections.py's and second_order.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    model: the simulated network, graph: the float one. limit: for the number of images in a remedy.
    """
    steps = {step.name for step in list_corrections(model.recipe) if step.needs_images}
    if not steps or not batches:
        return []
    beside = BESIDE + FREED + networks_bytes(model) + sum(images.nbytes for images in batches)
    held = [_walked(model, graph, batches, list_targets(step, model, graph)) for step in steps - {"weight_rounding"}]
    if "weight_rounding" in steps:
        held.append(_rounded(model, graph, batches))
    images = sum(map(len, batches))
    fitting = int(images * ((limit.bytes or 0) - beside) / max(max(held), 1))
    remedy = f"set correction_images to {fitting} or fewer" if fitting > 0 else "without corrections it is less"
    return [Need(beside + max(held), f"correcting on {images} images", remedy)]


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


def _walked(
    model: QuantizedModel, graph: fx.GraphModule, batches: Sequence[Tensor], targets: Mapping[fx.Node, Branches]
) -> int:
    """Bytes held at most while each of these tensors' layers are corrected: see corrections.py."""
    simulated, expected, needed = _Sizes(model), _Sizes(graph), still_needed(model, targets)
    originals = {node.name: node for node in graph.graph.nodes}
    images, batch, most = sum(map(len, batches)), max(map(len, batches)), 0
    for node in _computed(model):
        simulated.step(node)
        if node in targets:
            again = [size_of(other) for other in affected(targets[node])]
            kept = simulated.held + expected.peak_to(originals[node.name]) + ANEW * max(again)
            most = max(most, images * kept + batch * (sum(again) + JUDGED * size_of(node)))
        most = max(most, images * (simulated.held + expected.held))
        simulated.forget(node, needed[node])
    return FLOAT_BYTES * most


def _rounded(model: QuantizedModel, graph: fx.GraphModule, batches: Sequence[Tensor]) -> int:
    """Bytes held at most while codes are chosen by second moments: see second_order.py."""
    targets, simulated, expected = layers_to_round(model), _Sizes(model), _Sizes(graph)
    originals = {node.name: node for node in graph.graph.nodes}
    images, batch, most = sum(map(len, batches)), max(map(len, batches)), 0
    for node in _computed(model):
        if node in targets:
            original = originals[node.name]
            source = original.all_input_nodes[0]
            kept = simulated.held + (expected.peak_to(source) if model.recipe.weight_rounding != "gptq" else 0)
            rows = windows_seen(original, targets[node], batch, images)
            values = images * kept + PADDED * batch * padded_size(targets[node], source.meta["shape"])
            most = max(most, FLOAT_BYTES * values + rounding_bytes(targets[node], rows))
        simulated.step(node)
        most = max(most, FLOAT_BYTES * images * (simulated.held + expected.held))
        simulated.forget(node, set())
    return most


def _computed(model: QuantizedModel) -> list[fx.Node]:
    return [node for node in model.graph.nodes if node.op != "output"]
