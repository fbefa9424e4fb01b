"""Copies of a network that share its tensors until something new takes a tensor's place.
A stage that replaces most weights anyway needn't copy them first; none writes into a tensor that it didn't make.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn


def copy_sharing(graph: fx.GraphModule) -> fx.GraphModule:
    """A deep copy of the graph and its modules, but with the very parameters and buffers of ``graph``."""
    memo: dict[int, Any] = {id(tensor): tensor for _, _, tensor in _tensors(graph)}
    return copy.deepcopy(graph, memo)


def own_tensors(module: nn.Module, shared_with: nn.Module) -> None:
    """Give ``module`` tensors of its own wherever it has those of ``shared_with``; tied ones stay tied."""
    theirs = {id(tensor) for _, _, tensor in _tensors(shared_with)}
    memo: dict[int, Any] = {}
    for entries, name, tensor in list(_tensors(module)):
        if id(tensor) in theirs:
            entries[name] = copy.deepcopy(tensor, memo)


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Every parameter and buffer, tied ones each time, with the dictionary that holds it."""
    for owner in module.modules():
        for entries in (owner._parameters, owner._buffers):
            yield from ((entries, name, tensor) for name, tensor in entries.items() if tensor is not None)
