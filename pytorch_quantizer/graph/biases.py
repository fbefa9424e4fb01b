"""Biases put on the grids that their layers sum up in, s_x·s_w, where there is one.
The weights' and activations' grids are fitted by then; insert.py puts those into the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pytorch_quantizer.graph.operations import Layer, label, layer_nodes, tensor_inputs
from pytorch_quantizer.graph.place import FLOAT_ASKED, producers
from pytorch_quantizer.graph.rescale import scale_of_outputs
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.qtypes import BiasQuantizer, Quantizer
from pytorch_quantizer.quantization.recipe import Recipe

BIAS_ROOM = 2**31 - 2**10  # codes that a bias may take: int32's, less the rounding of the float32 scales


@dataclass(frozen=True)
class Accumulator:
    """What one layer's sums lie on: the scale of its input and its weight's quantizer, or the obstacle to a grid."""

    node: fx.Node
    layer: Layer
    input_scale: Tensor | None
    weight: Quantizer | None
    obstacle: str | None

    @property
    def grid(self) -> tuple[Tensor, Quantizer] | None:
        """The two, where both are there and nothing stands against a bias on their grid."""
        if self.obstacle is not None or self.input_scale is None or self.weight is None:
            return None
        return self.input_scale, self.weight


def accumulators(graph: fx.GraphModule, sites: tuple[Site, ...], recipe: Recipe) -> list[Accumulator]:
    """One for each layer that has a bias, in the order of their first calls."""
    calls = Counter(str(node.target) for node, _ in layer_nodes(graph))
    weights = {site.node: site.quantizer for site in sites if site.kind == "weight"}
    grids: dict[tuple[str, str], Quantizer | None] = {}
    for site in sites:
        grids |= {(site.node, reader): site.quantizer for reader in site.consumers if site.is_activation}
    found: dict[str, Accumulator] = {}
    for node, layer in layer_nodes(graph):
        name = str(node.target)
        if layer.bias is None or name in found:
            continue
        scale, weight = _input_scale(graph, node, grids), weights[f"{name}.weight"]
        found[name] = Accumulator(node, layer, scale, weight, _obstacle(recipe, scale, weight, calls[name]))
    return list(found.values())


def make_room(found: Iterable[Accumulator]) -> None:
    """Raise a weight's scale where int32 codes of s_x·s_w could not hold the layer's bias, which would be cut off.

    That happens to channels of tiny weights (a batch norm's small γ folded in) and to 16-bit types; what such a channel
    loses is far below its bias. TensorFlow Lite does the same.
    """
    for accumulator in found:
        if accumulator.grid is None:
            continue
        layer, (input_scale, weight) = accumulator.layer, accumulator.grid
        assert layer.bias is not None
        _refine_channels_of_zeros(layer, weight)
        needed = layer.bias.detach().double().abs() / (input_scale.double() * BIAS_ROOM)
        needed = needed.max() if weight.scale.dim() == 0 else needed.reshape(-1, weight.scale.numel()).amax(0)
        weight.scale = torch.maximum(weight.scale, needed.to(weight.scale.dtype))


def quantize_bias(accumulator: Accumulator) -> Site:
    """Put a layer's bias on the grid of its sums, where there is one; the site tells."""
    node, layer = accumulator.node, accumulator.layer
    site = Site(f"{label(node)}.bias", "bias", (label(node),), node=f"{node.target}.bias")
    if accumulator.grid is None:
        return replace(site, reason=accumulator.obstacle)
    input_scale, weight = accumulator.grid
    quantizer, bias = BiasQuantizer(input_scale, scale_of_outputs(layer, weight)), layer.bias
    assert bias is not None
    layer.bias = nn.Parameter(quantizer(bias.detach()), requires_grad=bias.requires_grad)
    layer.add_module("bias_quantizer", quantizer)
    return replace(site, quantizer=quantizer)


@torch.no_grad()
def renew_biases(model: fx.GraphModule, found: Iterable[Accumulator]) -> None:
    """Put the biases of a simulated model on the grids that learned scales have left, in place.

    found: ``accumulators`` of the float graph, under the sites whose quantizers the model runs.
    """
    for accumulator in found:
        layer: Any = model.get_submodule(str(accumulator.node.target))
        quantizer = getattr(layer, "bias_quantizer", None)
        if accumulator.grid is not None and isinstance(quantizer, BiasQuantizer):
            input_scale, weight = accumulator.grid
            quantizer.input_scale = input_scale.float()
            layer.bias.copy_(quantizer.rescale(scale_of_outputs(layer, weight))(layer.bias))


def _refine_channels_of_zeros(layer: Layer, weight: Quantizer) -> None:
    """Give a channel whose weights are all zero the finest scale of the others.

    Its own is 1, that of an empty range, which any would do as well; but its bias lives on a grid of that scale.
    """
    axis = getattr(weight, "axis", None)
    if axis is None or weight.scale.dim() == 0 or not bool((weight.scale == 1).any()):
        return
    quiet = layer.weight.detach().movedim(axis, 0).flatten(1).abs().amax(1) == 0
    if bool(quiet.any()) and not bool(quiet.all()):
        weight.scale = torch.where(quiet, weight.scale[~quiet].min(), weight.scale)


def _obstacle(recipe: Recipe, input_scale: Tensor | None, weight: Quantizer | None, calls: int) -> str | None:
    if recipe.bias == "float32":
        return FLOAT_ASKED
    if calls > 1:
        return f"the layer is called {calls} times, on tensors of different scales"
    if weight is None or input_scale is None or not weight.is_integer:
        return "the layer's weight or input has no integer grid, or several, so its sums have none"
    return None


def _input_scale(
    graph: fx.GraphModule, node: fx.Node, grids: Mapping[tuple[str, str], Quantizer | None]
) -> Tensor | None:
    """The scale of the tensor that a layer reads, None where it has none or several.

    grids: by name of a tensor's node and label of who reads it.
    """
    sources = {source.name for source in producers(graph, tensor_inputs(node)[0])}
    found = [grids[source, label(node)] for source in sources if (source, label(node)) in grids]
    if len(sources) != 1 or len(found) != 1 or found[0] is None:
        return None
    scale: Tensor | None = found[0].scale
    return scale if found[0].is_integer and scale is not None and scale.dim() == 0 else None
