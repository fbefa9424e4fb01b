"""Which tensors of a folded graph are quantized, each once, where it is produced; and why the others are not.
The quantizers are made here, unfitted; calibration/ fits them and insert.py puts them into the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from typing import Any
from zlib import crc32

from torch import fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.operations import (
    TRANSPOSED,
    UNFOLDABLE,
    Convolution,
    is_addition,
    is_arithmetic,
    is_collection,
    is_concatenation,
    is_nonnegative,
    is_relu,
    is_tensor,
    is_unit,
    keeps_values,
    kept_operands,
    label,
    layer_kind,
    layer_nodes,
    layer_of,
    operation,
    operation_name,
    recurrence_of,
    relu_ceiling,
    tensor_inputs,
    weighted_nodes,
)
from pytorch_quantizer.graph.requests import Requests
from pytorch_quantizer.graph.site import WIDE, Site
from pytorch_quantizer.quantization.clipping import Domain
from pytorch_quantizer.quantization.dynamic_fields import DYNAMIC
from pytorch_quantizer.quantization.qtypes import NUMBER_TYPES, IntQuantizer, NumberType, Quantizer
from pytorch_quantizer.quantization.qtypes.online_quantizer import OnlineQuantizer
from pytorch_quantizer.quantization.recipe import OUTPUT_MSE, Recipe

FLOAT_ASKED = "the recipe asks for float32"
NETWORK_OUTPUT = "network output"
BETWEEN_LAYERS = "statistics dynamic quantizes what its layers themselves read, nothing between them"
NO_STATE_RANGE = (
    "calibration knows no range of a recurrent layer's state: set statistics dynamic, or activations float32"
)
MOST_INPUTS = 8192  # of an output, whose second moments are kept: 0.5 GiB in float64
Readings = dict[fx.Node, list[fx.Node]]  # a tensor → the layers and arithmetic that read it


def place(graph: fx.GraphModule, recipe: Recipe, reasons: dict[str, str]) -> tuple[Site, ...]:
    """Every tensor of the graph as a Site: the quantized ones with an unfitted quantizer, the others with the reason.

    reasons: why modules stayed as they are (capture's opaque ones, batch norms that can't be folded), by label.
    Raises InputError where an override's pattern matches no layer or operation that reads a quantizable tensor.
    """
    dynamic = recipe.statistics == DYNAMIC
    readings = layer_inputs(graph, recipe) if dynamic else read_tensors(graph)
    requests = Requests(graph, recipe)
    recurrences = [node for node in graph.graph.nodes if _takes_part(graph, node, recipe, recurrence_of)]
    requests.check_patterns([*chain.from_iterable(readings.values()), *recurrences])
    sites = list(_weight_sites(graph, requests))
    for node in graph.graph.nodes:
        if node.op == "output" or not is_tensor(node):
            continue
        if node in recurrences:
            sites.append(_state_site(requests, node))
        if node in readings:
            sites += _activation_sites(graph, requests, node, readings)
        elif dynamic:
            sites += _between_layers(graph, node)
        else:
            sites += _float_site(graph, node, reasons)
    modules = [Site(f"{name}:module", "module", reason=reason, node=name) for name, reason in reasons.items()]
    return (*_carried_in_float_explained(sites), *_float_parameters(graph, sites, reasons), *modules)


def _carried_in_float_explained(sites: list[Site]) -> list[Site]:
    """The sites, those whose carrier stays in float turned into float ones themselves."""
    by_name = {site.name: site for site in sites}

    def explained(site: Site) -> Site:
        if site.carrier is None:
            return site
        carrier = explained(by_name[site.carrier])
        return replace(site, carrier=None, reason=carrier.reason) if carrier.is_float else site

    return [explained(site) for site in sites]


def read_tensors(graph: fx.GraphModule) -> Readings:
    """Each tensor that a layer or arithmetic reads → its readers, each once, looked up through value-keeping ones."""
    readings: Readings = {}
    for node in graph.graph.nodes:
        if layer_of(graph, node) is None and not is_arithmetic(graph, node):
            continue
        for operand in tensor_inputs(node):
            for source in producers(graph, operand):
                readers = readings.setdefault(source, [])
                readers += [] if node in readers else [node]
    return readings


def layer_inputs(graph: fx.GraphModule, recipe: Recipe) -> Readings:
    """Each tensor that a layer of the recipe's dynamic_layers itself reads → these layers."""
    readings: Readings = {}
    for node in graph.graph.nodes:
        if _takes_part(graph, node, recipe, layer_of):
            readings.setdefault(tensor_inputs(node)[0], []).append(node)
    return readings


def _takes_part(graph: fx.GraphModule, node: fx.Node, recipe: Recipe, found: Callable[..., nn.Module | None]) -> bool:
    """Whether a node calls a layer that the recipe quantizes; found: layer_of or recurrence_of."""
    if found(graph, node) is None:
        return False
    return recipe.statistics != DYNAMIC or layer_kind(graph, node) in recipe.dynamic_layers.split(", ")


def producers(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The tensors whose values a node holds: itself, or what value-keeping operations took them from."""
    if not keeps_values(graph, node):
        return [node]
    return [source for operand in kept_operands(graph, node) for source in producers(graph, operand)]


def fused_relu(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The ReLU that alone reads a tensor: integer kernels apply it while they requantize.

    A pooling by maximum between them changes nothing: both are monotone, so the ReLU's grid serves before it too.
    """
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    if is_relu(graph, reader):
        return reader
    return fused_relu(graph, reader) if keeps_values(graph, reader) else None


def _activation_sites(graph: fx.GraphModule, requests: Requests, node: fx.Node, readings: Readings) -> list[Site]:
    readers = readings[node]
    if _is_carried(graph, node, readings):
        concatenation = next(iter(node.users))
        return [_site(node, readers, carrier=label(concatenation))]
    additions = [reader for reader in readers if is_addition(graph, reader)]
    others = [reader for reader in readers if reader not in additions]
    if not (requests.recipe.wide_residual and additions and others):
        return [_requested_site(graph, requests, node, readers, "residual" if not others else "activation")]
    narrow = _requested_site(graph, requests, node, others, "activation")
    wide = _requested_site(graph, requests, node, additions, "residual")
    if _bits(wide) <= _bits(narrow):
        return [_requested_site(graph, requests, node, readers, "activation")]
    return [narrow, replace(wide, name=f"{wide.name}{WIDE}")]


def _is_carried(graph: fx.GraphModule, node: fx.Node, readings: Readings) -> bool:
    """Whether a tensor exists only as part of a concatenation that is itself quantized: one grid serves both."""
    reader = next(iter(node.users), None)
    return reader is not None and len(node.users) == 1 and is_concatenation(graph, reader) and reader in readings


def _requested_site(
    graph: fx.GraphModule, requests: Requests, node: fx.Node, readers: list[fx.Node], kind: str
) -> Site:
    """A tensor under the widest number type that any of its readers asks for."""
    recipe, (wanted, clip, _) = requests.recipe, requests.for_tensor(readers, kind)
    kind = "input" if node.op == "placeholder" else kind
    if wanted.is_float:
        return _site(node, readers, kind=kind, reason=FLOAT_ASKED)
    domain, observed = _domain(graph, node)
    if recipe.statistics == DYNAMIC and domain.support == "unit":
        domain = Domain("nonnegative")  # the batch's own range, wherever a tensor comes from
    whole = recipe.activation_granularity == "per_tensor" or NUMBER_TYPES[wanted.name].blocked
    quantizer: Quantizer = _unfitted(
        label(node),
        wanted,
        signed=recipe.activation_symmetric and domain.support == "real",
        symmetric=recipe.activation_symmetric,
        axis=None if whole else _channel_axis(graph, node, readers),
        clip=clip,
        domain=domain,
        across_batches=recipe.across_batches,
        rounding=recipe.rounding,
        seed=crc32(label(node).encode()),
    )
    if recipe.statistics != "offline":
        quantizer = _online(recipe, node, quantizer)
    return _site(node, readers, kind=kind, quantizer=quantizer, observed=observed)


def _unfitted(tensor: str, wanted: NumberType, **settings: Any) -> Quantizer:
    """A quantizer of a number type. Raises InputError, naming the tensor, where the type can't have these settings."""
    try:
        return NUMBER_TYPES[wanted.name](wanted.bits, **settings)
    except InputError as error:
        raise InputError(f"{tensor}: {error}") from error


def _online(recipe: Recipe, node: fx.Node, quantizer: Quantizer) -> OnlineQuantizer:
    if not isinstance(quantizer, IntQuantizer):
        given = f"{label(node)}: {quantizer.describe()} has no ranges"
        raise InputError(f"{given}; statistics {recipe.statistics} is for int types")
    return OnlineQuantizer(quantizer)


def _state_site(requests: Requests, node: fx.Node) -> Site:
    """What a recurrent layer's weight multiplies at each time step, on the range of that step's batch."""
    recipe, (wanted, clip, _) = requests.recipe, requests.for_tensor([node], "activation")
    site = Site(f"{label(node)}:state", "state", (label(node),), node=str(node.target))
    if wanted.is_float:
        return replace(site, reason=FLOAT_ASKED)
    if recipe.statistics == "offline":
        return replace(site, reason=NO_STATE_RANGE)
    symmetric = recipe.activation_symmetric
    quantizer = _unfitted(site.name, wanted, signed=symmetric, symmetric=symmetric, clip=clip, rounding=recipe.rounding)
    return replace(site, quantizer=_online(recipe, node, quantizer))


def _domain(graph: fx.GraphModule, node: fx.Node) -> tuple[Domain, fx.Node]:
    """What is known of a tensor's values, and the node whose statistics describe them."""
    if operation(graph, node) is ChannelClippedReLU:
        return Domain("nonnegative"), node  # no one ceiling tells how far its channels reach
    if is_relu(graph, node):
        return Domain("rectified", relu_ceiling(graph, node)), tensor_inputs(node)[0]
    if is_unit(graph, node):
        return Domain("unit"), node
    return Domain("nonnegative" if is_nonnegative(graph, node) else "real"), node


def _channel_axis(graph: fx.GraphModule, node: fx.Node, readers: list[fx.Node]) -> int:
    """Where a tensor's channels are: last in the token tensors [N, T, C] of linear layers, else second."""
    shape = node.meta.get("shape")
    if shape is None:
        raise InputError(
            f"which are the channels of {label(node)} isn't known without images: give calibration=, an iterable of "
            "image batches, or set activation_granularity per_tensor"
        )
    if len(shape) < 2:
        raise InputError(f"{label(node)} has no channels: activation_granularity must be per_tensor, or it float32")
    convolved = any(isinstance(layer_of(graph, other), Convolution) for other in (node, *readers))
    return len(shape) - 1 if len(shape) == 3 and not convolved else 1


def _weight_sites(graph: fx.GraphModule, requests: Requests) -> Iterable[Site]:
    calls: dict[str, list[fx.Node]] = {}
    for node, _ in weighted_nodes(graph):
        calls.setdefault(str(node.target), []).append(node)
    for name, nodes in calls.items():
        yield _weight_site(graph, requests, name, nodes)


def _weight_site(graph: fx.GraphModule, requests: Requests, name: str, calls: list[fx.Node]) -> Site:
    """A layer's weight under what any of its calls asks for."""
    layer, path = graph.get_submodule(name), f"{name}.weight"
    wanted, clip, _ = requests.for_weight(calls)
    site = Site(path, "weight", tuple(label(call) for call in calls), node=path)
    reason = FLOAT_ASKED if wanted.is_float else _unquantized(graph, requests, calls)
    if reason is not None:
        return replace(site, reason=reason)
    if clip != OUTPUT_MSE:
        return replace(site, quantizer=_weight_quantizer(requests.recipe, name, layer, wanted, clip))
    if wanted.name != "int":
        raise InputError(f"{path}: weight_clip {OUTPUT_MSE} is for int types, not {wanted}: override one of them")
    obstacle = _output_obstacle(layer)
    remark = None if obstacle is None else f"range by mse, not {OUTPUT_MSE}: {obstacle}"
    quantizer = _weight_quantizer(requests.recipe, name, layer, wanted, "mse")
    return replace(site, quantizer=quantizer, by_outputs=obstacle is None, remark=remark)


def _unquantized(graph: fx.GraphModule, requests: Requests, calls: list[fx.Node]) -> str | None:
    """Why a recipe leaves a layer in float that it asks no float32 for, None where it doesn't."""
    recipe, kind = requests.recipe, layer_kind(graph, calls[0])
    if recipe.statistics == DYNAMIC and kind not in recipe.dynamic_layers.split(", "):
        return f"statistics dynamic quantizes {recipe.dynamic_layers} layers, this one is {kind} (dynamic_layers)"
    if recipe.statistics == "offline" and recurrence_of(graph, calls[0]) is not None:
        return None if requests.for_tensor(calls, "activation").number_type.is_float else NO_STATE_RANGE
    return None


def _output_obstacle(layer: nn.Module) -> str | None:
    """Why a weight's range can't be chosen by the error of its layer's outputs, None where it can."""
    if not isinstance(layer, UNFOLDABLE):
        return f"the inputs of {type(layer).__name__} have no matrix form here"
    inputs = int(layer.weight[0].numel())
    if inputs > MOST_INPUTS:
        return f"{inputs:,} inputs an output would take {inputs**2 * 8 / 2**30:.1f} GiB of second moments"
    return None


def _weight_quantizer(recipe: Recipe, name: str, layer: nn.Module, wanted: NumberType, clip: str) -> Quantizer:
    axis = None if recipe.weight_granularity == "per_tensor" else int(isinstance(layer, TRANSPOSED))
    symmetric = recipe.weight_symmetric and wanted.bits > 1  # one bit has no symmetric grid: {−1, 0} is all it holds
    return _unfitted(
        f"{name}.weight",
        wanted,
        signed=True,
        narrow=recipe.weight_narrow and symmetric,
        symmetric=symmetric,
        axis=axis,
        clip=clip,
        rounding=recipe.rounding,
        seed=crc32(name.encode()),
    )


def _float_site(graph: fx.GraphModule, node: fx.Node, reasons: dict[str, str]) -> list[Site]:
    """Why a tensor that nothing reads in integers is not quantized; nothing for those that only pass values on."""
    if keeps_values(graph, node) and not _reaches_output(graph, node):
        return []
    if is_collection(node) and all(user.target is operator.getitem for user in node.users):
        return []  # its parts are the tensors
    relu = fused_relu(graph, node)
    if relu is not None and not keeps_values(graph, relu):  # a ReLU of what is never negative is no tensor of its own
        return [_site(node, [relu], carrier=label(relu))]
    return [_site(node, list(node.users), reason=_float_reason(graph, node, reasons))]


def _between_layers(graph: fx.GraphModule, node: fx.Node) -> list[Site]:
    """A tensor that no layer with a range of each batch itself reads; nothing for those that only pass values on."""
    passes_on = keeps_values(graph, node) and not _reaches_output(graph, node)
    if is_collection(node) or recurrence_of(graph, node) is not None or passes_on:
        return []  # of a collection the parts are the tensors
    reason = NETWORK_OUTPUT if _reaches_output(graph, node) else BETWEEN_LAYERS
    return [_site(node, list(node.users), reason=reason)]


def _float_reason(graph: fx.GraphModule, node: fx.Node, reasons: dict[str, str]) -> str:
    if _reaches_output(graph, node):
        return NETWORK_OUTPUT
    readers = _final_readers(graph, node)
    if not readers:
        return "nobody reads it"
    named = ", ".join(f"{label(reader)} ({operation_name(graph, reader)})" for reader in readers)
    because = next((f": {reasons[label(reader)]}" for reader in readers if label(reader) in reasons), "")
    return f"read only by {named}, computed in float{because}"


def _final_readers(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Who reads a tensor's values, looked up through value-keeping operations."""
    readers: list[fx.Node] = []
    for user in node.users:
        readers += _final_readers(graph, user) if keeps_values(graph, user) else [user]
    return list(dict.fromkeys(readers))


def _reaches_output(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a tensor leaves the network, as it is or through value-keeping operations."""
    return any(
        user.op == "output" or (keeps_values(graph, user) and _reaches_output(graph, user)) for user in node.users
    )


def _float_parameters(graph: fx.GraphModule, sites: list[Site], reasons: dict[str, str]) -> Iterable[Site]:
    """Parameters that no site covers: normalisation layers' and those of opaque modules; biases come with insertion."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    covered = read | {site.node for site in sites}
    layers = {str(node.target) for node, _ in layer_nodes(graph)}
    recurrences = {str(node.target) for node in graph.graph.nodes if recurrence_of(graph, node) is not None}
    for name, _ in graph.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in recurrences and name.endswith(".bias"):
            yield Site(name, "bias", (owner,), reason="added to the gates, which are computed in float", node=name)
        if name in covered or owner in {*layers, *recurrences}:
            continue
        why = next((reason for module, reason in reasons.items() if name.startswith(f"{module}.")), None)
        kind = type(graph.get_submodule(owner)).__name__
        reason = why or f"a parameter of {kind}, computed in float"
        yield Site(name, "weight", (owner,), reason=reason, node=name)


def _site(
    node: fx.Node, readers: list[fx.Node], *, kind: str = "activation", observed: fx.Node | None = None, **fields: Any
) -> Site:
    consumers = tuple(label(reader) for reader in readers)
    return Site(label(node), kind, consumers, node=node.name, observed=(observed or node).name, **fields)


def _bits(site: Site) -> int:
    return site.quantizer.bits if site.quantizer is not None else NumberType.parse("float32").bits
