"""How much memory each stage of quantize() takes beside evaluating the float network, from shapes; and the limit that
this is held to. Factors are measured peaks (benchmarks/reconstruction_limits.py), rounded up.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, fx, nn

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
TRAINED = 3  # tensors of each node in training: its value, what a backward pass keeps beside it, its gradient
OF_A_QUANTIZER = 2  # more: the mask, and what is dropped
OF_A_WEIGHT = 26  # tensors of a weight's size: soft weight, share, logit, their gradients, Adam's moments …
COPIES = 6  # of the network while it is tuned: what learns, the best of it, a trial, and weights as they run
LEARNED_COPIES = 4  # more, where weights learn: their float values, gradients, Adam's moments
MATRICES = 11  # of second moments, in float64, while weights are rounded by them
TRIED = 6  # tensors of all rows that a search tries at once, in float64, meanwhile
WINDOWS = 4  # of the windows that a layer sees of a batch, meanwhile
OBSERVED = 3  # of these windows, while second moments are measured
SUMMED = 3  # of second moments, in float64, while a range is chosen by them
JUDGED = 8  # of a weight, while a range is judged by its outputs
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's numbers of its settings
LEAST_MAPPED, MOST_MAPPED = 2**17, 2**25  # what it begins with, and the most that it comes to by itself
MAPPED_SHARE = 64
THRESHOLDS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # a user's own, and in GLIBC_TUNABLES
TUNED_THRESHOLDS = ("glibc.malloc.mmap_threshold=", "glibc.malloc.trim_threshold=")
GRAPH_BYTES = 6 * 2**10  # of each node of a graph and the module that it calls, without tensors: 4.5
VALUES_OF_A_TRIAL = 2  # of each node, while it is measured what widths cost: the float network's, a trial's


class Need(NamedTuple):
    """bytes: what a stage takes at most. what: which, as the subject of an error. remedy: what takes less, or ""."""

    bytes: int
    what: str
    remedy: str


@dataclass(frozen=True)
class MemoryLimit:
    """bytes: what learning, and what is done before it, may take; None: any number."""

    bytes: int | None = None

    def holds(self, *needs: Need) -> bool:
        """Whether each of these needs keeps to it."""
        return self.bytes is None or all(need.bytes <= self.bytes for need in needs)

    def require(self, *needs: Need) -> None:
        """Raise InputError where these needs exceed the limit: the largest of them, and the remedy of each."""
        if self.bytes is None:
            return
        limit = self.bytes
        exceeding = sorted((need for need in needs if need.bytes > limit), key=lambda need: need.bytes, reverse=True)
        if exceeding:
            remedies = dict.fromkeys(need.remedy for need in exceeding if need.remedy)
            raise InputError(
                f"max_memory must be at least {-(-exceeding[0].bytes // 2**20)} MiB, which {exceeding[0].what} takes, "
                f"got {'; '.join([_shown(limit), *remedies])}"
            )


UNLIMITED_MEMORY = MemoryLimit()


def release_memory(*, cycles: bool = False) -> None:
    """Give back to the system what this process has freed, of which glibc keeps much. Elsewhere this does nothing.

    cycles: free first what refers to itself, as graphs do; that takes some tenths of a second.
    """
    if cycles:
        gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def large_tensors_given_back(limit: int | None) -> Iterator[None]:
    """Have glibc give the memory of tensors above a MAPPED_SHARE of the limit back to the system once they are freed.

    By itself it comes to keep tensors of up to 32 MiB, in whose gaps others don't fit: several times what is in use.
    Smaller ones stay with it, as what is given back takes time to get again. Afterwards both thresholds are fixed at
    these 32 MiB: glibc adapts them no more in this process. Elsewhere, without a limit, and where the environment sets
    a threshold, nothing.
    """
    if limit is None or _thresholds_are_set():
        yield
        return
    _keep_freed_below(min(max(limit // MAPPED_SHARE, LEAST_MAPPED), MOST_MAPPED))
    try:
        yield
    finally:
        _keep_freed_below(MOST_MAPPED)


def _thresholds_are_set() -> bool:
    """Whether the user has chosen what glibc keeps of freed memory: a setting ends its own adapting too."""
    tunables = os.environ.get("GLIBC_TUNABLES", "").split(":")
    return any(name in os.environ for name in THRESHOLDS) or any(one.startswith(TUNED_THRESHOLDS) for one in tunables)


def _keep_freed_below(size: int) -> None:
    with suppress(OSError, AttributeError, TypeError):
        malloc = ctypes.CDLL(None)
        for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            malloc.mallopt(setting, size)


def networks_bytes(network: nn.Module, copies: int = NETWORKS) -> int:
    """Bytes of a network's parameters, as often as it is held."""
    return copies * FLOAT_BYTES * sum(parameter.numel() for parameter in network.parameters())


def block_bytes(model: QuantizedModel, block: Block, batch: int) -> int:
    """Bytes that training a block on batches of this size takes at most, its images' cache not counted."""
    values = _trained_values(model, [*block.inputs, *block.path])
    layers = [layer_of(model, node) for node in block.layers]
    weights = sum(layer.weight.numel() for layer in layers if layer is not None)
    return BESIDE + networks_bytes(model) + FLOAT_BYTES * (batch * values + OF_A_WEIGHT * weights)


def largest_need(model: QuantizedModel, blocks: Sequence[Block], batch: int) -> Need:
    """That of the block that takes most. Raises ValueError where there is no block."""
    needed, name = max((block_bytes(model, block, batch), block.name) for block in blocks)
    return Need(needed, f"learning the block {name}", smaller("reconstruction_batch", batch))


def smaller(name: str, batch: int) -> str:
    """The remedy of what grows with a batch, the recipe's field ``name``; none of a single image."""
    return f"a recipe with a smaller {name} takes less" if batch > 1 else ""


def _shown(limit: int) -> str:
    return f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit} bytes"


def tuning_bytes(model: QuantizedModel, batch: int, *, weights: bool) -> int:
    """Bytes that tuning takes at most, images in files not counted. weights: whether they learn, too."""
    copies = COPIES + LEARNED_COPIES * weights
    return BESIDE + networks_bytes(model, copies) + FLOAT_BYTES * batch * _trained_values(model, model.graph.nodes)


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
    judged = DOUBLE_BYTES * SUMMED * inputs**2 + FLOAT_BYTES * (inputs**2 + JUDGED * outputs * inputs)
    return BESIDE + FREED + networks_bytes(graph, 1) + groups * max(seen, judged)


def width_bytes(graph: fx.GraphModule, batches: Sequence[Tensor], widths: int, graphs: int) -> int:
    """Bytes that measuring what widths cost on these images takes at most.

    Each weight at each width, so many graphs at a time, every value of a batch, and the images.
    """
    values = VALUES_OF_A_TRIAL * max(map(len, batches)) * sum(map(size_of, graph.graph.nodes))
    beside = graphs * GRAPH_BYTES * len(graph.graph.nodes) + sum(images.nbytes for images in batches)
    return BESIDE + FREED + networks_bytes(graph, 1 + widths) + beside + FLOAT_BYTES * values


def size_of(node: fx.Node) -> int:
    """The number of values of a node for one image."""
    return math.prod((node.meta.get("shape") or ())[1:])


def _trained_values(model: QuantizedModel, nodes: Iterable[fx.Node]) -> int:
    """How many numbers of each image a training step through these nodes holds."""
    values = 0
    for node in nodes:
        more = OF_A_QUANTIZER if quantizer_of(model, node) is not None else 0
        values += (TRAINED + more) * size_of(node)
    return values
