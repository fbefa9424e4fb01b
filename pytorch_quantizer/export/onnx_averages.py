"""The part of an ONNX export that turns averages into poolings that integer kernels know."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pytorch_quantizer.export.onnx_insert import insert_module
from pytorch_quantizer.export.onnx_modules import GlobalAverage
from pytorch_quantizer.graph.operations import label, module_of, operation, tensor_inputs

WHOLE: set[Any] = {nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d}
WHOLE |= {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d}
MEANS: set[Any] = {torch.mean, "mean"}


def replace_averages(graph: fx.GraphModule) -> None:
    """Means over all of an image become GlobalAveragePool, other adaptive poolings that divide evenly AveragePool."""
    for node in list(graph.graph.nodes):
        called = operation(graph, node)
        if called in WHOLE:
            _replace_adaptive(graph, node)
        elif called in MEANS:
            _replace_mean(graph, node)


def _replace_adaptive(graph: fx.GraphModule, node: fx.Node) -> None:
    source, sizes = tensor_inputs(node)[0], _image(tensor_inputs(node)[0])
    module: Any = module_of(graph, node)
    asked = module.output_size if module is not None else _argument(node, 1, "output_size", None)
    wanted = [asked] * len(sizes) if not isinstance(asked, tuple | list) else list(asked)
    if not sizes or any(isinstance(size, fx.Node) for size in wanted):
        return
    wanted = [size if want is None else want for want, size in zip(wanted, sizes, strict=True)]
    if all(want == 1 for want in wanted):
        _replace(graph, node, GlobalAverage(), source)
    elif all(size % want == 0 for want, size in zip(wanted, sizes, strict=True)):
        kernel = tuple(size // want for want, size in zip(wanted, sizes, strict=True))
        pooling: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[len(sizes) - 1]
        _replace(graph, node, pooling(kernel), source)


def _replace_mean(graph: fx.GraphModule, node: fx.Node) -> None:
    source, sizes = tensor_inputs(node)[0], _image(tensor_inputs(node)[0])
    dims, keep = _argument(node, 1, "dim", None), _argument(node, 2, "keepdim", False)
    if not sizes or not isinstance(dims, tuple | list) or any(isinstance(dim, fx.Node) for dim in dims):
        return
    rank = len(sizes) + 2
    if sorted(dim % rank for dim in dims) != list(range(2, rank)):
        return
    whole = _replace(graph, node, GlobalAverage(), source)
    if not keep:
        with graph.graph.inserting_after(whole):
            flat = graph.graph.call_function(torch.flatten, (whole, 1))
        flat.meta = {**node.meta, "label": f"{label(node)}:flat"}
        whole.replace_all_uses_with(flat, delete_user_cb=lambda user: user is not flat)


def _replace(graph: fx.GraphModule, node: fx.Node, module: nn.Module, source: fx.Node) -> fx.Node:
    """Let a module on one tensor take a node's place and name."""
    called = insert_module(graph, module, source, before=node)
    called.meta = dict(node.meta)
    node.replace_all_uses_with(called)
    graph.graph.erase_node(node)
    return called


def _image(node: fx.Node) -> list[int]:
    """The sizes of a tensor behind batch and channels; none where they aren't known."""
    shape = node.meta.get("shape") or ()
    return [int(size) for size in shape[2:]]


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
