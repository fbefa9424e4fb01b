"""The part of an ONNX export that says where tensors enter their grids: as early, and as often, as kernels ask for it.

Why each rewriting changes no code: putting a tensor on a grid, x ↦ q(x), is monotone, leaves alone what lies on the
grid (zero does), and works element by element. So

- q(min(max(x, 0), c)) = min(max(q(x), z), q(c)): a ReLU, with a ceiling c or without, is limits of the codes;
- q(f(x)) = f(q(x)) for every f that takes its results from among the values of x and zero in an order-preserving way:
  moving, repeating, padding with zeros, the largest of several. So the grid may be entered before f, where the layer
  is, and what leaves f lies on it: quantizing it anew changes nothing and tells the runtime so;
- a concatenation is such an f of several tensors: a grid behind it serves each of them before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_insert import insert_module
from pytorch_quantizer.export.onnx_modules import Limits, OnGrid
from pytorch_quantizer.export.requantize import codes_of
from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.operations import (
    CONCATENATIONS,
    is_collection,
    is_relu,
    is_tensor,
    keeps_values,
    kept_operands,
    label,
    module_of,
    operation,
    relu_ceiling,
    tensor_inputs,
)
from pytorch_quantizer.quantization.qtypes import IntQuantizer, Quantizer

ROUNDING = "half_even"


def replace_quantizers(form: ExportForm) -> None:
    """Every quantizer becomes an OnGrid. Raises InputError as on_grid does."""
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


def enter_grids_early(graph: fx.GraphModule) -> None:
    """Let every tensor enter its grid where its values are computed, the ReLUs before become limits of its codes."""
    for node in list(graph.graph.nodes):
        found = grid_of(graph, node)
        if found is not None and found.grid.axis is None:
            _enter_early(graph, node, found)


def grid_of(graph: fx.GraphModule, node: fx.Node) -> OnGrid | None:
    """The OnGrid that a node calls."""
    module = module_of(graph, node)
    return module if isinstance(module, OnGrid) else None


def _enter_early(graph: fx.GraphModule, node: fx.Node, found: OnGrid) -> None:
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
    other = grid_of(graph, _origin(graph, operand))
    if other is not None:
        return other.grid is found.grid
    if is_collection(operand) or len(operand.users) > 1:
        return False
    own = OnGrid(found.grid, found.limits)
    source, limits = _without_relus(graph, operand, own) if len(operand.users) == 1 else (operand, own.limits)
    own.limit(limits)
    entered = insert_module(graph, own, source, before=reader)
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


def repeat_grids(graph: fx.GraphModule) -> None:
    """Quantize anew what a value-keeping operation leaves of a tensor on a grid, so that it is run on codes."""
    grids: dict[fx.Node, OnGrid] = {}
    for node in list(graph.graph.nodes):
        found = grid_of(graph, node) or _kept_grid(graph, node, grids)
        if found is None:
            continue
        grids[node] = found
        if grid_of(graph, node) is None and not is_collection(node) and _is_read(graph, node):
            users = [user for user in node.users if grid_of(graph, user) is None]
            again = insert_module(graph, OnGrid(found.grid, None), node, before=node.next)
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
    return any(user.op != "output" and grid_of(graph, user) is None for user in node.users)
