"""What is wrong with a tensor that integers compute otherwise than the simulation, by more than ties: grids and values
that integer kernels take for granted, and that a model changed by hand may not have. agreement.py compares the codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from pytorch_quantizer.export.agreement import tensor_name
from pytorch_quantizer.graph.operations import Layer, label, layer_of, module_of, tensor_inputs
from pytorch_quantizer.graph.place import producers
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import scale_of_outputs
from pytorch_quantizer.quantization.qtypes import IntQuantizer, Quantizer

INT16 = 2**15 - 1


@torch.no_grad()
def faults(model: QuantizedModel, name: str | None, images: Tensor) -> list[str]:
    """What of a tensor's making is not as integers have it, a phrase each; empty where nothing is found.

    name: the tensor's, None for the model's outputs. images: a few, [N, …]: whether the values that it is computed from
    lie on their grids shows when the model runs.
    """
    (node,) = (node for node in model.graph.nodes if _is_named(model, node, name))
    reads, layers = _origins(model, node)
    off = _off_grid(model, images)
    found = [
        f"the simulation's values of {read} do not lie on its grid" for read in map(tensor_name, reads) if read in off
    ]
    return [*found, *(fault for layer in layers for fault in _layer_faults(model, *layer))]


def saturating(model: QuantizedModel, name: str, weight_types: Mapping[str, str]) -> list[str]:
    """The layers that a tensor is computed in, of those whose sums can saturate without VNNI, a phrase each.

    Such kernels add products u8·s8 up in pairs of 16 bits; two of a channel's weights times the highest code of what
    the layer reads may be more. weight_types: by layer, as ONNX stores them: int8 or another.
    """
    (node,) = (node for node in model.graph.nodes if _is_named(model, node, name))
    _, layers = _origins(model, node)
    return [
        f"{label(node)}'s sums u8·s8 can saturate at 16 bits"
        for node, layer in layers
        if weight_types.get(label(node)) == "int8" and _highest_pair(model, node, layer) > INT16
    ]


def _highest_pair(model: QuantizedModel, node: fx.Node, layer: Layer) -> int:
    """The most that two products of one output channel come to, where both codes read are the highest."""
    weight, read = getattr(layer, "weight_quantizer", None), _read(model, node)
    if not isinstance(weight, IntQuantizer) or read is None:
        return 0
    highest = read.qmax - min(read.qmin, 0)  # codes of a signed grid are stored 128 higher
    codes = weight.quantize(layer.weight).long()
    channels = codes.movedim(weight.axis or 0, 0).flatten(1)
    most = [part.clamp(min=0).topk(min(2, channels.shape[1])).values.sum(1).max() for part in (channels, -channels)]
    return highest * int(max(most))


def _read(model: QuantizedModel, node: fx.Node) -> IntQuantizer | None:
    """The grid that a layer reads."""
    (source,) = producers(model, tensor_inputs(node)[0])
    quantizer = _quantizer(model, source)
    return quantizer if isinstance(quantizer, IntQuantizer) else None


def _is_named(model: QuantizedModel, node: fx.Node, name: str | None) -> bool:
    if name is None:
        return node.op == "output"
    return _quantizer(model, node) is not None and tensor_name(node) == name


def _origins(model: QuantizedModel, node: fx.Node) -> tuple[list[fx.Node], list[tuple[fx.Node, Layer]]]:
    """The quantizers whose tensors one is computed from, and the layers in between."""
    reads, layers, ahead = dict[fx.Node, None](), dict[fx.Node, Layer](), tensor_inputs(node)
    while ahead:
        source = ahead.pop()
        if _quantizer(model, source) is not None:
            reads[source] = None
            continue
        layer = layer_of(model, source)
        if layer is not None:
            layers[source] = layer
        ahead += tensor_inputs(source)
    return list(reads), list(layers.items())


def _layer_faults(model: QuantizedModel, node: fx.Node, layer: Layer) -> Iterator[str]:
    weight, bias = getattr(layer, "weight_quantizer", None), getattr(layer, "bias_quantizer", None)
    if isinstance(weight, IntQuantizer):
        apart = (layer.weight - weight(layer.weight)).abs().max()
        if apart > 0:
            yield f"{label(node)}'s weights lie up to {float(apart):.3g} off their grid"
    if bias is None or layer.bias is None or not isinstance(weight, IntQuantizer):
        return
    if not torch.equal(bias(layer.bias), layer.bias):
        yield f"{label(node)}'s bias does not lie on its grid"
    read = _read(model, node)
    if read is not None:
        sums = read.scale * scale_of_outputs(layer, weight)
        if not torch.equal(sums.expand_as(bias.scale), bias.scale):
            most = float((bias.scale / sums).log().abs().max().exp())
            yield f"{label(node)}'s bias lies on another grid than its sums s_x·s_w, by a factor of up to {most:.3g}"


def _quantizer(model: QuantizedModel, node: fx.Node) -> Quantizer | None:
    module = module_of(model, node)
    return module if isinstance(module, Quantizer) else None


class _GridCheck(fx.Interpreter):
    """Simulates, and notes the tensors whose values are not (q − z)·s of their codes."""

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__(model)
        self.model, self.off = model, set[str]()

    def run_node(self, n: fx.Node) -> Any:
        value, quantizer, source = super().run_node(n), _quantizer(self.model, n), n.args[0] if n.args else None
        if quantizer is not None and isinstance(source, fx.Node):
            expected = quantizer.dequantize(quantizer.quantize(self.env[source]))
            self.off |= set() if torch.equal(value, expected) else {tensor_name(n)}
        return value


def _off_grid(model: QuantizedModel, images: Tensor) -> set[str]:
    check = _GridCheck(model)
    check.run(images)
    return check.off
