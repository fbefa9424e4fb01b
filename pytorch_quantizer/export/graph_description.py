"""A captured graph as plain values, and back. What comes back is built from a closed list of modules and functions:
nothing that a file says is ever looked up elsewhere, imported or run, and every name in it is checked (paths.py).
"""

from __future__ import annotations

import builtins
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models import swin_transformer

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.paths import check_identifier, find
from pytorch_quantizer.export.plain_values import Description, decode, encode
from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.digest import UNSAID, said_arguments
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
from pytorch_quantizer.graph.recurrent import Gates, Recurrence

NAMESPACES = {
    "torch": torch,
    "torch.nn.functional": F,
    "operator": operator,
    "builtins": builtins,
    "torchvision.models.swin_transformer": swin_transformer,
}
OTHER_FUNCTIONS = {F.pad, F.interpolate, F.layer_norm, F.group_norm, F.softmax, F.gelu, F.normalize, torch.softmax}
OTHER_FUNCTIONS |= {torch.sqrt, torch.rsqrt, torch.exp, torch.pow, torch.abs, torch.neg, torch.zeros_like}
OTHER_FUNCTIONS |= {operator.floordiv, operator.mod, operator.pow, operator.neg, operator.getitem, getattr}
OTHER_FUNCTIONS |= {torch.log, torch.square, torch.sin, torch.cos, torch.erf, torch.sign, torch.where, torch.var}
OTHER_FUNCTIONS |= {torch.std, torch.maximum, torch.minimum, torch.max, torch.min, F.log_softmax, F.softplus, F.prelu}
OTHER_FUNCTIONS |= {F.celu, F.selu, F.glu, F.logsigmoid, F.softsign, F.instance_norm, F.batch_norm, F.rms_norm}
OTHER_FUNCTIONS |= {torch._assert, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}
# Swin's: they compute from the tensors they are given alone, and make a mask of the size of what they read.
SWIN = {getattr(swin_transformer, name, None) for name in ("shifted_window_attention", "_patch_merging_pad")} - {None}
OTHER_METHODS = {"size", "dim", "softmax", "sigmoid", "masked_fill", "pow", "sqrt", "rsqrt", "neg", "abs", "float"}
OTHER_METHODS |= {"exp", "log", "square", "max", "min", "var", "std", "where", "maximum", "minimum"}
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "T", "mT")  # of a tensor, that a graph may ask for by getattr
OTHER_MODULES = {nn.LayerNorm, nn.GroupNorm, nn.Upsample, nn.Hardtanh, nn.PReLU, nn.ReLU6, nn.LocalResponseNorm}
OTHER_MODULES |= {
    nn.Embedding,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LogSoftmax,
    nn.Softplus,
    nn.Softsign,
}


def _known() -> set[Any]:
    return {*ARITHMETIC, *RELUS, *CLAMPS, *PADS, *UNIT, *KEEPING, *FUNCTIONS_OF_ONE_VALUE}


def functions() -> dict[str, Callable[..., Any]]:
    """By name, every function that a graph in a file may call."""
    callables = [
        entry for entry in {*_known(), *OTHER_FUNCTIONS, *SWIN} if callable(entry) and not isinstance(entry, type)
    ]
    return {name: entry for entry in callables if (name := _public_name(entry)) is not None}


def methods() -> set[str]:
    """Every method of a tensor that it may call."""
    return {entry for entry in _known() if isinstance(entry, str)} | OTHER_METHODS


def modules() -> dict[str, type[nn.Module]]:
    """By name, every class of modules that it may hold."""
    classes = {entry for entry in {*_known(), *OTHER_MODULES, *LAYERS, *BATCH_NORMS} if isinstance(entry, type)}
    return {cls.__name__: cls for cls in {*classes, ChannelClippedReLU, Recurrence, Gates}}


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
        return {"class": name, "arguments": {"channels": len(module.ceiling), "axis": module.axis}}
    return {"class": name, "arguments": {argument: encode(value) for argument, value in said_arguments(module).items()}}


def build_module(description: Description, most: int) -> nn.Module:
    """The module that was described, in eval mode, its parameters without values (on the meta device).

    Raises InputError for a class that is not on the list, and where it wants more than ``most`` values or channels.
    """
    name = description["class"]
    cls = modules().get(name)
    if cls is None:
        raise InputError(f"the file asks for a module {name!r}, which is not on the list")
    arguments = {argument: decode(value) for argument, value in description["arguments"].items()}
    if not arguments.keys().isdisjoint(UNSAID):
        raise InputError(f"the file says where a {name} shall lie, or its dtype, which is not a file's to say")
    with torch.device("meta"):
        if cls is ChannelClippedReLU:
            arguments["ceiling"] = torch.zeros(arguments.pop("channels"))
        built = cls(**arguments).eval()
    _check_size(built, most)
    return built


def _check_size(module: nn.Module, most: int) -> None:
    tensors = [*module.parameters(), *module.buffers()]
    sizes = [*(tensor.numel() for tensor in tensors), *(size for tensor in tensors for size in tensor.shape)]
    if max(sizes, default=0) > most:
        raise InputError(f"the file asks for a {type(module).__name__} of {max(sizes)} values, more than it can hold")


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


def build_graph(descriptions: Iterable[Description], root: nn.Module, foreign: Mapping[str, fx.Node]) -> fx.Graph:
    """The graph that was described. root: holds what it calls. foreign: by name, the float network's own nodes that
    call what isn't on the list, modules and functions.

    Raises InputError for what neither the list nor ``foreign`` knows, and for a graph that can't be.
    """
    graph, nodes, known = fx.Graph(), dict[str, fx.Node](), functions()
    for entry in descriptions:
        args, kwargs = decode(entry["args"], nodes), decode(entry["kwargs"], nodes)
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise InputError(f"the file calls {entry['name']!r} with what are no arguments: it is damaged")
        for name in (entry["name"], *kwargs):
            check_identifier(name)
        target = _target(entry, root, known, foreign, (args, kwargs))
        _check_call(entry, target, root, args, kwargs)
        node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
        if node.name != entry["name"]:
            raise InputError(f"the file has two nodes named {entry['name']!r}, or one that no graph can have")
        node.meta = _build_meta(entry["meta"])
        nodes[node.name] = node
    operations = [node.op for node in nodes.values()]
    if operations.count("placeholder") != 1 or operations.count("output") != 1 or operations[-1] != "output":
        raise InputError("the file's graph has not one input, and one output at its end")
    graph.lint()
    return graph


def _target(
    entry: Description,
    root: nn.Module,
    known: Mapping[str, Callable[..., Any]],
    foreign: Mapping[str, fx.Node],
    given: tuple[Any, Any],
) -> Any:
    """What a node calls, as torch.fx has it. Raises InputError for what is on no list."""
    op, target = entry["op"], entry["target"]
    if entry["name"] in foreign:
        return _foreign_target(entry, foreign[entry["name"]], given)
    found = {
        "placeholder": lambda: check_identifier(target),
        "output": lambda: target if target == "output" else None,
        "call_module": lambda: target if isinstance(find(root, target), nn.Module) else None,
        "get_attr": lambda: target if isinstance(find(root, target), Tensor) else None,
        "call_function": lambda: known.get(target),
        "call_method": lambda: target if target in methods() else None,
    }[op]()
    if found is None or (found is getattr and given[0][1] not in ATTRIBUTES):
        raise InputError(f"the file calls {target!r} at {entry['name']}, which is not on the list")
    return found


def _foreign_target(entry: Description, node: fx.Node, given: tuple[Any, Any]) -> Any:
    """What the float network's own node calls, with its own values: nobody here knows what a file's would do to it."""
    same = node.op == entry["op"] and (entry["target"] is None or entry["target"] == node.target)
    if not same or _constants(given) != _constants((node.args, dict(node.kwargs))):
        raise InputError(f"the file calls {entry['name']} otherwise than the float model does: it is not the one")
    return node.target


def _constants(arguments: Any) -> Any:
    return fx.node.map_arg(arguments, lambda _: "a node")


def _check_call(
    entry: Description, target: Any, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise InputError for arguments that what is called can't take, as far as it tells before it is run."""
    op, read = entry["op"], list[fx.Node]()
    fx.node.map_arg((args, kwargs), read.append)
    if op == "output":
        fits = len(args) == 1 and not kwargs
    elif op in ("placeholder", "get_attr"):
        fits = not args and not kwargs
    else:
        called = find(root, target).forward if op == "call_module" else target
        fits = bool(read) and (isinstance(called, str) or _takes(called, args, kwargs))
    if not fits:
        raise InputError(f"the file calls {entry['name']} with arguments that it doesn't take: it is damaged")


def _takes(called: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature = inspect.signature(called)
    except ValueError:  # torch's built-in functions don't tell
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _build_meta(description: Description) -> dict[str, Any]:
    meta = decode(description)
    kinds = {"label": str, "is_tensor": bool, "shape": tuple | None}
    if not meta.keys() <= kinds.keys() or not all(isinstance(value, kinds[name]) for name, value in meta.items()):
        raise InputError(f"the file says of a node what nobody asks, {list(meta)[:4]}: it is damaged")
    if not str(meta.get("label", "")).isprintable():
        raise InputError("the file has a label that can't be printed: it is damaged")
    return dict(meta)
