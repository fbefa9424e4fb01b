"""The part of an ONNX export that lets operations be told by their paths: whose label and which kind each has.
ONNX nodes get their names in onnx_file.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pytorch_quantizer.export.onnx_dynamic_modules import DynamicLSTM, ScannedRecurrence, Sums
from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_insert import add_module
from pytorch_quantizer.export.onnx_modules import ExportedLayer, GlobalAverage, Operation
from pytorch_quantizer.graph.operations import (
    ADDITIONS,
    AVERAGES,
    CONCATENATIONS,
    MATMULS,
    PRODUCTS,
    SUBTRACTIONS,
    label,
    module_of,
    operation,
)

MAXIMA: set[Any] = {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d}
MAXIMA |= {torch.max_pool1d, torch.max_pool2d, torch.max_pool3d}
KINDS: dict[str, set[Any]] = {
    "subtraction": SUBTRACTIONS,
    "addition": ADDITIONS,
    "concatenation": CONCATENATIONS,
    "product": PRODUCTS,
    "matrix product": MATMULS,
    "average": AVERAGES,
    "maximum": MAXIMA,
}


def name_operations(form: ExportForm) -> None:
    """Give every function that counts a module's path, and note whose label and which kind each path has."""
    graph = form.graph
    for node in list(graph.graph.nodes):
        kind = _kind(graph, node)
        if kind is None:
            continue
        if module_of(graph, node) is None:
            node.target = add_module(graph, Operation(node.target), label(node), inside="operations")
            node.op = "call_module"
        form.operations.setdefault(str(node.target), (label(node), kind))


def _kind(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """What a node counts as in the report, None where it doesn't."""
    module, called = module_of(graph, node), operation(graph, node)
    if isinstance(module, ExportedLayer):
        return "linear" if isinstance(module.layer, nn.Linear) else "convolution"
    if isinstance(module, GlobalAverage):
        return "average"
    if isinstance(module, Sums | DynamicLSTM | ScannedRecurrence):
        return module.kind
    return next((kind for kind, operations in KINDS.items() if called in operations), None)
