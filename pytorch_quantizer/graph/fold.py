"""Batch norm folded into the convolution or linear layer before or after it, wherever that is exact.
Arithmetic is float64, rounded to the weights' dtype once. What can't be folded stays, with the reason.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn

from pytorch_quantizer.graph.capture import Captured
from pytorch_quantizer.graph.operations import (
    BATCH_NORMS,
    CONVOLUTIONS,
    TRANSPOSED,
    BatchNorm,
    Convolution,
    Layer,
    label,
    layer_of,
    module_of,
)
from pytorch_quantizer.graph.share import copy_sharing
from pytorch_quantizer.quantization.bias_correction import Affine, Moments

Calls = Counter[nn.Module]
BLOCK = 2**18  # elements computed at a time: 2 MiB in float64


def fold(captured: Captured, *, inplace: bool = False) -> tuple[fx.GraphModule, dict[str, str]]:
    """A copy of the graph with its batch norms folded, and for each that stays, its label → the reason.

    After a layer: w ← γ/√(σ²+ε)·w over output channels, always exact. Before one: over input channels, exact unless the
    layer pads with zeros (a padded zero would have to become the norm's shift). A layer's node remembers the moments of
    the norm folded into it, as ``meta["normal"]``: corrections that need no images start from them. What no norm is
    folded into keeps the very tensors of ``captured.graph``. inplace: change that graph itself, none of its tensors.
    """
    graph = captured.graph if inplace else copy_sharing(captured.graph)
    kept: dict[str, str] = {}
    calls = _count_calls(graph)
    for node in list(graph.graph.nodes):
        norm = module_of(graph, node)
        if isinstance(norm, BATCH_NORMS):
            obstacle = _fold_one(graph, node, norm, calls)
            if obstacle:
                kept[label(node)] = obstacle
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, kept


def _fold_one(graph: fx.GraphModule, norm_node: fx.Node, norm: BatchNorm, calls: Calls) -> str | None:
    """Fold one batch norm into a neighbour and erase it, or say why not."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return "a batch norm that normalises by the batch's own statistics"
    before, after = _layer_before(graph, norm_node, calls), _layer_after(graph, norm_node, calls)
    if not isinstance(before, str):
        fold_after(before, _as_affine(norm))
        norm_node.all_input_nodes[0].meta["normal"] = _as_moments(norm)
    elif not isinstance(after, str):
        fold_before(after, _as_affine(norm))
    else:
        return f"a batch norm that can't be folded (before it {before}, after it {after})"
    norm_node.replace_all_uses_with(norm_node.all_input_nodes[0])
    graph.graph.erase_node(norm_node)
    return None


def fold_after(layer: Layer, norm: Affine) -> None:
    """Make ``layer`` compute norm(layer(x)): w ← gain·w and b ← gain·b + shift over output channels, in place."""
    gain = _over_output_channels(layer, norm.gain)
    bias = norm.shift if layer.bias is None else norm.gain * layer.bias.detach().double() + norm.shift
    _assign(layer, _product(layer.weight.detach(), gain), bias)


def _product(weight: Tensor, gain: Tensor) -> Tensor:
    """gain·weight, computed in float64 and rounded once; a few channels at a time, for which caches have room."""
    product = torch.empty_like(weight)
    rows = min(len(weight), max(1, BLOCK // max(1, weight[0].numel())))
    room = torch.empty_like(weight[:rows], dtype=torch.float64)
    for into, part, factor in zip(product.split(rows), weight.split(rows), gain.split(rows), strict=True):
        into.copy_(room[: len(part)].copy_(part).mul_(factor))
    return product


def fold_before(layer: Layer, norm: Affine) -> None:
    """Make ``layer`` compute layer(norm(x)): w ← w·gain over input channels, b ← b + Σ w·shift, in place."""
    weight = layer.weight.detach().double()
    by_group = (-1, 1, weight.shape[1])  # [groups, 1, inputs of a group] against [groups, outputs of a group, inputs]
    groups = getattr(layer, "groups", 1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    constant = (grouped.sum(-1) * norm.shift.reshape(by_group)).sum(-1).flatten()
    bias = constant if layer.bias is None else layer.bias.detach().double() + constant
    _assign(layer, (grouped * norm.gain.reshape(*by_group, 1)).reshape(weight.shape), bias)


def _layer_before(graph: fx.GraphModule, norm_node: fx.Node, calls: Calls) -> Layer | str:
    """The layer that the norm alone reads, or why there is none."""
    source = norm_node.all_input_nodes[0]
    layer = _owned_layer(graph, source, calls)
    if layer is None:
        return "is no layer called once"
    if len(source.users) > 1:
        return "is a layer that others read too"
    if isinstance(layer, nn.Linear) and not _is_matrix(norm_node):
        return "is a linear layer whose outputs aren't its channels"
    return layer


def _layer_after(graph: fx.GraphModule, norm_node: fx.Node, calls: Calls) -> Layer | str:
    """The only reader of the norm where it is a layer that takes it exactly, or why there is none."""
    reader = next(iter(norm_node.users), None)
    layer = _owned_layer(graph, reader, calls)
    if layer is None or len(norm_node.users) > 1:
        return "is no single layer called once"
    if isinstance(layer, TRANSPOSED):
        return "is a transposed convolution, which spreads its shift unevenly over the borders"
    if isinstance(layer, CONVOLUTIONS) and layer.padding_mode == "zeros" and not _is_unpadded(layer):
        return "is a convolution that pads with zeros"
    if isinstance(layer, nn.Linear) and not _is_matrix(norm_node):
        return "is a linear layer whose inputs aren't its channels"
    return layer


def _count_calls(graph: fx.GraphModule) -> Calls:
    """How often the graph calls each module, under whatever name."""
    modules = (module_of(graph, node) for node in graph.graph.nodes)
    return Counter(module for module in modules if module is not None)


def _owned_layer(graph: fx.GraphModule, node: fx.Node | None, calls: Calls) -> Layer | None:
    """The layer that a node calls, if that call is the layer's only one."""
    layer = None if node is None else layer_of(graph, node)
    return layer if layer is not None and calls[layer] == 1 else None


def _is_matrix(node: fx.Node) -> bool:
    """Whether a node is known to hold [N, C]; unknown without an example batch."""
    shape = node.meta.get("shape")
    return shape is not None and len(shape) == 2


def _is_unpadded(layer: Convolution) -> bool:
    if isinstance(layer.padding, str):
        return layer.padding == "valid" or all(size == 1 for size in layer.kernel_size)
    return all(pad == 0 for pad in layer.padding)


def _as_affine(norm: BatchNorm) -> Affine:
    """gain = γ/√(σ² + ε), shift = β − gain·μ."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    shift = -gain * norm.running_mean.double()
    return Affine(gain, shift if norm.bias is None else shift + norm.bias.detach().double())


def _as_moments(norm: BatchNorm) -> Moments:
    """What the norm's outputs were distributed as over the training images: mean β, deviation |γ| (0 and 1 without)."""
    assert norm.running_mean is not None
    like = norm.running_mean.double()
    mean = torch.zeros_like(like) if norm.bias is None else norm.bias.detach().double()
    deviation = torch.ones_like(like) if norm.weight is None else norm.weight.detach().double().abs()
    return Moments(mean, deviation)


def _over_output_channels(layer: Layer, values: Tensor) -> Tensor:
    """[C_out] shaped to multiply the layer's weight."""
    trailing = (1,) * (layer.weight.dim() - 2)
    if not isinstance(layer, TRANSPOSED):
        return values.reshape(-1, 1, *trailing)
    inputs_per_group = layer.weight.shape[0] // layer.groups  # a transposed weight is [C_in, C_out / groups, …]
    per_input = values.reshape(layer.groups, -1).repeat_interleave(inputs_per_group, 0)
    return per_input.reshape(*layer.weight.shape[:2], *trailing)


def _assign(layer: Layer, weight: Tensor, bias: Tensor) -> None:
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
