"""Modules put into a graph that is rewritten for ONNX. Which ones, and where, is the rewritings' business."""

from __future__ import annotations

import re

from torch import fx, nn

from pytorch_quantizer.graph.names import free_name
from pytorch_quantizer.graph.operations import label


def add_module(graph: fx.GraphModule, module: nn.Module, name: str, *, inside: str) -> str:
    """Make ``module`` a submodule inside another, called by a name like ``name``; returns its path."""
    path = f"{inside}.{free_name(graph, re.sub(r'[^0-9a-zA-Z]', '_', name), inside=inside)}"
    graph.add_submodule(path, module)
    return path


def insert_module(graph: fx.GraphModule, module: nn.Module, source: fx.Node, *, before: fx.Node) -> fx.Node:
    """A call of a new module on ``source``, before a node; nobody reads it yet."""
    path = add_module(graph, module, f"of_{label(source)}", inside="grids")
    with graph.graph.inserting_before(before):
        called = graph.graph.call_module(path, (source,))
    called.meta = {**source.meta, "label": f"{label(source)}:{path}"}
    return called
