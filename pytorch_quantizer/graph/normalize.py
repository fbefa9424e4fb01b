"""One spelling for what a traced network can say in several: no in-place operations, no identities, constants computed
once, layers as modules. Tracing is capture.py's business; what operations mean, operations.py's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pytorch_quantizer.graph.names import free_name
from pytorch_quantizer.graph.operations import TRANSPOSED, Layer, called_name, module_of

FUNCTIONAL_LAYERS: dict[Any, type] = {
    F.linear: nn.Linear,
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
}
LAYER_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
STOCHASTIC_DEPTH = "torchvision.ops.stochastic_depth"  # the module that holds the function of that name


def normalize(graph: fx.GraphModule) -> fx.GraphModule:
    """The same network in eval mode, spelt in the one way that the stages after expect; parameters unused are gone."""
    _make_functional(graph)
    _drop_identities(graph)
    _compute_constants(graph)
    _modules_from_functions(graph)
    graph.graph.eliminate_dead_code()
    return fx.GraphModule(graph, graph.graph, type(graph).__name__).eval()


def _drop_identities(graph: fx.GraphModule) -> None:
    """Take out nn.Identity, and dropout and stochastic depth, which do nothing in eval mode."""
    for node in list(graph.graph.nodes):
        if isinstance(module_of(graph, node), DROPOUTS) or _is_stochastic_depth(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)


def _is_stochastic_depth(node: fx.Node) -> bool:
    """Whether a node calls torchvision's function, known by name so that nothing is imported for it, in eval mode."""
    if node.op != "call_function" or getattr(node.target, "__module__", "") != STOCHASTIC_DEPTH:
        return False
    return not node.kwargs.get("training", node.args[3] if len(node.args) > 3 else True)


def _compute_constants(graph: fx.GraphModule) -> None:
    """Compute once what depends on parameters alone: normalised or standardised weights become plain parameters."""
    values: dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            values[node] = _attribute(graph, str(node.target))
        elif node.op.startswith("call") and node.all_input_nodes and all(n in values for n in node.all_input_nodes):
            values[node] = _computed(graph, node, values)
    for node, value in values.items():
        outside = [user for user in node.users if user not in values]
        if node.op != "get_attr" and outside and isinstance(value, Tensor):
            _replace_by_parameter(graph, node, value)


@torch.no_grad()
def _computed(graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args: Any = fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    module = module_of(graph, node)
    called: Any = node.target if module is None else module
    return called(*args, **kwargs)


def _replace_by_parameter(graph: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    name = free_name(graph, node.name)
    if value.is_floating_point():
        graph.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
    else:
        graph.register_buffer(name, value)
    with graph.graph.inserting_before(node):
        constant = graph.graph.get_attr(name)
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)


def _make_functional(graph: fx.GraphModule) -> None:
    """Turn in-place operations into ones that return a new tensor; whoever read the old one later reads the new."""
    in_place_modules = {name for name, module in graph.named_modules() if getattr(module, "inplace", False)}
    for name in in_place_modules:
        graph.get_submodule(name).inplace = False  # type: ignore[assignment]
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.target in in_place_modules:
            _redirect_later_readers(graph, node)
        elif node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
            _redirect_later_readers(graph, node)
        elif (target := _out_of_place(node)) is not None:
            node.target = target
            _redirect_later_readers(graph, node)


def _out_of_place(node: fx.Node) -> Any:
    """What computes the same as ``x.relu_()`` or ``torch.relu_(x)`` into a new tensor; None for all other nodes."""
    name = called_name(node)
    if node.op not in ("call_method", "call_function") or not name.endswith("_") or name.endswith("__"):
        return None
    if node.op == "call_method":
        return name[:-1] if hasattr(Tensor, name[:-1]) else None
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)


def _redirect_later_readers(graph: fx.GraphModule, node: fx.Node) -> None:
    overwritten = node.args[0]
    if isinstance(overwritten, fx.Node):
        overwritten.replace_all_uses_with(node, delete_user_cb=lambda user: node < user)


def _modules_from_functions(graph: fx.GraphModule) -> None:
    """F.conv2d(x, self.weight, …) with parameters of the model becomes an nn.Conv2d, F.linear an nn.Linear."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in FUNCTIONAL_LAYERS:
            continue
        layer = _layer_from_call(graph, node)
        if layer is not None:
            _replace_by_module(graph, node, layer)


def _replace_by_module(graph: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    """Let a node that called a function call ``layer`` instead, on the function's first argument."""
    name = free_name(graph, node.name)
    graph.add_submodule(name, layer)
    with graph.graph.inserting_before(node):
        source = node.args[0] if node.args else node.kwargs["input"]
        call = graph.graph.call_module(name, (source,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _layer_from_call(graph: fx.GraphModule, node: fx.Node) -> Layer | None:
    """The module that a functional call with the model's own parameters stands for, else None."""
    transposed = issubclass(FUNCTIONAL_LAYERS[node.target], TRANSPOSED)
    names = TRANSPOSED_ARGUMENTS if transposed else LAYER_ARGUMENTS
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    weight, bias = (_parameter(graph, given.get(name)) for name in ("weight", "bias"))
    if weight is None or (given.get("bias") is not None and bias is None):
        return None
    with torch.device("meta"):
        layer = _empty_layer(node.target, weight, bias is not None, given)
    layer.weight = nn.Parameter(weight.detach())
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach()))
    return layer.eval()


def _empty_layer(function: Any, weight: Tensor, bias: bool, given: dict[str, Any]) -> Layer:
    if function is F.linear:
        return nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    groups, kind = given.get("groups", 1), FUNCTIONAL_LAYERS[function]
    options = {key: given[key] for key in ("stride", "padding", "output_padding", "dilation") if key in given}
    first, second = (
        weight.shape[0],
        weight.shape[1] * groups,
    )  # [C_out, C_in / groups, …], transposed the other way round
    channels = (first, second) if issubclass(kind, TRANSPOSED) else (second, first)
    layer: Layer = kind(*channels, tuple(weight.shape[2:]), groups=groups, bias=bias, **options)
    return layer


def _parameter(graph: fx.GraphModule, value: Any) -> Tensor | None:
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    tensor = _attribute(graph, str(value.target))
    return tensor if isinstance(tensor, Tensor) else None


def _attribute(graph: fx.GraphModule, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(graph.get_submodule(owner), name)
