"""ONNX export: a quantized model as a file of QuantizeLinear and DequantizeLinear that ONNX Runtime runs in integers.
The graph is rewritten in onnx_rewrite.py; onnx_runtime.py runs the file, onnx_report.py tells what ran in integers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.onnx_file import name_codes, name_nodes, pack_weights, serialized
from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_packages import package
from pytorch_quantizer.export.onnx_repeats import compute_for_each_grid
from pytorch_quantizer.export.onnx_rewrite import export_form
from pytorch_quantizer.export.onnx_scan import write_recurrences
from pytorch_quantizer.export.onnx_trace import traced
from pytorch_quantizer.export.onnx_types import adds_exactly, check_weight_type, why
from pytorch_quantizer.export.trial import first_run
from pytorch_quantizer.graph.quantized_model import QuantizedModel

WORDS = {torch.int64, torch.int32}  # what embeddings read
NEEDED = ("onnx", "onnxscript")


@dataclass(frozen=True)
class OnnxExport:
    """What was written. path: the file; its size in bytes is ``size``.

    label: integer; simulated: some tensor's codes are wider than integer kernels read, or have a range a channel;
    dequantized-weights: some layer's weight has no integer type, or no activation is quantized; float32: nothing is;
    storage: as asked. weight_types: layer → int8, uint8, int16 or int4, how its weight is stored; why: how the type of
    8-bit weights was chosen. simulated: tensor or layer → why integer kernels don't compute it. floats: layer or tensor
    → why it is in float. What the runtime made of it is onnx_report.operator_report's to tell.
    """

    path: Path
    size: int
    label: str
    why: str
    weight_types: dict[str, str] = field(default_factory=dict)
    simulated: dict[str, str] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        counted = {kind: list(self.weight_types.values()).count(kind) for kind in sorted({*self.weight_types.values()})}
        types = ", ".join(f"{number} {kind}" for kind, number in counted.items()) or "none as codes"
        lines = [f"{self.path}: {self.size:,} bytes, {self.label}", f"weights: {types}; {self.why}"]
        lines += [f"simulated: {name}: {reason}" for name, reason in self.simulated.items()]
        lines += [f"float32: {name}: {reason}" for name, reason in self.floats.items()]
        return "\n".join(lines)


def export_onnx(
    model: QuantizedModel, path: str | Path, example: Tensor, *, weight_type: str = "auto", storage: bool = False
) -> OnnxExport:
    """Write a quantized model as ONNX (opset 21): codes as weights, QuantizeLinear and DequantizeLinear between.

    example: images [N, …] like those it will read; the batch is free in the file. weight_type: of weights of 8 bits and
    fewer. "auto" is exact on this CPU, and fast where both can be had: int8, but uint8 for 8 bits on x86 without VNNI;
    "int8" and "uint8" are taken at their word. storage: weights of 4 bits and fewer as INT4, for a smaller file.
    Tensors on ranges of each batch become DynamicQuantizeLinear, and what reads them MatMulInteger, ConvInteger or
    DynamicQuantizeLSTM; onnx_dynamic.py says where there is none.
    The file is written whole or not at all. Raises InputError for a model that isn't quantized, isn't in float32 or
    can't run on the example, quantizers that ONNX has no operator for, a network that torch.onnx can't export, a file
    beyond 2 GB, a path that can't be written, and where onnx or onnxscript is missing.
    """
    for name in NEEDED:
        package(name)
    check_weight_type(weight_type)
    _check_model(model, example)
    if storage and model.recipe.statistics != "offline":
        raise InputError(
            "storage is for models whose ranges are known; kernels that choose ranges read weights of bytes"
        )
    require_writable(path)
    exact = adds_exactly()
    ready, images = _ready(model), example.detach().cpu()
    form = export_form(ready, weight_type, exact=exact)
    first_run(ready, images[:1], "example images")
    network = traced(form, ready, images).model
    write_recurrences(network, form)
    if not storage:  # of which no kernel is in integers
        compute_for_each_grid(network)
    nodes, sites = name_nodes(network, form), name_codes(network, form)
    label = _label(model, form, storage)
    reason = why(weight_type, {*form.weights.values()}, exact=exact)
    if storage:
        form.weights |= pack_weights(network, form)
    told = {"version": metadata.version("pytorch-quantizer"), "recipe": model.recipe.name, "label": label}
    data = serialized(network, told | {"weight_type": reason, "weights": form.weights, "nodes": nodes, "sites": sites})
    write_atomically(path, data)
    floats = {site.name: str(site.reason) for site in model.sites if site.is_float} | form.floats
    return OnnxExport(Path(path), len(data), label, reason, form.weights, form.simulated, floats)


def _label(model: QuantizedModel, form: ExportForm, storage: bool) -> str:
    activations = any(site.is_activation and site.quantizer is not None for site in model.sites)
    if storage:
        return "storage"
    if not form.weights and not form.floats:
        return "simulated" if activations else "float32"
    if form.simulated:
        return "simulated"
    return "dequantized-weights" if form.floats or not activations else "integer"


def _check_model(model: Any, example: Any) -> None:
    if not isinstance(model, QuantizedModel):
        raise InputError(f"export_onnx takes a QuantizedModel (pq.quantize makes one), got {type(model).__name__}")
    if not isinstance(example, Tensor) or example.dim() < 2 or not len(example):
        got = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"export_onnx needs example images [N, …] of one image or more, got {got}")
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} | ({example.dtype} - WORDS)
    if kinds != {torch.float32}:
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise InputError(f"export_onnx takes a model and images in float32, got {named}; call model.float()")


def _ready(model: QuantizedModel) -> QuantizedModel:
    """The model, or a copy of it on the CPU and in eval mode where it is not in both."""
    elsewhere = any(tensor.device.type != "cpu" for tensor in model.state_dict().values())
    training = any(module.training for module in model.modules())
    return copy.deepcopy(model).cpu().eval() if elsewhere or training else model
