"""Which layers decide the channels of a tensor: found by walking back through ReLUs, additions and poolings.
What is done to those layers (bias correction, batch norms measured again) is calibration/'s business.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import fx, nn

from pytorch_quantizer.graph.operations import (
    SUBTRACTIONS,
    is_addition,
    is_channelwise,
    is_collection,
    is_concatenation,
    layer_nodes,
    layer_of,
    module_of,
    operation,
)
from pytorch_quantizer.graph.operations import tensor_inputs as tensors_read
from pytorch_quantizer.graph.place import NETWORK_OUTPUT
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.qtypes import Quantizer


class Branches(NamedTuple):
    """A tensor and what produces it.

    tensor: the node whose values the next layer reads, through ``quantizer`` where it has one. layers: the calls of
    the layers on its branches, each channel of which ends up in the same channel of the tensor. between: the nodes that
    lead from them to the tensor, that one included, in order. axis: where the channels are.
    """

    tensor: fx.Node
    quantizer: Quantizer | None
    layers: tuple[fx.Node, ...]
    between: tuple[fx.Node, ...]
    axis: int


def quantizer_of(model: fx.GraphModule, node: fx.Node) -> Quantizer | None:
    """The quantizer that a node of a simulated model calls, else None."""
    module = module_of(model, node)
    return module if isinstance(module, Quantizer) else None


def list_branches(model: QuantizedModel) -> list[Branches]:
    """Every tensor that a layer or arithmetic reads on its grid, and the network's outputs, where layers decide it.

    In the order of execution, each layer once: it belongs to the first tensor behind it that is read as it is. A
    tensor that only additions read is no such tensor, the additions' results are. An identity shortcut is not walked
    back: it is a tensor of its own. Layers that are called several times, or whose channels are reshaped on the way,
    are left out.
    """
    ends = _ends(model)
    claimed: set[fx.Node] = set()
    found = []
    for node in model.graph.nodes:
        if node not in ends:
            continue
        layers, between = _walk_back(model, node, ({*ends} - {node}) | claimed)
        branches = _branches(model, node, ends[node], layers, between)
        if branches is not None:
            claimed.update(layers)
            found.append(branches)
    return found


def layers_alone(model: QuantizedModel) -> list[Branches]:
    """Each layer that is called once, as the producer of its own output, before anything reads it."""
    made = (_branches(model, node, None, [node], []) for node, _ in layer_nodes(model))
    return [branches for branches in made if branches is not None]


def affected(branches: Branches) -> list[fx.Node]:
    """What has to be computed again when the layers change: they, and all that depends on them up to the tensor.

    More than ``between``: what others read of the layers' outputs comes before the tensor too.
    """
    found = dict.fromkeys(branches.layers)
    for node in branches.tensor.graph.nodes:
        if node in found or any(source in found for source in node.all_input_nodes):
            found[node] = None
        if node is branches.tensor:
            break
    order = {node: index for index, node in enumerate(branches.tensor.graph.nodes)}
    return sorted(found, key=order.__getitem__)


def _ends(model: QuantizedModel) -> dict[fx.Node, Quantizer | None]:
    """The tensors that are compared with the float network's, each with its quantizer."""
    nodes = {node.name: node for node in model.graph.nodes}
    quantizers = {site.name: site.quantizer for site in model.sites}
    ends: dict[fx.Node, Quantizer | None] = {}
    for site in model.sites:
        node = nodes.get(site.node)
        if node is None or site.kind == "residual" or site.is_wide or not _is_activation(site):
            continue
        if site.quantizer is not None:
            ends[node] = site.quantizer
        elif site.carrier is not None and _is_concatenated(model, node, site, quantizers):
            ends[node] = quantizers[site.carrier]
        elif site.reason == NETWORK_OUTPUT and layer_of(model, node) is not None:
            ends[node] = None
    return ends


def _is_activation(site: Site) -> bool:
    return site.kind in ("activation", "input")


def _is_concatenated(model: QuantizedModel, node: fx.Node, site: Site, quantizers: dict[str, Quantizer | None]) -> bool:
    """Whether a tensor lives on a concatenation's grid, and that grid is one for all channels."""
    quantizer = quantizers.get(site.carrier or "")
    is_part = any(is_concatenation(model, reader) for reader in node.users)
    return quantizer is not None and getattr(quantizer, "axis", None) is None and is_part


def _walk_back(model: QuantizedModel, node: fx.Node, stops: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """(layers, nodes between them and the tensor, both in order of discovery), empty where no layer is found."""
    if node in stops:
        return [], []
    if layer_of(model, node) is not None:
        return [node], []
    passes = is_channelwise(model, node) or _is_sum(model, node) or quantizer_of(model, node) is not None
    if not passes or is_collection(node):
        return [], []
    layers: list[fx.Node] = []
    between: list[fx.Node] = []
    for source in tensors_read(node):
        more_layers, more_between = _walk_back(model, source, stops)
        layers += more_layers
        between += more_between
    return layers, [*between, node] if layers else []


def _is_sum(model: QuantizedModel, node: fx.Node) -> bool:
    """Whether a node adds its operands as they are, so that a shift of one is a shift of the sum."""
    return is_addition(model, node) and operation(model, node) not in SUBTRACTIONS and "alpha" not in node.kwargs


def _branches(
    model: QuantizedModel, node: fx.Node, quantizer: Quantizer | None, layers: list[fx.Node], between: list[fx.Node]
) -> Branches | None:
    """The finding, None where the layers can't take a gain and a shift a channel."""
    calls = [str(other.target) for other, _ in layer_nodes(model)]
    if not layers or any(calls.count(str(layer.target)) > 1 for layer in layers):
        return None
    axes = {-1 if isinstance(layer_of(model, layer), nn.Linear) else 1 for layer in layers}
    axis = axes.pop()
    if axes or (layers != [node] and not _have_as_many_channels([*layers, node], axis)):
        return None
    order = {other: index for index, other in enumerate(model.graph.nodes)}
    ordered = sorted(dict.fromkeys(between), key=order.__getitem__)
    return Branches(node, quantizer, tuple(dict.fromkeys(layers)), tuple(ordered), axis)


def _have_as_many_channels(nodes: list[fx.Node], axis: int) -> bool:
    """Whether tensors have their channels in the same place, and as many, as far as their shapes are known."""
    shapes = [node.meta.get("shape") for node in nodes]
    return None not in shapes and len({(len(shape), shape[axis]) for shape in shapes if shape is not None}) == 1
