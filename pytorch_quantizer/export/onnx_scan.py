"""Recurrent layers in an ONNX file, written out as a Scan over time steps where no operator computes them.
What a step multiplies is decided in onnx_dynamic.py; the formulas are those of graph/recurrent.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer.export.onnx_dynamic_modules import DOMAIN, OPERATOR, ScannedRecurrence, one_if_alike
from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_modules import Coded
from pytorch_quantizer.export.onnx_packages import package
from pytorch_quantizer.graph.recurrent import GATES

STEPS = {
    "LSTM": """
        a = Add (x, u)
        i, f, g, o = Split <axis = -1, num_outputs = 4> (a)
        si = Sigmoid (i)
        sf = Sigmoid (f)
        tg = Tanh (g)
        so = Sigmoid (o)
        kept = Mul (sf, c)
        new = Mul (si, tg)
        c_next = Add (kept, new)
        tc = Tanh (c_next)
        h_next = Mul (so, tc)
    """,
    "GRU": """
        rx, zx, nx = Split <axis = -1, num_outputs = 3> (x)
        ru, zu, nu = Split <axis = -1, num_outputs = 3> (u)
        ra = Add (rx, ru)
        r = Sigmoid (ra)
        za = Add (zx, zu)
        z = Sigmoid (za)
        rn = Mul (r, nu)
        na = Add (nx, rn)
        n = Tanh (na)
        rest = Sub (one, z)
        new = Mul (rest, n)
        kept = Mul (z, h)
        h_next = Add (new, kept)
    """,
    "RNN_TANH": "a = Add (x, u) h_next = Tanh (a)",
    "RNN_RELU": "a = Add (x, u) h_next = Relu (a)",
}
DYNAMIC_PRODUCT = """
    q, s, z0 = DynamicQuantizeLinear (h)
    sums = MatMulInteger (q, w, z0, w_zero)
    real = Cast <to = 1> (sums)
    scale = Mul (s, w_scale)
    u = Mul (real, scale)
"""


def write_recurrences(model: Any, form: ExportForm) -> None:
    """Put a Scan in place of each ScannedRecurrence that torch.onnx traced. model: onnx_ir's."""
    ir, found = package("onnx_ir"), []
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]:
        module: Any = form.graph.get_submodule(node.attributes["path"].as_string())
        body = ir.serde.deserialize_graph(_body(module))
        backwards = [int(module.reverse)]
        attributes = [ir.AttrGraph("body", body), ir.AttrInt64("num_scan_inputs", 1)]
        attributes += [ir.AttrInt64s(f"scan_{side}_directions", backwards) for side in ("input", "output")]
        scan = ir.Node("", "Scan", node.inputs, attributes, num_outputs=len(node.outputs))
        scan.metadata_props.update(node.metadata_props)
        for old, new in zip(node.outputs, scan.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
        found.append((node, scan))
    for node, scan in found:
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [scan], node.outputs, scan.outputs)
    model.graph.opset_imports.pop(DOMAIN, None)


def _body(module: ScannedRecurrence) -> Any:
    """One time step as an ONNX graph: (h, of an LSTM c, x) → (h_next, of an LSTM c_next, y)."""
    onnx, constants = package("onnx"), _constants(module)
    sizes = f"float[N, {module.hidden_size}]"
    parts = ["h", "c"][: 1 + (module.mode == "LSTM")]
    inputs = ", ".join(
        [*(f"{sizes} {part}" for part in parts), f"float[N, {GATES[module.mode] * module.hidden_size}] x"]
    )
    outputs = ", ".join([*(f"{sizes} {part}_next" for part in parts), f"{sizes} y"])
    product = DYNAMIC_PRODUCT if module.is_dynamic else "u = MatMul (h, w)"
    if module.bias is not None:
        product = product.replace("u = ", "u0 = ") + " u = Add (u0, b)"
    text = f"step ({inputs}) => ({outputs}) {{ {product} {STEPS[module.mode]} y = Identity (h_next) }}"
    body = onnx.parser.parse_graph(text)
    for name, values in constants.items():
        body.initializer.append(onnx.numpy_helper.from_array(values.contiguous().numpy(), name))
    return body


def _constants(module: ScannedRecurrence) -> dict[str, Tensor]:
    """What a step multiplies and adds."""
    weight: Any = module.weight
    found = {"one": torch.ones(())} if module.mode == "GRU" else {}
    if module.bias is not None:
        found["b"] = module.bias
    if module.is_dynamic:
        grid = {"w_scale": weight.scale, "w_zero": one_if_alike(weight.zero_point)}
        return found | grid | {"w": weight.codes.t()}
    return found | {"w": (_dequantized(weight) if isinstance(weight, Coded) else weight.values).t()}


def _dequantized(weight: Coded) -> Tensor:
    scale, zero_point = (
        part if part.dim() == 0 else part.unsqueeze(1) for part in (weight.scale, weight.zero_point.float())
    )
    return (weight.codes.float() - zero_point) * scale
