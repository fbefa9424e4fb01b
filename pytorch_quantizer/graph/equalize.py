"""Cross-layer equalization: the ranges of neighbouring layers' weights evened out, channel by channel, in float.
The network computes what it did. Nothing is quantized or measured here.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.channels import averages_places, by_groups, flattened_places, from_groups, value_readers
from pytorch_quantizer.graph.names import free_name
from pytorch_quantizer.graph.operations import (
    CHANNEL_KEEPING,
    Layer,
    is_relu,
    label,
    layer_nodes,
    layer_of,
    module_of,
    operation,
    relu_ceiling,
    tensor_inputs,
)
from pytorch_quantizer.quantization.bias_correction import Moments

TOLERANCE = 1e-3  # of the ranges, relative: far below what a grid can tell
MOST_SWEEPS = 200
HOMOGENEOUS = {  # of one value: f(s·x) = s·f(x) for s > 0
    *(nn.Identity, nn.Dropout, F.dropout, nn.LeakyReLU, F.leaky_relu, nn.PReLU),
    *(torch.clone, "clone", "contiguous", "detach"),
}
PADDINGS = {nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad2d}


def equalize(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[str]]:
    """A copy of a folded graph with its layers' weights equalized, and the pairs of layers, "conv1 → conv2".

    Nagel et al. (2019), section 4.1: with r1_c = max|w| of the first layer's output channel c and r2_c of the second's
    input channel c, s_c = √(r1_c·r2_c) / r2_c; w1_c ← w1_c / s_c, b1_c ← b1_c / s_c, w2_c ← w2_c·s_c. Then r1_c = r2_c.
    Exact where all between the layers is positively homogeneous: ReLU, max and average pooling, padding, flattening.
    A ReLU that saturates at 6 gets the ceiling 6 / s_c a channel (ChannelClippedReLU). A layer that is called more
    than once, or whose output several read, is left out; so is a channel whose r1 or r2 is 0. Chains are gone through
    until every pair is within TOLERANCE. What ``meta["normal"]`` tells of a layer's outputs (fold.py) follows.
    """
    graph = copy.deepcopy(graph)
    seams = _find_seams(graph)
    weights = _weights(graph, seams)
    _settle(seams, weights)
    for weight in weights.values():
        weight.apply()
    for seam in seams:
        _follow(graph, seam, weights[seam.first].divisor)
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return graph, [f"{label(seam.first)} → {label(seam.second)}" for seam in seams]


class _Saturating(NamedTuple):
    """A ReLU with a ceiling between two layers; places: how many of its features, flattened, belong to a channel."""

    node: fx.Node
    places: int


class _Seam(NamedTuple):
    """Two layers' calls and the saturating ReLUs between them; axis: of the channels in what lies between."""

    first: fx.Node
    second: fx.Node
    saturating: tuple[_Saturating, ...]
    axis: int


class _Weight:
    """A layer's weight seen as max|w| between each output and input channel, and what these are to be scaled by.

    magnitude: [groups, outputs of a group, inputs of a group]. factor: float64 [C_in]. divisor: float64 [C_out].
    """

    def __init__(self, layer: Layer, inputs: int | None) -> None:
        self.layer, self.inputs = layer, inputs
        self.magnitude = by_groups(layer, layer.weight.detach().abs(), inputs).amax(3)
        groups, outputs, own_inputs = self.magnitude.shape
        self.factor = self.magnitude.new_ones(groups * own_inputs, dtype=torch.float64)
        self.divisor = self.magnitude.new_ones(groups * outputs, dtype=torch.float64)

    def output_ranges(self) -> Tensor:
        """max|w| of each output channel as scaled by now, [C_out]."""
        return (self.magnitude * self._by_input().to(self.magnitude.dtype)).amax(2).flatten() / self.divisor

    def input_ranges(self) -> Tensor:
        """max|w| of each input channel as scaled by now, [C_in]."""
        return (self.magnitude * self._by_output().reciprocal().to(self.magnitude.dtype)).amax(
            1
        ).flatten() * self.factor

    @torch.no_grad()
    def apply(self) -> None:
        """Scale the layer's weight and bias in place; float64, rounded once."""
        layer = self.layer
        grouped = by_groups(layer, layer.weight.double(), self.inputs)
        scaled = grouped * self._by_input().unsqueeze(3) / self._by_output().unsqueeze(3)
        # New parameters: the old ones may be tied to another layer's.
        weight = from_groups(layer, scaled).to(layer.weight.dtype).contiguous()
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        if layer.bias is not None:
            bias = (layer.bias.double() / self.divisor).to(layer.bias.dtype)
            layer.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)

    def _by_input(self) -> Tensor:
        return self.factor.reshape(self.magnitude.shape[0], 1, -1)

    def _by_output(self) -> Tensor:
        return self.divisor.reshape(self.magnitude.shape[0], -1, 1)


def _find_seams(graph: fx.GraphModule) -> list[_Seam]:
    """In the order of execution."""
    calls = Counter(id(layer) for _, layer in layer_nodes(graph))
    read = {str(node.target).rpartition(".")[0] for node in graph.graph.nodes if node.op == "get_attr"}
    free = {node for node, layer in layer_nodes(graph) if calls[id(layer)] == 1 and str(node.target) not in read}
    found = (_seam_behind(graph, node) for node, _ in layer_nodes(graph) if node in free)
    return [seam for seam in found if seam is not None and seam.second in free]


def _seam_behind(graph: fx.GraphModule, first: fx.Node) -> _Seam | None:
    """Follow a layer's output to the layer that alone reads it; None where anything between isn't homogeneous."""
    is_features = isinstance(layer_of(graph, first), nn.Linear)  # [N, …, C], else channels of places, [N, C, …]
    axis, places = -1 if is_features else 1, 1
    saturating: list[_Saturating] = []
    node = _only_reader(first)
    while node is not None:
        second = layer_of(graph, node)
        if second is not None:
            fits = isinstance(second, nn.Linear) == is_features
            return _Seam(first, node, tuple(saturating), axis) if fits else None
        if not is_features and flattened_places(graph, node):
            is_features, places = True, flattened_places(graph, node) or 1
        elif not _is_homogeneous(graph, node, of_places=not is_features):
            return None
        elif averages_places(graph, node) and len(node.meta.get("shape") or ()) == 2:
            is_features = True
        elif is_relu(graph, node) and relu_ceiling(graph, node) is not None:
            saturating.append(_Saturating(node, places))
        node = _only_reader(node)
    return None


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The node that alone reads another's values, and reads nothing else."""
    readers = value_readers(node)
    return readers[0] if len(readers) == 1 and len(tensor_inputs(readers[0])) == 1 else None


def _is_homogeneous(graph: fx.GraphModule, node: fx.Node, *, of_places: bool) -> bool:
    """Whether f(s·x) = s·f(x) for s > 0, in each channel by itself; of_places: of operations on [N, C, …] too."""
    called = operation(graph, node)
    if is_relu(graph, node) or called in HOMOGENEOUS:
        return True
    return of_places and (called in CHANNEL_KEEPING | PADDINGS or averages_places(graph, node))


def _weights(graph: fx.GraphModule, seams: Iterable[_Seam]) -> dict[fx.Node, _Weight]:
    seams = list(seams)
    channels = {seam.second: _outputs(layer_of(graph, seam.first)) for seam in seams}
    nodes = dict.fromkeys(chain.from_iterable((seam.first, seam.second) for seam in seams))
    return {node: _Weight(_layer(graph, node), channels.get(node)) for node in nodes}


def _layer(graph: fx.GraphModule, node: fx.Node) -> Layer:
    layer = layer_of(graph, node)
    assert layer is not None
    return layer


def _outputs(layer: Layer | None) -> int:
    assert layer is not None
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _settle(seams: list[_Seam], weights: dict[fx.Node, _Weight]) -> None:
    """Equalize pair after pair until none moves any more."""
    coupling = _coupling(seams)
    for _ in range(MOST_SWEEPS if seams else 0):
        _level(seams, weights, coupling)
        if max(_equalize_pair(weights[seam.first], weights[seam.second]) for seam in seams) <= TOLERANCE:
            return


def _coupling(seams: list[_Seam]) -> Tensor:
    """[K, K]: by how much log(r1 / r2) of each pair falls when all scales of a pair grow by a factor e."""
    coupling = 2 * torch.eye(len(seams), dtype=torch.float64)
    for row, seam in enumerate(seams):
        for column, other in enumerate(seams):
            coupling[row, column] -= float(seam.first is other.second) + float(seam.second is other.first)
    return coupling


def _level(seams: list[_Seam], weights: dict[fx.Node, _Weight], coupling: Tensor) -> None:
    """Give each pair one more scale for all its channels, so that on average the ranges of every pair agree at once.

    Pair by pair, a difference between whole layers would wander along a chain of n layers for n² sweeps.
    """
    ratios = [_log_ratio(weights[seam.first], weights[seam.second]) for seam in seams]
    means = torch.stack([ratio.nanmean() for ratio in ratios]).nan_to_num(0).cpu()
    for seam, ratio, step in zip(seams, ratios, torch.linalg.solve(coupling, means).tolist(), strict=True):
        _scale(weights[seam.first], weights[seam.second], torch.where(ratio.isnan(), 0.0, step))


def _equalize_pair(first: _Weight, second: _Weight) -> float:
    """Even out one pair's ranges; by how much they differed, as the largest |log(r1 / r2)|."""
    ratio = _log_ratio(first, second).nan_to_num(0)
    _scale(first, second, ratio / 2)
    return float(ratio.abs().max())


def _log_ratio(first: _Weight, second: _Weight) -> Tensor:
    """log(r1 / r2) of each channel, float64 [C]; NaN where one of them is 0: such a channel is never scaled."""
    r1, r2 = first.output_ranges(), second.input_ranges()
    usable = (r1 > 0) & (r2 > 0)
    return torch.where(usable, r1.log() - r2.log(), torch.nan)


def _scale(first: _Weight, second: _Weight, log_scale: Tensor) -> None:
    first.divisor *= log_scale.exp()
    second.factor *= log_scale.exp()


def _follow(graph: fx.GraphModule, seam: _Seam, divisor: Tensor) -> None:
    """Divide what is known of the tensors between two layers by their scales: ceilings and the norm's moments."""
    normal = seam.first.meta.get("normal")
    if normal is not None:
        seam.first.meta["normal"] = Moments(*(moment / divisor for moment in normal))
    dtype = _layer(graph, seam.first).weight.dtype
    for node, places in seam.saturating:
        ceiling = _ceiling(graph, node) / divisor.repeat_interleave(places)
        _replace_relu(graph, node, ChannelClippedReLU(ceiling.to(dtype), seam.axis))


def _ceiling(graph: fx.GraphModule, node: fx.Node) -> Tensor | float:
    """Where a saturating ReLU does: in all channels, or [C], in each, after an equalization before this one."""
    relu = module_of(graph, node)
    return relu.ceiling.double() if isinstance(relu, ChannelClippedReLU) else relu_ceiling(graph, node) or 0.0


def _replace_relu(graph: fx.GraphModule, node: fx.Node, relu: ChannelClippedReLU) -> None:
    """Let a saturating ReLU's node call another one instead."""
    name = free_name(graph, f"{node.name}_clipped")
    graph.add_submodule(name, relu)
    with graph.graph.inserting_before(node):
        clipped = graph.graph.call_module(name, (tensor_inputs(node)[0],))
    clipped.meta = dict(node.meta)
    node.replace_all_uses_with(clipped)
    graph.graph.erase_node(node)
