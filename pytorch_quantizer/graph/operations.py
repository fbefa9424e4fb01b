"""What each operation of a captured graph means for quantization: layer, arithmetic, ReLU, value-keeping or float.
A new operation is one entry in these tables; placement (place.py) and folding (fold.py) only ask.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.recurrent import Gates, Recurrence

Convolution: TypeAlias = _ConvNd
Layer: TypeAlias = _ConvNd | nn.Linear
BatchNorm: TypeAlias = _BatchNorm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
UNFOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)  # layers that are a matrix product of windows, as far as torch unfolds
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Arithmetic reads its operands in integers: each of them is a tensor to quantize.
SUBTRACTIONS = {operator.sub, operator.isub, torch.sub, "sub"}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add"} | SUBTRACTIONS
CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate, torch.stack}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", operator.truediv, torch.div, "div"}
MATMULS = {
    operator.matmul,
    torch.matmul,
    torch.bmm,
    torch.einsum,
    torch.baddbmm,
    torch.addmm,
    torch.mm,
    "matmul",
    "bmm",
    "mm",
    F.scaled_dot_product_attention,
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
}
AVERAGES = {
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean, torch.sum, "mean", "sum"),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
}
ARITHMETIC = ADDITIONS | CONCATENATIONS | PRODUCTS | MATMULS | AVERAGES

# ReLUs, and where each saturates. Hardtanh is one where its lower bound is 0.
RELUS: dict[Any, float | None] = {
    nn.ReLU: None,
    F.relu: None,
    torch.relu: None,
    "relu": None,
    nn.ReLU6: 6.0,
    F.relu6: 6.0,
}
CLAMPS: dict[Any, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    torch.clamp: (("min", "max"), (None, None)),
    "clamp": (("min", "max"), (None, None)),
    torch.clamp_min: (("min",), (None,)),
    "clamp_min": (("min",), (None,)),
    F.hardtanh: (("min_val", "max_val"), (-1.0, 1.0)),
}
PADS = {nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d}
UNIT = {
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softmax2d, torch.sigmoid, "sigmoid", F.sigmoid, F.hardsigmoid),
    *(F.softmax, torch.softmax, "softmax"),
}
KEEPING = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch.amax, "amax"),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    *(operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze),
    *(torch.chunk, torch.split, torch.unbind, torch.roll, torch.swapaxes, torch.movedim, torch.narrow, torch.clone),
    *("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "expand", "expand_as", "repeat"),
    *("chunk", "split", "unbind", "roll", "swapaxes", "movedim", "narrow", "contiguous", "clone", "unflatten", "t"),
    *("detach", "view_as", "reshape_as", "select", "index_select", "to", "type_as"),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.tile, torch.flip, "flip"),
}
CHANNEL_KEEPING = {  # of the value-keeping operations, those whose channels are their input's
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, nn.Dropout, nn.Dropout2d, F.dropout),
    *(nn.Identity, torch.clone, "contiguous", "clone", "detach"),
}
FUNCTIONS_OF_ONE_VALUE = {
    *(nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid),
    *(F.silu, F.hardswish, F.gelu, F.mish, F.leaky_relu, F.elu, F.tanh, F.sigmoid, F.hardsigmoid),
    *(torch.tanh, torch.sigmoid, "tanh", "sigmoid"),
}
NAMED_KEEPING = {
    "_patch_merging_pad",
    "_get_relative_position_bias",
}  # functions of libraries, known by name so that nothing is imported for them


def operation(graph: GraphModule, node: Node) -> Any:
    """What a node calls, as the tables know it: a module's class, a function, or a method's name; else None."""
    module = module_of(graph, node)
    if module is not None:
        return type(module)
    return node.target if node.op in ("call_function", "call_method") else None


def module_of(graph: GraphModule, node: Node) -> nn.Module | None:
    """The module that a node calls, None where it calls none."""
    if node.op != "call_module":
        return None
    module: nn.Module | None = graph
    for name in str(node.target).split("."):  # asked so often that get_submodule, which checks each step, would be seen
        module = module._modules[name] if module is not None else None
    return module


def layer_of(graph: GraphModule, node: Node) -> Layer | None:
    """The convolution or linear module that a node calls, else None."""
    module = module_of(graph, node)
    return module if isinstance(module, LAYERS) else None


def recurrence_of(graph: GraphModule, node: Node) -> Recurrence | None:
    """The recurrent layer that a node calls, else None."""
    module = module_of(graph, node)
    return module if isinstance(module, Recurrence) else None


def is_arithmetic(graph: GraphModule, node: Node) -> bool:
    """Whether a node reads its operands in integers without being a layer."""
    return is_tensor(node) and operation(graph, node) in ARITHMETIC


def is_addition(graph: GraphModule, node: Node) -> bool:
    """Whether a node is an addition or a subtraction of tensors."""
    return operation(graph, node) in ADDITIONS


def is_concatenation(graph: GraphModule, node: Node) -> bool:
    """Whether a node only puts tensors beside one another."""
    return operation(graph, node) in CONCATENATIONS


def is_relu(graph: GraphModule, node: Node) -> bool:
    """Whether a node is max(x, 0), saturated above or not."""
    return _relu_bounds(graph, node) is not None


def relu_ceiling(graph: GraphModule, node: Node) -> float | None:
    """Where a ReLU saturates: 6 for ReLU6, the highest of a ChannelClippedReLU's channels, None for never."""
    bounds = _relu_bounds(graph, node)
    return bounds[1] if bounds else None


def is_channelwise(graph: GraphModule, node: Node) -> bool:
    """Whether each channel of a node's result comes from that channel of its one input alone: ReLUs, SiLU, max-pool."""
    return is_relu(graph, node) or operation(graph, node) in CHANNEL_KEEPING | FUNCTIONS_OF_ONE_VALUE


def is_unit(graph: GraphModule, node: Node) -> bool:
    """Whether a node's values lie in [0, 1] by definition."""
    return operation(graph, node) in UNIT


def keeps_values(graph: GraphModule, node: Node) -> bool:
    """Whether a node's values are some of its input's (or padding zeros), so that they stay on its grid."""
    called = operation(graph, node)
    if called is F.pad or called in PADS:
        return _pads_zero(graph, node)
    if called in (F.interpolate, nn.Upsample):
        return _interpolates_nearest(graph, node)
    if called is operator.getitem and is_collection(tensor_inputs(node)[0]):
        return keeps_values(graph, tensor_inputs(node)[0])  # of a split, unlike a result of torch.max or a module
    if called in KEEPING or getattr(called, "__name__", "") in NAMED_KEEPING:
        return True
    if not is_relu(graph, node) or relu_ceiling(graph, node) is not None:  # a ceiling is a value of its own
        return False
    return is_nonnegative(graph, tensor_inputs(node)[0])


def is_nonnegative(graph: GraphModule, node: Node) -> bool:
    """Whether a node's values can't be negative, as far as the graph tells."""
    if is_relu(graph, node) or is_unit(graph, node):
        return True
    called, inputs = operation(graph, node), tensor_inputs(node)
    closed = called in KEEPING | AVERAGES | CONCATENATIONS | {operator.add, torch.add, "add", operator.mul, torch.mul}
    if keeps_values(graph, node):
        inputs = kept_operands(graph, node)
    elif not closed:
        return False
    if not inputs:
        return False
    return all(is_nonnegative(graph, source) for source in inputs) and all(c >= 0 for c in _constants(called, node))


def computes_afresh(graph: GraphModule, node: Node) -> bool:
    """Whether a node's result is a new tensor that nobody else can see, so that it may be overwritten."""
    if layer_of(graph, node) is not None or is_relu(graph, node) or is_unit(graph, node):
        return True
    return operation(graph, node) in ARITHMETIC - AVERAGES - {torch.einsum}


def is_tensor(node: Node) -> bool:
    """Whether a node holds a floating-point tensor or a collection of them (capture.py marks them)."""
    return bool(node.meta.get("is_tensor"))


def is_collection(node: Node) -> bool:
    """Whether a node is known to hold several tensors (a split, a module with two results)."""
    return is_tensor(node) and node.meta.get("shape", ()) is None


def tensor_inputs(node: Node) -> list[Node]:
    """The floating-point tensors that a node reads, in order."""
    return [source for source in node.all_input_nodes if is_tensor(source)]


def layer_nodes(graph: GraphModule) -> Iterator[tuple[Node, Layer]]:
    """Each call of a convolution or linear layer, in the order of execution."""
    for node in graph.graph.nodes:
        layer = layer_of(graph, node)
        if layer is not None:
            yield node, layer


def weighted_nodes(graph: GraphModule) -> Iterator[tuple[Node, Layer | Recurrence]]:
    """Each call of a layer or of a Recurrence, in the order of execution."""
    for node in graph.graph.nodes:
        module = layer_of(graph, node) or recurrence_of(graph, node)
        if module is not None:
            yield node, module


def layer_kind(graph: GraphModule, node: Node) -> str:
    """A recipe's word for the layer that a node calls (dynamic_fields.DYNAMIC_LAYERS)."""
    if any(isinstance(module_of(graph, called), Recurrence | Gates) for called in (node, *node.users)):
        return "recurrent"
    return "linear" if isinstance(module_of(graph, node), nn.Linear) else "convolution"


def label(node: Node) -> str:
    """A node's name for people: the module's path, or the path of the module that holds the operation and its name."""
    return str(node.meta.get("label", node.name))


def operation_name(graph: GraphModule, node: Node) -> str:
    """The kind of operation, for people: SiLU, softmax, a transformer block's function."""
    called = operation(graph, node)
    return called if isinstance(called, str) else getattr(called, "__name__", node.op)


def called_name(node: Node) -> str:
    """The operation's name for people: conv1, relu, add."""
    target: str | Callable[..., Any] = node.target
    return target.rsplit(".", 1)[-1] if isinstance(target, str) else getattr(target, "__name__", str(target))


def kept_operands(graph: GraphModule, node: Node) -> list[Node]:
    """The tensors whose values a value-keeping operation keeps: the first, for others only lend their shape."""
    return tensor_inputs(node)[:1]


def _relu_bounds(graph: GraphModule, node: Node) -> tuple[float, float | None] | None:
    """(0, where it saturates or None) of an operation that is a ReLU, however it is spelt; None for all others."""
    called = operation(graph, node)
    if called in RELUS:
        return 0.0, RELUS[called]
    if called is ChannelClippedReLU:
        clipped: Any = module_of(graph, node)
        return 0.0, float(clipped.ceiling.max())
    if called is nn.Hardtanh:
        module: Any = module_of(graph, node)
        bounds = [module.min_val, module.max_val]
    elif called in CLAMPS:
        names, defaults = CLAMPS[called]
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        bounds = [given.get(name, default) for name, default in zip(names, defaults, strict=True)]
    else:
        return None
    low, high = bounds[0], bounds[1] if len(bounds) > 1 else None
    if isinstance(low, Node) or isinstance(high, Node) or low != 0:
        return None
    return 0.0, None if high is None else float(high)


def _interpolates_nearest(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return getattr(module_of(graph, node), "mode", "") in ("nearest", "nearest-exact")
    mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
    return mode in ("nearest", "nearest-exact")


def _pads_zero(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return getattr(module_of(graph, node), "value", None) == 0
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return bool(mode != "constant" or value in (None, 0))


def _constants(called: Any, node: Node) -> list[float]:
    """Numbers that an addition or a product takes part in; elsewhere they are sizes and axes."""
    if called not in ADDITIONS | PRODUCTS:
        return []
    return [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, int | float)]
