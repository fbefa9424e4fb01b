"""What widths cost: mean bits a value, bytes of weights, bit operations of an image; as budgets of an integer program.
Which widths are best under them is quantization/precision_program.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import TRANSPOSED, Layer, label, layer_nodes, tensor_inputs
from pytorch_quantizer.graph.place import producers
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.precision_program import Budget

FLOAT_BITS, FLOAT_BYTES = 32, 4
GIGA = 1e9


class Operations(NamedTuple):
    """A layer's call: multiplications of one image, the names of its weight's site and of that of the tensor it reads.

    tensor: "" where that has no site.
    """

    multiplications: int
    weight: str
    tensor: str


def mean_bits(
    name: str, places: Mapping[str, int], sizes: Mapping[str, int], widths: Sequence[int], limit: float
) -> Budget:
    """Σ n·M <= limit over the tensors of ``places`` (its row of the program by name), n values each (``sizes``)."""
    single = [(place, [float(sizes[tensor] * width) for width in widths]) for tensor, place in places.items()]
    return Budget(name, limit, single)


def weight_bytes(
    graph: fx.GraphModule, sites: Sequence[Site], places: Mapping[str, int], widths: Sequence[int], asked: float
) -> Budget:
    """Bytes of all weights' codes, scales and zero points; asked: that or, at most 1, the share of float32 weights'."""
    weights = [site for site in sites if site.kind == "weight"]
    counts = {site.name: graph.get_parameter(site.node).numel() for site in weights}
    whole = None if asked > 1 else float(FLOAT_BYTES * sum(counts.values()))
    single, fixed = [], 0.0
    for site in weights:
        grid = 0.0 if site.quantizer is None else float(_grid_bytes(graph, site))
        if site.name in places:
            single.append((places[site.name], [grid + -(-counts[site.name] * width // 8) for width in widths]))
        else:
            bits = FLOAT_BITS if site.quantizer is None else site.quantizer.bits
            fixed += grid + -(-counts[site.name] * bits // 8)
    unit = "bytes of all weights" if whole is None else "share (and bytes) of all float32 weights"
    return Budget(f"mixed_precision_size, in {unit},", asked * (whole or 1.0), single, fixed=fixed, whole=whole)


def bit_operations(
    graph: fx.GraphModule, sites: Sequence[Site], places: Mapping[str, int], widths: Sequence[int], asked: float
) -> Budget:
    """Σ MACs·b_w·b_a <= asked·10⁹ over the layers' calls of one image; what stays in float counts 32 bits."""
    bits = {site.name: FLOAT_BITS if site.quantizer is None else site.quantizer.bits for site in sites}
    each = np.array(widths, dtype=np.float64) / GIGA
    single: list[tuple[int, list[float]]] = []
    pairs, fixed = [], 0.0
    for count, weight, tensor in list_operations(graph, sites):
        free = [places[name] for name in (weight, tensor) if name in places]
        held = math.prod(bits.get(name, FLOAT_BITS) for name in (weight, tensor) if name not in places)
        if len(free) == 2:
            pairs.append((free[0], free[1], count * np.outer(each, each) * GIGA))
        elif free:
            single.append((free[0], (count * held * each).tolist()))
        else:
            fixed += count * held / GIGA
    return Budget("mixed_precision_bit_operations, in billions,", asked, single, pairs, fixed)


def list_operations(graph: fx.GraphModule, sites: Sequence[Site]) -> Iterator[Operations]:
    """Every call of a convolution or linear layer. Raises InputError where no image told the tensors' shapes."""
    weights = {site.node: site.name for site in sites if site.kind == "weight"}
    tensors = {(site.node, reader): site.name for site in sites if site.is_activation for reader in site.consumers}
    for node, layer in layer_nodes(graph):
        sources = [(source.name, label(node)) for source in producers(graph, tensor_inputs(node)[0])]
        found = [tensors[source] for source in sources if source in tensors]
        yield Operations(_multiplications(node, layer), weights[f"{node.target}.weight"], found[0] if found else "")


def _multiplications(node: fx.Node, layer: Layer) -> int:
    """Of one image: each output of a convolution or linear layer takes one an input; each input of a transposed one."""
    of = tensor_inputs(node)[0] if isinstance(layer, TRANSPOSED) else node
    shape = of.meta.get("shape")
    if shape is None:
        raise InputError(
            "mixed_precision_bit_operations: how large the tensors are isn't known without images: give calibration="
        )
    channels = -1 if isinstance(layer, nn.Linear) else 1
    places = math.prod(size for dim, size in enumerate(shape) if dim not in (0, channels % len(shape)))
    return places * layer.weight.numel()


def _grid_bytes(graph: fx.GraphModule, site: Site) -> int:
    """What a file holds of an integer weight's grid: a scale a channel, and a zero point where it is affine."""
    quantizer = site.quantizer
    axis = getattr(quantizer, "axis", None)
    channels = 1 if axis is None else graph.get_parameter(site.node).shape[axis]
    return 4 * channels * (1 if getattr(quantizer, "symmetric", True) else 2)
