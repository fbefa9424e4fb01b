"""How much memory each stage of quantize() takes beside evaluating the float network, from shapes; and the limit that
this is held to. Factors are measured peaks (benchmarks/reconstruction_limits.py), rounded up.
"""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import fx, nn

from pytorch_quantizer.calibration.sampled_windows import weight_rows
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.blocks import Block
from pytorch_quantizer.graph.branches import quantizer_of
from pytorch_quantizer.graph.operations import Layer, layer_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.second_order_rounding import ROWS_AT_ONCE, SHARES

FLOAT_BYTES, DOUBLE_BYTES = 4, 8
BESIDE = 48 * 2**20  # what torch takes for itself
FREED = 16 * 2**20  # what can't be given back, of what stages before learning have freed
NETWORKS = 2  # the folded float network and the simulated one, beside the user's own
AT_ONCE = 3  # tensors of each node in training: its value, what a backward pass keeps beside it, its gradient
OF_A_QUANTIZER = 2  # more: the mask, and what is dropped
OF_A_WEIGHT = 26  # tensors of a weight's size: soft weight, share, logit, their gradients, Adam's moments …
COPIES = 6  # of the network while it is tuned: what learns, the best of it, a trial, and weights as they run
OF_AN_IMAGE = 12  # tensors of the largest size while activations, batch norms or weights are corrected: 8.3 to 11.2
OF_A_ROUNDED_IMAGE = 7  # the same while weights are rounded by second moments: 6.1
MATRICES, TRIED, WINDOWS = 11, 6, 4  # of second moments, of the rows that a search tries, of windows: while rounding
OBSERVED = 3  # of windows, while second moments are measured
JUDGED = 8  # of a weight, while a range is judged by its outputs
VALUES_OF_A_TRIAL = 2  # of each node, while it is measured what widths cost: the float network's, a trial's


@dataclass(frozen=True)
class MemoryLimit:
    """bytes: what learning, and what is done before it, may take; None: any number."""

    bytes: int | None = None

    def require(self, needed: int, what: str, remedy: str) -> None:
        """Raise InputError where ``what`` takes more than the limit."""
        if self.bytes is not None and needed > self.bytes:
            raise InputError(
                f"max_memory must be at least {-(-needed // 2**20)} MiB, which {what} takes, "
                f"got {self.bytes / 2**20:.0f} MiB; {remedy}"
            )


UNLIMITED_MEMORY = MemoryLimit()


def release_memory(*, cycles: bool = False) -> None:
    """Give back to the system what this process has freed, of which glibc keeps much. Elsewhere this does nothing.

    cycles: free first what refers to itself, as graphs do; that takes some tenths of a second.
    """
    if cycles:
        gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def networks_bytes(network: nn.Module, copies: int = NETWORKS) -> int:
    """Bytes of a network's parameters, as often as it is held."""
    return copies * FLOAT_BYTES * sum(parameter.numel() for parameter in network.parameters())


def block_bytes(model: QuantizedModel, block: Block, batch: int) -> int:
    """Bytes that training a block on batches of this size takes at most, its images' cache not counted."""
    values = _trained_values(model, [*block.inputs, *block.path])
    layers = [layer_of(model, node) for node in block.layers]
    weights = sum(layer.weight.numel() for layer in layers if layer is not None)
    return BESIDE + networks_bytes(model) + FLOAT_BYTES * (batch * values + OF_A_WEIGHT * weights)


def largest_need(model: QuantizedModel, blocks: Sequence[Block], batch: int) -> tuple[int, str]:
    """(bytes, name) of the block that takes most. Raises ValueError where there is no block."""
    return max((block_bytes(model, block, batch), block.name) for block in blocks)


def tuning_bytes(model: QuantizedModel, batch: int) -> int:
    """Bytes that training scales, biases and steps of the whole network takes at most, images in files not counted."""
    return BESIDE + networks_bytes(model, COPIES) + FLOAT_BYTES * batch * _trained_values(model, model.graph.nodes)


def correction_bytes(graph: fx.GraphModule, images: int, *, walks: bool, rounded: int = 0) -> int:
    """Bytes that corrections on so many images take at most. walks: activations, batch norms or weights are corrected.
    rounded: what ``rounding_bytes`` tells.
    """
    return BESIDE + FREED + networks_bytes(graph) + rounded + images * image_bytes(graph, walks=walks)


def image_bytes(graph: fx.GraphModule, *, walks: bool) -> int:
    """What corrections take for each image."""
    return (OF_AN_IMAGE if walks else OF_A_ROUNDED_IMAGE) * FLOAT_BYTES * largest_size(graph)


def rounding_bytes(layer: Layer, rows: int) -> int:
    """Bytes that choosing a layer's codes by second moments takes, of batches that give ``rows`` windows each."""
    groups, outputs, inputs = weight_rows(layer, layer.weight).shape
    tried = outputs * max(1, min(len(SHARES), ROWS_AT_ONCE // outputs))
    doubles = MATRICES * inputs**2 + TRIED * tried * inputs
    return groups * (DOUBLE_BYTES * doubles + FLOAT_BYTES * WINDOWS * rows * inputs)


def moments_bytes(graph: fx.GraphModule, layer: Layer, rows: int) -> int:
    """Bytes that measuring second moments of what a layer reads, and choosing its range by them, takes at most.

    rows: windows of a batch that are looked at. What has been summed up lies in files.
    """
    groups, outputs, inputs = weight_rows(layer, layer.weight).shape
    seen = FLOAT_BYTES * (OBSERVED * rows * inputs + inputs**2)
    judged = DOUBLE_BYTES * 3 * inputs**2 + FLOAT_BYTES * (inputs**2 + JUDGED * outputs * inputs)
    return BESIDE + FREED + networks_bytes(graph, 1) + groups * max(seen, judged)


def width_bytes(graph: fx.GraphModule, images: int, widths: int) -> int:
    """Bytes that measuring what widths cost takes at most: each weight at each, every value of a batch of images."""
    values = VALUES_OF_A_TRIAL * images * sum(map(_size, graph.graph.nodes))
    return BESIDE + FREED + networks_bytes(graph, 1 + widths) + FLOAT_BYTES * values


def largest_size(graph: fx.GraphModule) -> int:
    """The number of values of the largest tensor, for one image."""
    return max(map(_size, graph.graph.nodes))


def _size(node: fx.Node) -> int:
    """The number of values of a node for one image."""
    return math.prod((node.meta.get("shape") or ())[1:])


def _trained_values(model: QuantizedModel, nodes: Iterable[fx.Node]) -> int:
    """How many numbers of each image a training step through these nodes holds."""
    values = 0
    for node in nodes:
        more = OF_A_QUANTIZER if quantizer_of(model, node) is not None else 0
        values += (AT_ONCE + more) * _size(node)
    return values
