"""Fitted quantizers put into a folded graph: the simulated model.
Where they go is place.py's decision; nothing is measured here.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import fx, nn

from pytorch_quantizer.graph.biases import accumulators, make_room, quantize_bias
from pytorch_quantizer.graph.names import free_name
from pytorch_quantizer.graph.operations import (
    is_tensor,
    keeps_values,
    label,
)
from pytorch_quantizer.graph.place import producers
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.share import copy_sharing, own_tensors
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.dynamic_fields import DYNAMIC
from pytorch_quantizer.quantization.qtypes import Quantizer
from pytorch_quantizer.quantization.recipe import Recipe

QUANTIZERS = "quantizers"  # the submodule that holds those of activations


def insert(
    float_graph: fx.GraphModule, sites: tuple[Site, ...], recipe: Recipe, *, inplace: bool = False
) -> QuantizedModel:
    """A copy of the graph that simulates: weights and biases put on their grids once, activations at each forward.

    sites: as placed, their quantizers fitted. The model's sites are these and one for each bias. inplace: take the
    graph's own modules, which are not float any more then; no tensor is written to.
    """
    graph = float_graph if inplace else copy_sharing(float_graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    sums = accumulators(graph, sites, recipe)
    make_room(sums)
    for site in sites:
        if site.kind == "weight" and site.quantizer is not None:
            _quantize_weight(graph, site, site.quantizer)
        elif site.kind == "state" and site.quantizer is not None:
            graph.get_submodule(site.node).add_module("state_quantizer", site.quantizer)
    biases = [quantize_bias(accumulator) for accumulator in sums]
    for site in sorted(sites, key=lambda site: not site.is_wide):  # wide ones first: they take additions out
        if site.is_activation and site.quantizer is not None:
            some = site.is_wide or recipe.statistics == DYNAMIC
            _insert_quantizer(graph, nodes, site, site.quantizer, for_consumers_alone=some)
        elif site.is_wide:  # left in float for its additions, which must not read the narrow one instead
            _insert_quantizer(graph, nodes, site, nn.Identity(), for_consumers_alone=True)
    if not inplace:
        own_tensors(graph, float_graph)
    graph.graph.eliminate_dead_code()
    return QuantizedModel(graph, graph.graph, sites=(*sites, *biases), recipe=recipe).eval()


def _quantize_weight(graph: fx.GraphModule, site: Site, quantizer: Quantizer) -> None:
    """Put a layer's weight on its grid, and keep the grid beside it."""
    layer = graph.get_submodule(site.node.removesuffix(".weight"))
    weight = graph.get_parameter(site.node)
    # A new parameter: the old one may be tied to another layer's, which has a grid of its own.
    layer.weight = nn.Parameter(quantizer(weight.detach()), requires_grad=weight.requires_grad)
    layer.add_module("weight_quantizer", quantizer)


def _insert_quantizer(
    graph: fx.GraphModule, nodes: dict[str, fx.Node], site: Site, quantizer: nn.Module, *, for_consumers_alone: bool
) -> None:
    """Let everyone read the site's tensor through the quantizer, or only the site's consumers."""
    source = nodes[site.node]
    name = f"{QUANTIZERS}." + free_name(graph, re.sub(r"\W", "_", site.name), inside=QUANTIZERS)
    graph.add_submodule(name, quantizer)
    with graph.graph.inserting_after(source):
        quantized = graph.graph.call_module(name, (source,), _observed_by(quantizer, nodes, site))
    quantized.meta = {**source.meta, "label": f"{site.name}:quantized"}
    if for_consumers_alone:
        for reader in [node for node in graph.graph.nodes if label(node) in site.consumers]:
            through = partial(_reroute, graph, source, quantized, reader)
            reader.args, reader.kwargs = fx.map_arg(reader.args, through), fx.map_arg(reader.kwargs, through)
        return
    twins = {user for user in source.users if user.meta.get("label", "").endswith(":quantized")}
    source.replace_all_uses_with(quantized, delete_user_cb=lambda user: user not in {*twins, quantized})


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
