"""A simulated model rewritten into the form that torch.onnx exports and integer kernels recognise; the same results.

Why each rewriting changes no code: putting a tensor on a grid, x ↦ q(x), is monotone, leaves alone what lies on the
grid (zero does), and works element by element. So

- q(min(max(x, 0), c)) = min(max(q(x), z), q(c)): a ReLU, with a ceiling c or without, is limits of the codes;
- q(f(x)) = f(q(x)) for every f that takes its results from among the values of x and zero in an order-preserving way:
  moving, repeating, padding with zeros, the largest of several. So the grid may be entered before f, where the layer
  is, and what leaves f lies on it: quantizing it anew changes nothing and tells the runtime so;
- a concatenation is such an f of several tensors: a grid behind it serves each of them before it.
"""

from __future__ import annotations

import copy
import operator
import re
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.onnx_dynamic import dynamic_form
from pytorch_quantizer.export.onnx_dynamic_modules import DynamicLSTM, ScannedRecurrence, Sums
from pytorch_quantizer.export.onnx_modules import (
    BYTE,
    SHIFT,
    Coded,
    ExportedLayer,
    GlobalAverage,
    Limits,
    OnGrid,
    Operation,
    Plain,
)
from pytorch_quantizer.export.onnx_types import weight_type
from pytorch_quantizer.export.requantize import codes_of
from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.fuse import PLAIN_ADDITIONS, copy_of
from pytorch_quantizer.graph.names import free_name
from pytorch_quantizer.graph.operations import (
    ADDITIONS,
    AVERAGES,
    CONCATENATIONS,
    MATMULS,
    PRODUCTS,
    SUBTRACTIONS,
    is_collection,
    is_relu,
    is_tensor,
    keeps_values,
    kept_operands,
    label,
    layer_of,
    module_of,
    operation,
    relu_ceiling,
    tensor_inputs,
)
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.qtypes import IntQuantizer, Quantizer

ROUNDING = "half_even"
WHOLE: set[Any] = {nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d}
WHOLE |= {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d}
MEANS: set[Any] = {torch.mean, "mean"}
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


@dataclass
class ExportForm:
    """What is exported. graph: traced by torch.onnx; its modules' paths are what ONNX nodes can be told by.

    operations: path of a layer, an arithmetic operation or a pooling → its label and kind. weights: layer → the type
    that its weight is stored in. simulated: tensor or layer → why no integer kernel computes it. floats: layer → why
    its weight is stored in float32.
    """

    graph: fx.GraphModule
    operations: dict[str, tuple[str, str]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    simulated: dict[str, str] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)


def export_form(model: QuantizedModel, asked: str, *, exact: bool) -> ExportForm:
    """The model in the form to export; it shares no module with ``model`` that it changes.

    asked, exact: of onnx_types.weight_type. Raises InputError for quantizers that ONNX can't say.
    """
    form = ExportForm(fx.GraphModule(model, copy_of(model.graph)))
    _averages(form.graph)
    dynamic_form(form, lambda name, layer: _weight(form, name, layer, asked, exact))
    _quantizers(form)
    for node in _on_grids(form.graph):
        _enter_earlier(form.graph, node)
    _add_for_each_grid(form.graph)
    _repeat_grids(form.graph)
    _layers(form, asked, exact)
    _name_operations(form)
    form.graph.graph.eliminate_dead_code()
    for node in form.graph.graph.nodes:
        node.meta = {}  # torch.export would tell operations by the module paths of the first trace
    form.graph.recompile()
    return form


# --- activations -----------------------------------------------------------------------------------------------------


def _quantizers(form: ExportForm) -> None:
    """Every quantizer becomes an OnGrid."""
    graph = form.graph
    for node in list(graph.graph.nodes):
        quantizer = module_of(graph, node)
        if isinstance(quantizer, nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif isinstance(quantizer, Quantizer):
            name = label(node).removesuffix(":quantized")
            found = on_grid(name, quantizer)
            graph.set_submodule(str(node.target), found)
            if found.grid.axis is not None:
                form.simulated[name] = "a range a channel"
            elif not found.is_narrow:
                form.simulated[name] = f"{found.grid.bits} bits"


def on_grid(name: str, quantizer: Quantizer) -> OnGrid:
    """What stands for an activation's quantizer. Raises InputError where ONNX's operators can't compute it."""
    if not quantizer.needs_statistics:
        raise InputError(f"{name} takes its range from each batch; for ONNX quantize with statistics: offline")
    if not isinstance(quantizer, IntQuantizer):
        raise InputError(f"{name} is {quantizer.describe()}, which ONNX has no operator for; use int types")
    if quantizer.rounding != ROUNDING:
        raise InputError(f"{name} rounds {quantizer.rounding}, ONNX {ROUNDING}; quantize with rounding: {ROUNDING}")
    return OnGrid(quantizer.qparams, (quantizer.qmin, quantizer.qmax), name)


def _on_grids(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if _grid_of(graph, node) is not None]


def _grid_of(graph: fx.GraphModule, node: fx.Node) -> OnGrid | None:
    module = module_of(graph, node)
    return module if isinstance(module, OnGrid) else None


def _enter_earlier(graph: fx.GraphModule, node: fx.Node) -> None:
    """Let a tensor enter its grid where its values are computed, the ReLUs before become limits of its codes."""
    found = _grid_of(graph, node)
    if found is None or found.grid.axis is not None:
        return
    before: Any = node.args[0]
    source, limits = _without_relus(graph, before, found)
    node.args = (source,)
    _drop_unread(graph, before)
    found.limit(limits)
    if found.is_narrow and _push(graph, node, source, found):
        found.limit(None)


def _without_relus(graph: fx.GraphModule, source: Any, found: OnGrid) -> tuple[fx.Node, Limits]:
    """What the ReLUs before a tensor read, and the limits that they and the grid set its codes."""
    low, high = found.limits or (found.grid.qmin, found.grid.qmax)
    while _is_clamp(graph, source):
        ceiling = relu_ceiling(graph, source)
        low = max(low, int(found.grid.zero_point))
        high = high if ceiling is None else min(high, _code(ceiling, found))
        source = tensor_inputs(source)[0]
    return source, (low, max(low, high))


def _drop_unread(graph: fx.GraphModule, node: fx.Node) -> None:
    """Take ReLUs out that became limits of codes, as far as nobody else reads them."""
    while not node.users and _is_clamp(graph, node):
        source = tensor_inputs(node)[0]
        graph.graph.erase_node(node)
        node = source


def _is_clamp(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a ReLU with one ceiling, or none."""
    return is_relu(graph, node) and operation(graph, node) is not ChannelClippedReLU


def _code(value: float, found: OnGrid) -> int:
    return int(codes_of(torch.tensor(value) / found.grid.scale, found.grid))


def _push(graph: fx.GraphModule, reader: fx.Node, source: fx.Node, found: OnGrid) -> bool:
    """Put what leads to ``reader`` on its grid before value-keeping operations that nobody else reads.

    Returns whether all that ``reader`` gets lies on the grid then.
    """
    if len(source.users) > 1 or is_collection(source):
        return False
    if operation(graph, source) in CONCATENATIONS:
        pushed = [_push_or_enter(graph, source, operand, found) for operand in tensor_inputs(source)]
        return all(pushed)
    if operation(graph, source) is ChannelClippedReLU:
        _push_or_enter(graph, source, tensor_inputs(source)[0], found)
        return False  # its ceilings need not lie on the grid
    if not keeps_values(graph, source):
        return False
    return _push_or_enter(graph, source, kept_operands(graph, source)[0], found)


def _push_or_enter(graph: fx.GraphModule, reader: fx.Node, operand: fx.Node, found: OnGrid) -> bool:
    """The same for one operand of a value-keeping operation, entering the grid right here where not earlier."""
    other = _grid_of(graph, _origin(graph, operand))
    if other is not None:
        return other.grid is found.grid
    if is_collection(operand) or len(operand.users) > 1:
        return False
    own = OnGrid(found.grid, found.limits)
    source, limits = _without_relus(graph, operand, own) if len(operand.users) == 1 else (operand, own.limits)
    own.limit(limits)
    entered = _insert(graph, own, source, before=reader)
    reader.replace_input_with(operand, entered)
    _drop_unread(graph, operand)
    if _push(graph, entered, source, own):
        own.limit(None)
    return True


def _origin(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """What value-keeping operations took a tensor's values from."""
    while keeps_values(graph, node):
        node = kept_operands(graph, node)[0]
    return node


def _insert(graph: fx.GraphModule, module: nn.Module, source: fx.Node, *, before: fx.Node) -> fx.Node:
    """A call of a new module on ``source``, before a node; nobody reads it yet."""
    path = f"grids.{free_name(graph, 'of_' + re.sub(r'[^0-9a-zA-Z]', '_', label(source)), inside='grids')}"
    graph.add_submodule(path, module)
    with graph.graph.inserting_before(before):
        called = graph.graph.call_module(path, (source,))
    called.meta = {**source.meta, "label": f"{label(source)}:{path}"}
    return called


def _add_for_each_grid(graph: fx.GraphModule) -> None:
    """Let an addition whose result has two grids, a narrow and a wide one, be done for each: integer kernels know one.

    The second has its operands the other way round, or the runtime would see that both are the same, and do it once.
    """
    for node in list(graph.graph.nodes):
        readers = list(node.users)
        if operation(graph, node) not in PLAIN_ADDITIONS or len(node.args) != 2 or node.kwargs:
            continue
        if len(readers) == 2 and len(tensor_inputs(node)) == 2 and all(_grid_of(graph, reader) for reader in readers):
            with graph.graph.inserting_after(node):
                again = graph.graph.call_function(operator.add, node.args[::-1])
            again.meta = dict(node.meta)
            readers[1].replace_input_with(node, again)


def _repeat_grids(graph: fx.GraphModule) -> None:
    """Quantize anew what a value-keeping operation leaves of a tensor on a grid, so that it is run on codes."""
    grids: dict[fx.Node, OnGrid] = {}
    for node in list(graph.graph.nodes):
        found = _grid_of(graph, node) or _kept_grid(graph, node, grids)
        if found is None:
            continue
        grids[node] = found
        if _grid_of(graph, node) is None and not is_collection(node) and _is_read(graph, node):
            users = [user for user in node.users if _grid_of(graph, user) is None]
            again = _insert(graph, OnGrid(found.grid, None), node, before=node.next)
            grids[again] = found
            for user in users:
                user.replace_input_with(node, again)


def _kept_grid(graph: fx.GraphModule, node: fx.Node, grids: dict[fx.Node, OnGrid]) -> OnGrid | None:
    """The grid that a value-keeping operation's result lies on, of bytes and one for all channels."""
    if not is_tensor(node) or not keeps_values(graph, node) or not tensor_inputs(node):
        return None
    found = grids.get(kept_operands(graph, node)[0])
    return found if found is not None and found.is_narrow and found.grid.axis is None else None


def _is_read(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether anyone but the network's output reads a tensor, and not only to put it on a grid."""
    return any(user.op != "output" and _grid_of(graph, user) is None for user in node.users)


# --- averages --------------------------------------------------------------------------------------------------------


def _averages(graph: fx.GraphModule) -> None:
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
    called = _insert(graph, module, source, before=node)
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


# --- layers ----------------------------------------------------------------------------------------------------------


def _layers(form: ExportForm, asked: str, exact: bool) -> None:
    """Every layer becomes an ExportedLayer, its weight and bias codes where they lie on grids."""
    graph = form.graph
    for node in list(graph.graph.nodes):
        layer = layer_of(graph, node)
        if layer is None:
            continue
        _pad_apart(graph, node, layer)
        weight = _weight(form, label(node), layer, asked, exact)
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
    found = _grid_of(graph, source)
    if found is not None:
        node.replace_input_with(padded, _insert(graph, OnGrid(found.grid, None), padded, before=node))


def _unpadded(layer: Any) -> Any:
    """The layer without the padding that isn't by zeros."""
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        return layer
    bare = copy.copy(layer)
    bare.padding_mode, bare.padding = "zeros", tuple(0 for _ in layer.kernel_size)
    return bare


def _weight(form: ExportForm, name: str, layer: Any, asked: str, exact: bool) -> nn.Module:
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


# --- names -----------------------------------------------------------------------------------------------------------


def _name_operations(form: ExportForm) -> None:
    """Give every function that counts a module's path, and note whose label and which kind each path has."""
    graph = form.graph
    for node in list(graph.graph.nodes):
        kind = _kind(graph, node)
        if kind is None:
            continue
        if module_of(graph, node) is None:
            path = f"operations.{free_name(graph, re.sub(r'[^0-9a-zA-Z]', '_', label(node)), inside='operations')}"
            graph.add_submodule(path, Operation(node.target))
            node.op, node.target = "call_module", path
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
