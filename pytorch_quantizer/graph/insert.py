"""Fitted quantizers put into a folded graph: the simulated model.
Where they go is place.py's decision; nothing is measured here.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from pytorch_quantizer.graph.names import free_name
from pytorch_quantizer.graph.operations import (
    Layer,
    computes_afresh,
    is_tensor,
    keeps_values,
    label,
    layer_nodes,
    tensor_inputs,
)
from pytorch_quantizer.graph.place import FLOAT_ASKED, producers
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import scale_of_outputs
from pytorch_quantizer.graph.share import copy_sharing, own_tensors
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.qtypes import BiasQuantizer, Quantizer
from pytorch_quantizer.quantization.recipe import Recipe

QUANTIZERS = "quantizers"  # the submodule that holds those of activations
BIAS_ROOM = 2**31 - 2**10  # codes that a bias may take: int32's, less the rounding of the float32 scales


def insert(graph: fx.GraphModule, sites: tuple[Site, ...], recipe: Recipe) -> QuantizedModel:
    """A copy of ``graph`` that simulates: weights and biases put on their grids once, activations at each forward.

    sites: as placed, their quantizers fitted. The model's sites are these and one for each bias.
    """
    float_graph, graph = graph, copy_sharing(graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    _make_room_for_biases(graph, sites, recipe)
    for site in sites:
        if site.kind == "weight" and site.quantizer is not None:
            _quantize_weight(graph, site, site.quantizer)
    biases = _quantize_biases(graph, sites, recipe)
    for site in sorted(sites, key=lambda site: not site.is_wide):  # wide ones first: they take additions out
        if site.is_activation and site.quantizer is not None:
            _insert_quantizer(graph, nodes, site, site.quantizer)
        elif site.is_wide:  # left in float for its additions, which must not read the narrow one instead
            _insert_quantizer(graph, nodes, site, nn.Identity())
    own_tensors(graph, float_graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return QuantizedModel(graph, graph.graph, sites=(*sites, *biases), recipe=recipe).eval()


def _quantize_weight(graph: fx.GraphModule, site: Site, quantizer: Quantizer) -> None:
    """Put a layer's weight on its grid, and keep the grid beside it."""
    layer = graph.get_submodule(site.node.removesuffix(".weight"))
    weight = graph.get_parameter(site.node)
    # A new parameter: the old one may be tied to another layer's, which has a grid of its own.
    layer.weight = nn.Parameter(quantizer(weight.detach()), requires_grad=weight.requires_grad)
    layer.add_module("weight_quantizer", quantizer)


def _make_room_for_biases(graph: fx.GraphModule, sites: tuple[Site, ...], recipe: Recipe) -> None:
    """Raise a weight's scale where int32 codes of s_x·s_w could not hold the layer's bias, which would be cut off.

    That happens to channels of tiny weights (a batch norm's small γ folded in) and to 16-bit types; what such a channel
    loses is far below its bias. TensorFlow Lite does the same.
    """
    calls = _calls(graph)
    for node, layer in layer_nodes(graph):
        input_scale = _input_scale(graph, node, sites)
        weight = next(s.quantizer for s in sites if s.node == f"{node.target}.weight")
        obstacle = _bias_obstacle(recipe, input_scale, weight, calls[str(node.target)])
        if layer.bias is None or obstacle is not None or weight is None or input_scale is None:
            continue
        _refine_channels_of_zeros(layer, weight)
        needed = layer.bias.detach().double().abs() / (input_scale.double() * BIAS_ROOM)
        needed = needed.max() if weight.scale.dim() == 0 else needed.reshape(-1, weight.scale.numel()).amax(0)
        weight.scale = torch.maximum(weight.scale, needed.to(weight.scale.dtype))


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


def _quantize_biases(graph: fx.GraphModule, sites: tuple[Site, ...], recipe: Recipe) -> list[Site]:
    calls = _calls(graph)
    biases = {}
    for node, layer in layer_nodes(graph):
        if layer.bias is not None and str(node.target) not in biases:
            biases[str(node.target)] = _quantize_bias(graph, node, layer, sites, recipe, calls[str(node.target)])
    return list(biases.values())


def _calls(graph: fx.GraphModule) -> Counter[str]:
    """How often each layer is called."""
    return Counter(str(node.target) for node, _ in layer_nodes(graph))


def _quantize_bias(
    graph: fx.GraphModule, node: fx.Node, layer: Layer, sites: tuple[Site, ...], recipe: Recipe, calls: int
) -> Site:
    """Put a layer's bias on the grid of its accumulators, where there is one; the site tells."""
    site = Site(f"{label(node)}.bias", "bias", (label(node),), node=f"{node.target}.bias")
    input_scale = _input_scale(graph, node, sites)
    weight = next(s.quantizer for s in sites if s.node == f"{node.target}.weight")
    reason = _bias_obstacle(recipe, input_scale, weight, calls)
    if reason is not None or input_scale is None or weight is None:
        return replace(site, reason=reason)
    quantizer = BiasQuantizer(input_scale, scale_of_outputs(layer, weight))
    bias = graph.get_parameter(site.node)
    layer.bias = nn.Parameter(quantizer(bias.detach()), requires_grad=bias.requires_grad)
    layer.add_module("bias_quantizer", quantizer)
    return replace(site, quantizer=quantizer)


def _bias_obstacle(recipe: Recipe, input_scale: Tensor | None, weight: Quantizer | None, calls: int) -> str | None:
    if recipe.bias == "float32":
        return FLOAT_ASKED
    if calls > 1:
        return f"the layer is called {calls} times, on tensors of different scales"
    if weight is None or input_scale is None or not weight.is_integer:
        return "the layer's weight or input has no integer grid, or several, so its sums have none"
    return None


def _input_scale(graph: fx.GraphModule, node: fx.Node, sites: tuple[Site, ...]) -> Tensor | None:
    """The scale of the tensor that a layer reads, None where it has none or several."""
    sources = {source.name for source in producers(graph, tensor_inputs(node)[0])}
    grids = [s.quantizer for s in sites if s.is_activation and s.node in sources and label(node) in s.consumers]
    if len(sources) != 1 or len(grids) != 1 or grids[0] is None:
        return None
    scale = grids[0].scale
    return scale if grids[0].is_integer and scale is not None and scale.dim() == 0 else None


def _insert_quantizer(graph: fx.GraphModule, nodes: dict[str, fx.Node], site: Site, quantizer: nn.Module) -> None:
    """Let everyone read the site's tensor through the quantizer; through a wide one only the additions it is for."""
    source = nodes[site.node]
    name = f"{QUANTIZERS}." + free_name(graph, re.sub(r"\W", "_", site.name), inside=QUANTIZERS)
    graph.add_submodule(name, quantizer)
    with graph.graph.inserting_after(source):
        quantized = graph.graph.call_module(name, (source,), _observed_by(quantizer, nodes, site))
    quantized.meta = {**source.meta, "label": f"{site.name}:quantized"}
    if site.is_wide:
        for reader in [node for node in graph.graph.nodes if label(node) in site.consumers]:
            through = partial(_reroute, graph, source, quantized, reader)
            reader.args, reader.kwargs = fx.map_arg(reader.args, through), fx.map_arg(reader.kwargs, through)
        return
    twins = {user for user in source.users if user.meta.get("label", "").endswith(":quantized")}
    source.replace_all_uses_with(quantized, delete_user_cb=lambda user: user not in {*twins, quantized})
    if computes_afresh(graph, source) and len(source.users) == 1:
        quantized.kwargs = {**quantized.kwargs, "inplace": True}


def _observed_by(quantizer: nn.Module, nodes: dict[str, fx.Node], site: Site) -> dict[str, Any]:
    """What an online quantizer is to see beside what it quantizes: the ReLU's input, for a ReLU's output."""
    if not isinstance(quantizer, Quantizer) or quantizer.needs_statistics or site.observed == site.node:
        return {}
    return {"observed": nodes[site.observed]}


def _reroute(
    graph: fx.GraphModule, source: fx.Node, replacement: fx.Node, reader: fx.Node, operand: fx.Node
) -> fx.Node:
    """The operand computed from ``replacement``, not ``source``: value-keeping operations between are repeated."""
    if operand is source:
        return replacement
    if not is_tensor(operand) or not keeps_values(graph, operand) or source not in producers(graph, operand):
        return operand
    with graph.graph.inserting_before(reader):
        return graph.graph.node_copy(operand, partial(_reroute, graph, source, replacement, reader))
