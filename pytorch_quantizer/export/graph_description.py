"""A captured graph as plain values, and back. What comes back is built from a closed list of modules and functions:
nothing that a file says is ever looked up elsewhere, imported or run.
"""

from __future__ import annotations

import builtins
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.plain_values import Description, decode, encode
from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.operations import (
    ARITHMETIC,
    BATCH_NORMS,
    CLAMPS,
    FUNCTIONS_OF_ONE_VALUE,
    KEEPING,
    LAYERS,
    PADS,
    RELUS,
    UNIT,
)

NAMESPACES = {"torch": torch, "torch.nn.functional": F, "operator": operator, "builtins": builtins}
OTHER_FUNCTIONS = {F.pad, F.interpolate, F.layer_norm, F.group_norm, F.softmax, F.gelu, F.normalize, torch.softmax}
OTHER_FUNCTIONS |= {torch.sqrt, torch.rsqrt, torch.exp, torch.pow, torch.abs, torch.neg, torch.zeros_like}
OTHER_FUNCTIONS |= {operator.floordiv, operator.mod, operator.pow, operator.neg, operator.getitem, getattr}
OTHER_FUNCTIONS |= {torch._assert, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}
OTHER_METHODS = {"size", "dim", "softmax", "sigmoid", "masked_fill", "pow", "sqrt", "rsqrt", "neg", "abs", "float"}
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "T", "mT")  # of a tensor, that a graph may ask for by getattr
OTHER_MODULES = {nn.LayerNorm, nn.GroupNorm, nn.Upsample, nn.Hardtanh, nn.PReLU, nn.ReLU6, nn.LocalResponseNorm}
OTHER_MODULES |= {nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LogSoftmax, nn.Softplus, nn.Softsign}
UNSAID = ("device", "dtype")  # arguments of modules that describe no computation


def _known() -> set[Any]:
    return {*ARITHMETIC, *RELUS, *CLAMPS, *PADS, *UNIT, *KEEPING, *FUNCTIONS_OF_ONE_VALUE}


def functions() -> dict[str, Callable[..., Any]]:
    """By name, every function that a graph in a file may call."""
    callables = [entry for entry in {*_known(), *OTHER_FUNCTIONS} if callable(entry) and not isinstance(entry, type)]
    return {name: entry for entry in callables if (name := _public_name(entry)) is not None}


def methods() -> set[str]:
    """Every method of a tensor that it may call."""
    return {entry for entry in _known() if isinstance(entry, str)} | OTHER_METHODS


def modules() -> dict[str, type[nn.Module]]:
    """By name, every class of modules that it may hold."""
    classes = {entry for entry in {*_known(), *OTHER_MODULES, *LAYERS, *BATCH_NORMS} if isinstance(entry, type)}
    return {cls.__name__: cls for cls in {*classes, ChannelClippedReLU}}


def _public_name(function: Any) -> str | None:
    name = getattr(function, "__name__", "")
    return next(
        (f"{space}.{name}" for space, owner in NAMESPACES.items() if getattr(owner, name, None) is function), None
    )


# --- modules ---------------------------------------------------------------------------------------------------------


def describe_module(module: nn.Module) -> Description | None:
    """Class and arguments of a module of the list, JSON can hold them; None for all others."""
    name = type(module).__name__
    if modules().get(name) is not type(module):
        return None
    if isinstance(module, ChannelClippedReLU):
        return {"class": name, "arguments": {"axis": module.axis}}
    arguments = {}
    for argument in list(inspect.signature(type(module).__init__).parameters.values())[1:]:
        if argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL) or argument.name in UNSAID:
            continue
        value = getattr(module, argument.name, argument.default)
        if argument.name in ("bias", "elementwise_affine") and not isinstance(value, bool):
            value = value is not None
        if value is not argument.default:
            arguments[argument.name] = encode(value)
    return {"class": name, "arguments": arguments}


def build_module(description: Description) -> nn.Module:
    """The module that was described, in eval mode, its parameters without values (on the meta device)."""
    cls = modules().get(description["class"])
    if cls is None:
        raise InputError(f"the file asks for a module {description['class']!r}, which is not on the list")
    arguments = {name: decode(value, {}) for name, value in description["arguments"].items()}
    if cls is ChannelClippedReLU:
        arguments["ceiling"] = torch.zeros(0)
    with torch.device("meta"):
        return cls(**arguments).eval()


# --- nodes -----------------------------------------------------------------------------------------------------------


def describe_graph(graph: fx.Graph) -> list[Description]:
    """A description a node, in the order of execution. Functions that are not on the list have the name None."""
    names = {function: name for name, function in functions().items()}
    return [_describe_node(node, names) for node in graph.nodes]


def _describe_node(node: fx.Node, names: Mapping[Any, str]) -> Description:
    target: Any = node.target
    if node.op == "call_function":
        target = names.get(node.target)
    elif node.op == "call_method" and node.target not in methods():
        target = None
    if node.target is getattr and node.args[1] not in ATTRIBUTES:
        target = None
    meta = {name: node.meta[name] for name in ("label", "is_tensor", "shape") if name in node.meta}
    found = {"name": node.name, "op": node.op, "target": target, "meta": encode(meta)}
    return found | {"args": encode(node.args), "kwargs": encode(node.kwargs)}


def build_graph(descriptions: Iterable[Description], foreign: Mapping[str, Any]) -> fx.Graph:
    """The graph that was described. foreign: by node, the functions that aren't on the list.

    Raises InputError for what neither the list nor ``foreign`` knows.
    """
    graph, nodes, known = fx.Graph(), dict[str, fx.Node](), functions()
    for entry in descriptions:
        target = entry["target"] if entry["target"] is not None else foreign.get(entry["name"])
        args, kwargs = decode(entry["args"], nodes), decode(entry["kwargs"], nodes)
        if entry["op"] == "call_function" and entry["target"] is not None:
            target = known.get(entry["target"])
        elif entry["op"] == "call_method" and entry["target"] is not None:
            target = target if target in methods() else None
        if target is None or (target is getattr and args[1] not in ATTRIBUTES):
            raise InputError(f"the file calls {entry['target']!r} at {entry['name']}, which is not on the list")
        node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
        if node.name != entry["name"]:
            raise InputError(f"the file has two nodes named {entry['name']!r}, or one that no graph can have")
        node.meta = decode(entry["meta"], {})
        nodes[node.name] = node
    if not nodes or node.op != "output":
        raise InputError("the file's graph has no output at its end")
    graph.lint()
    return graph
