"""From what torch.onnx traced to the bytes of a file: names for people, metadata, 4-bit weights, the checker.
What is computed is decided in onnx_rewrite.py; what is read back, in onnx_runtime.py and onnx_report.py.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_modules import SITE, Coded, OnGrid
from pytorch_quantizer.export.onnx_packages import package

KEY = "pytorch_quantizer"  # of the model's metadata: JSON
SCOPES = "pkg.torch.onnx.name_scopes"
MOST_BYTES = 2**31 - 1  # of a protobuf message
STORAGE_BITS, INT4 = 4, "int4"
# What a layer, an arithmetic operation or a pooling becomes; what else it takes (Reshape, Cast) is beside the point.
MAIN = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Add", "Sub", "Mul", "Div", "Concat"}
MAIN |= {"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "Scan"}
MAIN |= {"MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"}


def name_nodes(model: Any, form: ExportForm) -> dict[str, dict[str, str]]:
    """Give ONNX nodes the labels of what they compute; returns name → {kind, operator}, the latter ONNX's.

    model: onnx_ir's. A layer that is called n times, or an operation that takes several nodes, is NAME, NAME@2 ….
    """
    seen: Counter[str] = Counter()
    found = {}
    for node in model.graph:
        owner = _owner(node, form)
        if owner is None or node.op_type not in MAIN:
            continue
        label, kind = owner
        seen[label] += 1
        node.name = label if seen[label] == 1 else f"{label}@{seen[label]}"
        found[node.name] = {"kind": kind, "operator": node.op_type}
    return found


def name_codes(model: Any, form: ExportForm) -> dict[str, dict[str, Any]]:
    """Name the tensors that hold activations' codes after their sites: site → {tensor, shift}; codes are shift less."""
    shifts = {m.site: m.shift for m in form.graph.modules() if isinstance(m, OnGrid) and m.site is not None}
    found = {}
    for node in model.graph:
        site = node.metadata_props.get(SITE)
        if site is not None:  # of QuantizeLinear and the Clip behind it the last counts
            found[site] = node.outputs[0]
    for site, value in found.items():
        value.name = f"{site}:codes"
    return {site: {"tensor": value.name, "shift": shifts[site]} for site, value in found.items()}


def pack_weights(model: Any, form: ExportForm) -> dict[str, str]:
    """Store weights of 4 bits and fewer as INT4, two codes in a byte; returns layer → int4 for those."""
    ir = package("onnx_ir")
    named = form.graph.named_modules()
    narrow = {f"{path}.codes": m for path, m in named if isinstance(m, Coded) and m.bits <= STORAGE_BITS}
    for node in list(model.graph):
        module = narrow.get(node.inputs[0].name) if node.op_type == "DequantizeLinear" else None
        if module is None:
            continue
        for place, part in ((0, module.codes), (2, module.zero_point)):
            name = f"{node.inputs[0].name}.{INT4}" if place == 0 else f"{node.inputs[0].name}.zero_point.{INT4}"
            node.replace_input_with(place, _int4(model, name, part.int() - module.shift))
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return {str(module.layer): INT4 for module in narrow.values()}


def _int4(model: Any, name: str, codes: Tensor) -> Any:
    """An initializer of 4-bit codes."""
    ir, ml_dtypes = package("onnx_ir"), package("ml_dtypes")
    tensor = ir.Tensor(codes.numpy().astype(ml_dtypes.int4), dtype=ir.DataType.INT4, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def serialized(model: Any, content: dict[str, Any]) -> bytes:
    """The file's bytes, checked by ONNX's checker. Raises InputError where they are more than ONNX's format holds."""
    onnx, ir = package("onnx"), package("onnx_ir")
    _drop_traces(model)
    model.metadata_props[KEY] = json.dumps(content, ensure_ascii=False)
    model.producer_name, model.producer_version = KEY, str(content["version"])
    try:
        data: bytes = ir.serde.serialize_model(model).SerializeToString()
    except ValueError as error:  # protobuf's, beyond 2 GB
        raise InputError(f"the network doesn't fit into an ONNX file of 2 GB: {first_line(error)}") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"the network takes {len(data):,} bytes, an ONNX file holds 2 GB; use fewer bits")
    onnx.checker.check_model(data, full_check=True)
    return data


def read_content(path: str | Path) -> dict[str, Any]:
    """What ``serialized`` was told. Raises InputError for a file that isn't there or wasn't written by us."""
    onnx = package("onnx")
    if not Path(path).is_file():
        raise InputError(f"{path} is not a file: check the path")
    try:
        model = onnx.load(str(path), load_external_data=False)
        content = next(entry.value for entry in model.metadata_props if entry.key == KEY)
        read: dict[str, Any] = json.loads(content)
    except Exception as error:  # protobuf's own exceptions have no common class
        raise InputError(f"{path} is no ONNX file that export_onnx wrote ({type(error).__name__})") from error
    return read


def _owner(node: Any, form: ExportForm) -> tuple[str, str] | None:
    """Label and kind of the operation that a node is part of, told by the path of the module that it was traced in."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return next((form.operations[scope] for scope in reversed(scopes) if scope in form.operations), None)


def _drop_traces(model: Any) -> None:
    """Take out what torch.onnx notes of its own work: paths of this machine, and more bytes than small weights have."""
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
