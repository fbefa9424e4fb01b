"""The part of an ONNX export whose tensors take their range from each batch: what stands for quantizers and readers.
The modules are onnx_dynamic_modules.py's; where tensors with known ranges enter their grids is onnx_grids.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.onnx_dynamic_modules import (
    Dequantized,
    DynamicCodes,
    DynamicLSTM,
    Rescaled,
    ScannedRecurrence,
    Sums,
    one_if_alike,
)
from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_insert import add_module
from pytorch_quantizer.export.onnx_modules import BYTE, Coded
from pytorch_quantizer.graph.operations import TRANSPOSED, Layer, label, layer_nodes, layer_of, module_of, recurrence_of
from pytorch_quantizer.quantization.qtypes.online_quantizer import OnlineQuantizer

READS_VALUES = "what it reads was made of values on a range of their own, not of codes"
Stored = Callable[[str, nn.Module], nn.Module]  # a layer's name and the layer → Coded or Plain, as which it is stored


def dynamic_form(form: ExportForm, stored: Stored) -> None:
    """Rewrite what takes its range from each batch, and every recurrence, for torch.onnx to trace.

    Raises InputError for ranges that DynamicQuantizeLinear doesn't choose.
    """
    graph, calls = form.graph, dict[str, list[fx.Node]]()
    for node in graph.graph.nodes:
        if recurrence_of(graph, node) is not None:
            calls.setdefault(str(node.target), []).append(node)
    for nodes in calls.values():
        _recurrence(form, nodes, stored)
    readers = _Readers(form, stored)
    ranged = [node for node in graph.graph.nodes if _is_ranged(graph, node)]
    for node in ranged:
        node.kwargs = {}  # the range that a ReLU's output has, whatever it is chosen by
        graph.set_submodule(str(node.target), DynamicCodes())
        for reader in list(node.users):
            readers.rewrite(node, reader)
    if ranged:
        _name_what_reads_values(form)


def _name_what_reads_values(form: ExportForm) -> None:
    """Note the layers with integer weights that are left: between them and a tensor's codes lies another operation."""
    for node, layer in layer_nodes(form.graph):
        if hasattr(layer, "weight_quantizer"):
            form.simulated.setdefault(label(node), READS_VALUES)


# --- layers ----------------------------------------------------------------------------------------------------------


class _Readers:
    """What reads tensors on their own range, rewritten to read codes; a layer that is called several times once."""

    def __init__(self, form: ExportForm, stored: Stored) -> None:
        self.form, self.graph, self.stored = form, form.graph, stored
        self.made: dict[str, tuple[str, str] | None] = {}  # by path of a layer

    def rewrite(self, node: fx.Node, reader: fx.Node) -> None:
        """Let a reader take codes, or what they stand for where no kernel does."""
        paths = self._paths(reader)
        if paths is None:
            values = self._called(self._added(Dequantized()), node, before=reader)
            reader.replace_input_with(node, values)
            return
        sums = self._called(paths[0], node, before=reader)
        result = self._called(paths[1], sums, node, before=reader)
        sums.meta, result.meta = dict(reader.meta), dict(reader.meta)
        reader.replace_all_uses_with(result)
        self.graph.graph.erase_node(reader)

    def _paths(self, reader: fx.Node) -> tuple[str, str] | None:
        """Where the Sums and the Rescaled of a layer are; None for what reads no codes."""
        layer, path = layer_of(self.graph, reader), str(reader.target)
        if layer is None:
            return None
        if path not in self.made:
            self.made[path] = self._make(label(reader), layer)
        return self.made[path]

    def _make(self, name: str, layer: Layer) -> tuple[str, str] | None:
        weight = self.stored(name, layer)
        obstacle = _obstacle(layer, weight)
        if isinstance(weight, Coded) and obstacle is None:
            trailing = 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
            return self._added(Sums(layer, weight)), self._added(Rescaled(weight, layer.bias, trailing))
        if isinstance(weight, Coded):
            self.form.simulated[name] = str(obstacle)
        return None

    def _added(self, module: nn.Module) -> str:
        return add_module(self.graph, module, type(module).__name__.lower(), inside="dynamic")

    def _called(self, path: str, *sources: fx.Node, before: fx.Node) -> fx.Node:
        with self.graph.graph.inserting_before(before):
            called = self.graph.graph.call_module(path, sources)
        called.meta = dict(sources[0].meta)
        return called


def _obstacle(layer: Layer, weight: nn.Module) -> str | None:
    """Why no integer kernel reads what a layer does, None where one does."""
    if not isinstance(weight, Coded) or not _are_bytes(weight):
        return "no integer kernel reads its weight beside ranges of each batch"
    if isinstance(layer, TRANSPOSED):
        return "ONNX has no transposed convolution of integers"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"no integer kernel pads by {layer.padding_mode} and takes ranges of each batch"
    if not isinstance(layer, nn.Linear) and one_if_alike(weight.zero_point).dim():
        return "ConvInteger takes one zero point for all channels: set weight_symmetric"
    return None


# --- recurrences -----------------------------------------------------------------------------------------------------


def _recurrence(form: ExportForm, calls: list[fx.Node], stored: Stored) -> None:
    """Let an LSTM on ranges of its own be ONNX Runtime's operator, and every other recurrence a Scan."""
    graph, name, path = form.graph, label(calls[0]), str(calls[0].target)
    layer = recurrence_of(graph, calls[0])
    assert layer is not None
    weight, state = stored(name, layer), layer._modules.get("state_quantizer")
    if isinstance(state, OnlineQuantizer):
        _check(f"{name}:state", state)
    elif isinstance(weight, Coded):
        form.floats[name] = "its state has no range: dequantized weights"
    linear = _linear(graph, calls) if layer.mode == "LSTM" and state is not None else None
    from_input = None if linear is None else stored(label(_argument(calls[0])), linear)
    if linear is None or not _are_bytes(from_input, weight):
        graph.set_submodule(path, ScannedRecurrence(layer, weight, path=path))
        return
    graph.set_submodule(path, DynamicLSTM(layer, cast("Coded", from_input), cast("Coded", weight), linear.bias))
    for node in calls:
        _read_sequence(graph, node)


def _linear(graph: fx.GraphModule, calls: list[fx.Node]) -> nn.Linear | None:
    """The layer before a recurrence, if at each call it reads a tensor on its own range, and nobody else reads it."""
    for node in calls:
        linear = _argument(node)
        if len(linear.users) > 1 or not _is_ranged(graph, _argument(linear)):
            return None
    found = module_of(graph, _argument(calls[0]))
    return found if isinstance(found, nn.Linear) else None


def _read_sequence(graph: fx.GraphModule, node: fx.Node) -> None:
    """Let a recurrence read what its linear layer reads, before that is quantized."""
    linear = _argument(node)
    quantized = _argument(linear)
    node.replace_input_with(linear, _argument(quantized))
    for unread in (linear, quantized):
        if not unread.users:
            graph.graph.erase_node(unread)


# --- ranges ----------------------------------------------------------------------------------------------------------


def _is_ranged(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node puts a tensor on its own range, one that ONNX chooses. Raises InputError where it is another."""
    quantizer = module_of(graph, node)
    if isinstance(quantizer, OnlineQuantizer):
        _check(label(node).removesuffix(":quantized"), quantizer)
    return isinstance(quantizer, OnlineQuantizer)


def _check(name: str, quantizer: OnlineQuantizer) -> None:
    """Raise InputError where ONNX's operator would lay another grid than this quantizer."""
    fixed = quantizer.domain.support == "unit"
    same = quantizer.clip == "minmax" and not quantizer.symmetric and quantizer.axis is None and not fixed
    if not same or quantizer.bits != BYTE or quantizer.rounding != "half_even":
        raise InputError(
            f"{name} is {quantizer.describe()} with a range that ONNX doesn't choose from each batch: it knows 8 bits, "
            "affine, per tensor, minmax; quantize with statistics: dynamic and deployable: true"
        )


def _are_bytes(*weights: nn.Module | None) -> bool:
    """Whether weights are stored as codes that integer kernels read."""
    return all(isinstance(weight, Coded) and weight.codes.element_size() == 1 for weight in weights)


def _argument(node: fx.Node) -> fx.Node:
    """What a module is called with first."""
    found = node.args[0]
    assert isinstance(found, fx.Node)
    return found
