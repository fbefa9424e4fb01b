"""Copies of a network that share its tensors until something new takes a tensor's place.
A stage that replaces most weights anyway needn't copy them first; none writes into a tensor that it didn't make.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, fx, nn

CONTAINERS = (dict, OrderedDict, list, set)
ATOMS = (bool, int, float, str, type(None))
COPYING = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")  # what a class may redefine


def copy_sharing(graph: fx.GraphModule) -> fx.GraphModule:
    """A deep copy of the graph and its modules, but with the very parameters and buffers of ``graph``."""
    memo: dict[int, Any] = {id(tensor): tensor for _, _, tensor in _tensors(graph)}
    for module in graph.children():
        _copy_module(module, memo)
    return copy.deepcopy(graph, memo)


def copy_sharing_parameters(model: nn.Module) -> nn.Module:
    """A deep copy of a network with its very parameters; buffers, which a forward may change, are copied."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    return cast("nn.Module", _copy_module(model, memo))


def _copy_module(module: Any, memo: dict[int, Any]) -> Any:
    """What copy.deepcopy(module, memo) gives, without its detour by way of the dozen empty dictionaries of each."""
    kind: Any = type(module)
    if id(module) in memo or not _is_copied_by_its_attributes(kind):
        return copy.deepcopy(module, memo)
    copied = memo[id(module)] = kind.__new__(kind)
    for child in module._modules.values():
        _copy_module(child, memo)
    for name, value in vars(module).items():
        if type(value) in CONTAINERS and not value:
            vars(copied)[name] = memo.setdefault(id(value), type(value)())
        else:
            vars(copied)[name] = value if type(value) in ATOMS else copy.deepcopy(value, memo)
    return copied


def _is_copied_by_its_attributes(kind: type) -> bool:
    """Whether a class copies as nn.Module does; __setstate__ of torch.nn's only fill in what old pickles lack."""
    own = [name for name in COPYING if getattr(kind, name, None) is not getattr(nn.Module, name, None)]
    return issubclass(kind, nn.Module) and all(
        name == "__setstate__" and kind.__setstate__.__module__.startswith("torch.nn.modules.") for name in own
    )


def own_tensors(module: nn.Module, shared_with: nn.Module) -> None:
    """Give ``module`` tensors of its own wherever its lie in the memory of ``shared_with``'s; tied ones stay tied."""
    theirs = {_memory(tensor) for _, _, tensor in _tensors(shared_with)}
    memo: dict[int, Any] = {}
    for entries, name, tensor in list(_tensors(module)):
        if _memory(tensor) in theirs:
            entries[name] = copy.deepcopy(tensor, memo)


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Every parameter and buffer, tied ones each time, with the dictionary that holds it."""
    for owner in module.modules():
        for entries in (owner._parameters, owner._buffers):
            yield from ((entries, name, tensor) for name, tensor in entries.items() if tensor is not None)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
