"""The part of an ONNX export that stores layers: weights and biases as codes where they lie on grids.
In which type the codes of 8 bits and fewer are is chosen in onnx_types.py.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_grids import grid_of
from pytorch_quantizer.export.onnx_insert import insert_module
from pytorch_quantizer.export.onnx_modules import BYTE, SHIFT, Coded, ExportedLayer, OnGrid, Plain
from pytorch_quantizer.export.onnx_types import weight_type
from pytorch_quantizer.graph.operations import label, layer_of, tensor_inputs
from pytorch_quantizer.quantization.qtypes import IntQuantizer


def export_layers(form: ExportForm, asked: str, exact: bool) -> None:
    """Every layer becomes an ExportedLayer, its weight and bias codes where they lie on grids; as export_weight."""
    graph = form.graph
    for node in list(graph.graph.nodes):
        layer = layer_of(graph, node)
        if layer is None:
            continue
        _pad_apart(graph, node, layer)
        weight = export_weight(form, label(node), layer, asked, exact)
        graph.set_submodule(str(node.target), ExportedLayer(_unpadded(layer), weight, _bias(layer)))


def _pad_apart(graph: fx.GraphModule, node: fx.Node, layer: Any) -> None:
    """Padding that isn't by zeros becomes an operation of its own, as which it keeps codes."""
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        return
    source = tensor_inputs(node)[0]
    with graph.graph.inserting_before(node):
        sizes = list(layer._reversed_padding_repeated_twice)
        padded = graph.graph.call_function(F.pad, (source, sizes), {"mode": layer.padding_mode})
    padded.meta = {**source.meta, "label": f"{label(node)}:padded"}
    node.replace_input_with(source, padded)
    found = grid_of(graph, source)
    if found is not None:
        node.replace_input_with(padded, insert_module(graph, OnGrid(found.grid, None), padded, before=node))


def _unpadded(layer: Any) -> Any:
    """The layer without the padding that isn't by zeros."""
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        return layer
    bare = copy.copy(layer)
    bare.padding_mode, bare.padding = "zeros", tuple(0 for _ in layer.kernel_size)
    return bare


def export_weight(form: ExportForm, name: str, layer: Any, asked: str, exact: bool) -> nn.Module:
    """A layer's weight as Coded, or Plain where it has no codes; ``form`` gets to know which, by the layer's name.

    asked, exact: of onnx_types.weight_type.
    """
    quantizer, values = getattr(layer, "weight_quantizer", None), layer.weight.detach()
    if not isinstance(quantizer, IntQuantizer):
        if quantizer is not None:
            form.floats[name] = f"{quantizer.describe()} has no integer type in ONNX: dequantized weights"
        return Plain(values)
    codes = quantizer.quantize(values)
    if not torch.equal(quantizer.dequantize(codes), values):
        form.floats[name] = "the weight was moved off its grid: dequantized weights"
        return Plain(values)
    kind = f"int{2 * BYTE}" if quantizer.bits > BYTE else weight_type(asked, quantizer.bits, exact=exact)
    if quantizer.bits > BYTE:
        form.simulated[name] = f"a weight of {quantizer.bits} bits"
    form.weights[name] = kind
    return _coded(quantizer, codes, kind, name)


def _coded(quantizer: IntQuantizer, codes: Tensor, kind: str, layer: str) -> Coded:
    """Codes in the type asked for; uint8 is 128 higher, the zero point too."""
    dtypes = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16}
    shift = SHIFT if kind == "uint8" else 0
    zero_point = (quantizer.zero_point + shift).to(dtypes[kind])
    found = Coded((codes.int() + shift).to(dtypes[kind]), quantizer.scale, zero_point, quantizer.axis)
    found.layer, found.bits = layer, quantizer.bits
    return found


def _bias(layer: Any) -> nn.Module | None:
    if layer.bias is None:
        return None
    quantizer, values = getattr(layer, "bias_quantizer", None), layer.bias.detach()
    if quantizer is None:
        return Plain(values)
    codes, scale = quantizer.quantize(values), quantizer.scale
    axis = None if scale.dim() == 0 else 0
    return Coded(codes, scale, torch.zeros_like(scale, dtype=torch.int32), axis)
