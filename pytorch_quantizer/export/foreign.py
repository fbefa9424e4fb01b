"""What a checkpoint takes from the float model: modules and functions that are on no list, which a file can't bring.
The model given must be the one that was quantized: by names, shapes and the digest of its graph (graph/digest.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.digest import network_digest

ANOTHER = "the model given is not the one that this file was made from"


@dataclass(frozen=True)
class Foreign:
    """modules: by path. nodes: by name, those of the float network's graph that call foreign modules and functions."""

    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    nodes: Mapping[str, fx.Node] = field(default_factory=dict)


def find_foreign(content: Mapping[str, Any], model: nn.Module | None) -> Foreign:
    """What the description asks for, from ``model``, which is copied; where it is given it is checked in any case.

    Raises InputError where the model is missing, is none or another network.
    """
    modules = [path for path, module in content["modules"].items() if module is None]
    functions = [entry["name"] for entry in content["graph"] if entry["target"] is None]
    if model is None:
        if modules or functions:
            named = ", ".join([*modules, *functions][:3])
            raise InputError(
                f"holds {len(modules) + len(functions)} module(s) or function(s) that are not torch's own ({named}): "
                "give the float model it was made from, pq.load(path, model=float_model)"
            )
        return Foreign()
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be the float network, an nn.Module, got {type(model).__name__}")
    calls = functions + [entry["name"] for entry in content["graph"] if entry["target"] in {*modules}]
    graph = capture(model, share_parameters=True).graph
    own, nodes = dict(graph.named_modules()), {node.name: node for node in graph.graph.nodes}
    missing = [name for name in modules if name not in own] + [name for name in calls if name not in nodes]
    if missing:
        raise InputError(f"{ANOTHER}: it has no {missing[0]!r}")
    if content["network"] not in (None, network_digest(graph)):
        raise InputError(f"{ANOTHER}: its layers, their shapes or their order are others")
    return Foreign({path: own[path] for path in modules}, {name: nodes[name] for name in calls})
