"""From an nn.Module to a torch.fx graph of it: traced, normalized (normalize.py), named, and checked.
What can't be traced becomes one opaque operation, listed with its reason.
"""

from __future__ import annotations

import copy
import inspect
import math
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.attention import DecomposedAttention
from pytorch_quantizer.graph.normalize import normalize
from pytorch_quantizer.graph.operations import called_name
from pytorch_quantizer.graph.recurrent import CELLS, DecomposedCell, DecomposedRecurrence, Gates, Recurrence
from pytorch_quantizer.graph.share import copy_sharing_parameters

FAITHFUL = 1e-3  # largest difference from the model's own output, as a share of its largest value
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DECOMPOSED: dict[type[nn.Module], Any] = {  # by class, what writes it out in layers, and says where it can't
    nn.MultiheadAttention: DecomposedAttention,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), DecomposedRecurrence),
    **dict.fromkeys(CELLS, DecomposedCell),
}
PACKING = "torch/nn/utils/rnn.py"
SHAPE_METHODS = ("size", "dim", "numel")
SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


@dataclass(frozen=True)
class Captured:
    """A traced network. graph: its fx graph; nodes carry ``meta["label"]`` and, once annotated, ``meta["is_tensor"]``.

    opaque: the modules that tracing could not enter, each with the reason.
    """

    graph: fx.GraphModule
    opaque: dict[str, str] = field(default_factory=dict)


def capture(
    model: nn.Module, example: Tensor | None = None, *, strict: bool = False, share_parameters: bool = False
) -> Captured:
    """Trace a copy of ``model`` in eval mode; the model itself is not touched.

    example: a batch [N, …] to mark the tensors with and to check the graph against the model. Without one every node
    counts as a tensor. strict: a module that can't be entered is an InputError instead of an opaque operation.
    share_parameters: leave the model's own in the graph, for one who replaces them before anybody may write into them.
    Raises InputError for NaN or infinite weights (naming the layer), a model that can't be traced at all, and a graph
    that doesn't compute what the model computes.
    """
    _check_kind(model)
    check_finite(model)
    traced = _copied(model, share_parameters).eval()
    traced, opaque, originals = _write_out(traced)
    graph = _trace(traced, opaque, originals)
    if strict and opaque:
        name, reason = next(iter(opaque.items()))
        raise InputError(f"--strict: {len(opaque)} module(s) can't be captured; the first is {name!r}: {reason}")
    graph = normalize(graph)
    _check_inputs(graph)
    _label(graph)
    if example is None:
        _annotate_unseen(graph)
    else:
        _check_faithful(model, _annotate(graph, example), example)
    return Captured(graph, opaque)


def _check_kind(model: nn.Module) -> None:
    """Raise InputError for wrappers around a model, each with its remedy."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"{type(model).__name__} wraps the model; give the model itself, model.module")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a ScriptModule has no Python to trace; give the eager model it was made from")


def _copied(model: nn.Module, share_parameters: bool) -> nn.Module:
    try:
        return copy_sharing_parameters(model) if share_parameters else copy.deepcopy(model)
    except RuntimeError as error:  # weights that are computed by hooks
        first = str(error).splitlines()[0]
        raise InputError(
            f"{type(model).__name__} can't be copied: {first}; if it uses torch.nn.utils.weight_norm, call "
            "remove_weight_norm on its layers first"
        ) from error


def _check_inputs(graph: fx.GraphModule) -> None:
    inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise InputError(
            f"the model takes {len(inputs)} inputs ({', '.join(inputs)}); wrap it so that it takes images alone"
        )


def check_finite(model: nn.Module) -> None:
    """Raise InputError that names the first parameter or buffer holding NaN or infinity (−inf may stand in a mask)."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if _is_finite(tensor):
            continue
        is_weight = isinstance(tensor, nn.Parameter) or name.endswith(("running_mean", "running_var"))
        bad = int((~torch.isfinite(tensor)).sum() if is_weight else (tensor.isnan() | tensor.isposinf()).sum())
        if bad:
            raise InputError(f"{name} holds {bad} NaN or infinite value(s) of {tensor.numel()}; load sound weights")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all of it is, told from its ends, which NaN becomes: one read."""
    return not tensor.numel() or all(math.isfinite(end.item()) for end in torch.aminmax(tensor.detach()))


class _Tracer(fx.Tracer):
    """Enters every module but torch.nn's simple ones and those known to be opaque; remembers where it is."""

    def __init__(self, opaque: dict[str, str] | None = None) -> None:
        super().__init__()
        self.opaque = opaque or {}
        self.entered: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque or isinstance(m, Recurrence | Gates):
            return True
        return super().is_leaf_module(m, module_qualified_name) and not _has_layers(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        self.entered.append(name)
        result = super().call_module(m, forward, args, kwargs)
        self.entered.pop()  # not reached on an exception: the innermost module stays on top
        return result


def _has_layers(module: nn.Module) -> bool:
    """Whether a torch.nn module is built of other modules (a transformer block), so that entering it is worth a try."""
    return not isinstance(module, nn.MultiheadAttention) and any(True for _ in module.children())


def _trace(model: nn.Module, opaque: dict[str, str], originals: dict[str, nn.Module]) -> fx.GraphModule:
    """Trace, and each time a module resists, make the innermost one opaque, as it was, and begin again."""
    while True:
        tracer = _Tracer(opaque)
        try:
            graph = tracer.trace(model, concrete_args=_defaults(model))
        except Exception as error:  # whatever a foreign forward raises under tracing
            reason = _reason(error)
            if not tracer.entered:
                reason = opaque.get("", reason)
                raise InputError(
                    f"{type(model).__name__}.forward can't be traced by torch.fx: {reason}; move what depends on "
                    "values or on unpacked shapes into a submodule"
                ) from error
            resisting = tracer.entered[-1]
            opaque[resisting] = reason
            for name, original in originals.items():
                if f"{name}.".startswith(f"{resisting}."):
                    _set_submodule(model, name, original)
            continue
        _drop_defaults(graph, model)
        return fx.GraphModule(tracer.root, graph, type(model).__name__).eval()


def _reason(error: Exception) -> str:
    """Why tracing stopped, in a line."""
    if any(frame.filename.endswith(PACKING) for frame in traceback.extract_tb(error.__traceback__)):
        return "it packs sequences (PackedSequence) of lengths that only a run tells"
    return " ".join(str(error).split()) or type(error).__name__


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The optional arguments of ``forward`` (mask=None, a flag): the graph is of the network called without them."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def _drop_defaults(graph: fx.Graph, model: nn.Module) -> None:
    """Take out what fx leaves of optional arguments: a placeholder each, and an assertion that it has its default."""
    needed = len(inspect.signature(model.forward).parameters) - len(_defaults(model))
    for placeholder in [node for node in graph.nodes if node.op == "placeholder"][needed:]:
        for user in [*placeholder.users, placeholder]:
            for assertion in [*user.users]:
                graph.erase_node(assertion)
            graph.erase_node(user)
    graph.set_codegen(fx.graph.CodeGen())


def _write_out(model: nn.Module) -> tuple[nn.Module, dict[str, str], dict[str, nn.Module]]:
    """Replace every attention and recurrent layer that can be by its layers, also the model itself if it is one.

    Returns the model, the reasons of those that can't be, and the originals of the others, by name.
    """
    opaque, originals = {}, {}
    for name, module in list(model.named_modules()):
        kind = nn.MultiheadAttention if isinstance(module, nn.MultiheadAttention) else type(module)
        if kind not in DECOMPOSED:
            continue
        obstacle = DECOMPOSED[kind].obstacle(module)
        if obstacle is not None:
            opaque[name] = f"nn.{kind.__name__} can't be written out: {obstacle}"
            continue
        originals[name] = module
        if not name:
            return DECOMPOSED[kind](module).eval(), opaque, {}
        _set_submodule(model, name, DECOMPOSED[kind](module).eval())
    return model, opaque, originals


def _set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _label(graph: fx.GraphModule) -> None:
    """Give each node a unique name for people: layer1.0.conv1, layer1.0.add, layer1.0.relu_1."""
    seen: Counter[str] = Counter()
    for node in graph.graph.nodes:
        name = str(node.target) if node.op in ("call_module", "placeholder", "get_attr", "output") else _path(node)
        node.meta["label"] = name if not seen[name] else f"{name}_{seen[name]}"
        seen[name] += 1


def _path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    owner = next(reversed(stack.values()))[0]
    return f"{owner}.{called_name(node)}" if owner else called_name(node)


class _Annotator(fx.Interpreter):
    """Runs the graph once and marks what holds floating-point tensors."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["is_tensor"] = _holds_floats(value)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


def _holds_floats(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_floats(item) for item in value)
    return isinstance(value, Tensor) and value.dtype in FLOATS


def _annotate_unseen(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        node.meta["is_tensor"] = not _is_shape(node)


def _annotate(graph: fx.GraphModule, example: Tensor) -> Any:
    """Mark the tensors by a run, whose output is returned."""
    try:
        with torch.no_grad():
            return _Annotator(graph).run(example.clone())  # a forward may write into its input
    except (RuntimeError, ValueError) as error:  # whatever a shape that doesn't fit makes a foreign layer raise
        first = str(error).splitlines()[0]
        raise InputError(
            f"the model can't run on calibration images of shape [N, {', '.join(map(str, example.shape[1:]))}]: {first}"
        ) from error


def _is_shape(node: fx.Node) -> bool:
    """Whether a node is known without an example to hold a tensor's shape, or numbers computed from one."""
    if node.op == "call_method":
        return node.target in SHAPE_METHODS
    if node.target is getattr:
        return node.args[1] in SHAPE_ATTRIBUTES
    sources = node.all_input_nodes
    return getattr(node.target, "__module__", "") == "_operator" and bool(sources) and all(map(_is_shape, sources))


def _check_faithful(model: nn.Module, got: Any, example: Tensor) -> None:
    """Compare what the graph gave for the example with the model: tracing can miss in-place tricks and control flow."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        expected = model(example.clone())
    for module, training in modes.items():
        module.training = training
    for ours, theirs in zip(_tensors(got), _tensors(expected), strict=True):
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())  # NaN and infinity of the model's own making
        if bool(same.all()):
            continue
        difference = float((ours - theirs)[~same].abs().max())
        if not difference <= FAITHFUL * max(1e-6, float(theirs.abs().max())):
            raise InputError(
                f"the traced graph of {type(model).__name__} is off by {difference:.3g} on the example: "
                "its forward depends on values, or overwrites tensors through views, which torch.fx can't see"
            )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in _tensors(item)] if isinstance(value, tuple | list | dict) else []
