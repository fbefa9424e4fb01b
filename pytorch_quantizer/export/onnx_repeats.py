"""The part of an ONNX export that computes a tensor of two grids, a narrow and a wide one, once for each.

Integer kernels put what they compute on one grid, and a tensor on one grid can't be had from the other: it would be
rounded twice. This works on what torch.onnx traced, since its optimizer would merge the two again.
"""

from __future__ import annotations

from typing import Any

from pytorch_quantizer.export.onnx_packages import package

LAYERS = {"Conv", "ConvTranspose", "Gemm"}
ENTRY, WEIGHTS = "QuantizeLinear", "DequantizeLinear"


def compute_for_each_grid(model: Any) -> None:
    """Repeat each layer and addition whose result only QuantizeLinear read, several of them, for each but the first.

    model: onnx_ir's. ONNX Runtime does once what has the same inputs: an addition's repetition has them the other way
    round, a layer's has a weight of its own.
    """
    for node in list(model.graph):
        readers = [use.node for use in node.outputs[0].uses()] if node.op_type in {*LAYERS, "Add"} else []
        if len(readers) < 2 or any(reader.op_type != ENTRY for reader in readers):
            continue
        for number, reader in enumerate(readers[1:], 2):
            inputs = _own_weight(model, node, number) if node.op_type in LAYERS else node.inputs[::-1]
            reader.replace_input_with(0, _repeated(model, node, inputs).outputs[0])


def _own_weight(model: Any, layer: Any, number: int) -> list[Any]:
    """A layer's inputs, its weight once more among them; of a weight in float the same, which has no integer kernel."""
    weight = layer.inputs[1].producer()
    if weight is None or weight.op_type != WEIGHTS:
        return list(layer.inputs)
    ir, codes = package("onnx_ir"), weight.inputs[0]
    name = f"{codes.name}@{number}"
    again = ir.Value(name=name, type=codes.type, shape=codes.shape, const_value=codes.const_value)
    model.graph.register_initializer(again)
    dequantized = _repeated(model, weight, [again, *weight.inputs[1:]]).outputs[0]
    return [layer.inputs[0], dequantized, *layer.inputs[2:]]


def _repeated(model: Any, node: Any, inputs: list[Any]) -> Any:
    """The same node on other inputs, right before it in the graph."""
    ir = package("onnx_ir")
    again = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=1)
    again.metadata_props.update(node.metadata_props)
    [output] = again.outputs
    output.type, output.shape = node.outputs[0].type, node.outputs[0].shape
    model.graph.insert_before(node, again)
    return again
