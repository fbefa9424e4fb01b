"""A digest of a captured network: which operations on which shapes, whatever the weights' values.
By it a checkpoint tells the float network that it was made from from another one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from pytorch_quantizer.graph.operations import called_name, module_of

UNSAID = ("device", "dtype")  # arguments of modules that describe no computation


def network_digest(graph: fx.GraphModule) -> str:
    """SHA-256 over a line a node of a captured graph, not folded yet, 64 hexadecimal digits.

    A line is a JSON list: the operation, what is called, and its arguments, nodes by their position. Of a module its
    path, its class, the arguments of torch.nn's that aren't their defaults, and name and shape of each parameter and
    buffer; of a function or a method its name alone. Values of weights, names of nodes and versions don't take part.
    """
    positions = {node: position for position, node in enumerate(graph.graph.nodes)}
    lines = [_line(graph, node, positions) for node in positions]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def said_arguments(module: nn.Module) -> dict[str, Any]:
    """The arguments that a torch.nn module was made with, as far as it remembers them and they aren't the defaults."""
    found = {}
    for argument in list(inspect.signature(type(module).__init__).parameters.values())[1:]:
        if argument.kind in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL) or argument.name in UNSAID:
            continue
        value = getattr(module, argument.name, argument.default)
        if argument.name in ("bias", "elementwise_affine") and not isinstance(value, bool):
            value = value is not None
        if value is not argument.default:
            found[argument.name] = value
    return found


def _line(graph: fx.GraphModule, node: fx.Node, positions: Mapping[fx.Node, int]) -> str:
    kwargs = sorted(node.kwargs.items())
    parts = [node.op, _called(graph, node), _plain(node.args, positions), _plain(kwargs, positions)]
    return json.dumps(parts, separators=(",", ":"))


def _called(graph: fx.GraphModule, node: fx.Node) -> Any:
    module = module_of(graph, node)
    if module is not None:
        own = type(module).__module__.startswith("torch.nn.")
        arguments = sorted(said_arguments(module).items()) if own else []
        shapes = [[name, list(tensor.shape)] for name, tensor in module.state_dict().items()]
        return [str(node.target), type(module).__name__, _plain(arguments, {}), shapes]
    if node.op == "get_attr":
        value = _attribute(graph, str(node.target))
        return [str(node.target), list(getattr(value, "shape", ()))]
    return called_name(node) if node.op.startswith("call") else ""


def _attribute(graph: fx.GraphModule, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(graph.get_submodule(owner), name)


def _plain(value: Any, positions: Mapping[fx.Node, int]) -> Any:
    """As JSON can hold it; what it has no word for by its type's name, for an address would be another each time."""
    if isinstance(value, fx.Node):
        return {"node": positions[value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry, positions) for entry in value]
    if isinstance(value, dict):
        return [[_plain(key, positions), _plain(entry, positions)] for key, entry in value.items()]
    if isinstance(value, slice):
        return [":", *(_plain(part, positions) for part in (value.start, value.stop, value.step))]
    return str(value) if isinstance(value, torch.dtype) else type(value).__name__
