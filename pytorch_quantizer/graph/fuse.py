"""The graph that a quantized model runs: quantizers do the ReLU and the addition before them in their own pass.
The model's own graph keeps every operation apart; both give the same results to the bit.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from pytorch_quantizer.graph.operations import (
    computes_afresh,
    is_relu,
    is_tensor,
    module_of,
    operation,
    relu_ceiling,
    tensor_inputs,
)
from pytorch_quantizer.quantization.qtypes import Quantizer

PLAIN_ADDITIONS = {operator.add, torch.add, "add"}


def copy_of(graph: Graph) -> Graph:
    """The same graph, owned by no module."""
    copied = Graph(tracer_cls=graph._tracer_cls)
    copied.output(copied.graph_copy(graph, {}))
    copied._codegen = copy.deepcopy(graph._codegen)
    return copied


def fused(model: GraphModule) -> Graph:
    """A copy of the model's graph in which each quantizer takes over what it can and nobody else reads."""
    graph = copy_of(model.graph)
    for node in list(graph.nodes):
        quantizer = _quantizer_of(model, node)
        if quantizer is None:
            continue
        if quantizer.takes_relu:
            _take_relu(model, node)
        if quantizer.takes_addition:
            _take_addition(model, node)
        source = node.args[0]
        if isinstance(source, Node) and _is_free(model, source):
            node.kwargs = {**node.kwargs, "inplace": True}
    return graph


def _quantizer_of(model: GraphModule, node: Node) -> Quantizer | None:
    module = module_of(model, node)
    return module if isinstance(module, Quantizer) else None


def _take_relu(model: GraphModule, node: Node) -> None:
    """Of an online quantizer, which sees the ReLU's input to choose its range, it becomes the only one."""
    relu, observed = node.args[0], node.kwargs.get("observed")
    if not isinstance(relu, Node) or not _is_plain_relu(model, relu) or len(relu.users) > 1 or _has_hooks(model, relu):
        return
    source = tensor_inputs(relu)[0]
    if observed in (None, source):
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "observed"}
        _replace(node, relu, source, relu=True)


def _is_plain_relu(model: GraphModule, node: Node) -> bool:
    return is_relu(model, node) and relu_ceiling(model, node) is None


def _take_addition(model: GraphModule, node: Node) -> None:
    addition = node.args[0]
    if not isinstance(addition, Node) or operation(model, addition) not in PLAIN_ADDITIONS or len(addition.users) > 1:
        return
    operands = [operand for operand in addition.args if isinstance(operand, Node) and is_tensor(operand)]
    if len(operands) != 2 or len(addition.args) != 2 or addition.kwargs:
        return
    first, second = sorted(operands, key=lambda operand: not _is_free(model, operand))
    _replace(node, addition, first, other=second)


def _replace(node: Node, taken: Node, source: Node, **what: Any) -> None:
    """Let a quantizer read ``source`` instead of ``taken``, an operation on it, which it does itself."""
    node.args, node.kwargs = (source,), {**node.kwargs, **what}
    node.graph.erase_node(taken)


def _is_free(model: GraphModule, node: Node) -> bool:
    """Whether a tensor may be overwritten: made for its one reader, and no hook has been given it."""
    if len(node.users) > 1 or _has_hooks(model, node):
        return False
    return computes_afresh(model, node) or _quantizer_of(model, node) is not None


def _has_hooks(model: GraphModule, node: Node) -> bool:
    module = module_of(model, node)
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)
