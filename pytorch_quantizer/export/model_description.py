"""A quantized model as plain values and tensors, and back. FORMAT.md says what is where.
How they lie in a file, and whether that is whole, is checkpoint.py's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.foreign import Foreign
from pytorch_quantizer.export.graph_description import build_graph, build_module, describe_graph, describe_module
from pytorch_quantizer.export.paths import check_path, find, put_module, put_tensor
from pytorch_quantizer.export.plain_values import Description
from pytorch_quantizer.export.quantizer_description import build_quantizer, describe_quantizer
from pytorch_quantizer.graph.operations import module_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import scale_of_outputs
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.qtypes import BiasQuantizer, Quantizer
from pytorch_quantizer.quantization.recipe import Recipe

TABLES = ("graph", "modules", "quantizers", "codes", "parameters", "sites")
MOST_ENTRIES = 2**14  # of each table: ten times what the largest networks have, and still loaded in seconds
VALUES_A_BYTE = 64  # what a file may unpack to, in parameters: a bit each is 8, and few channels have less
REMARKS: dict[str, Any] = {"network": str | None, "notes": tuple, "calibration_images": int | None}
REMARKS |= {"statistics_read": bool}
Tensors = dict[str, Tensor]
_Parts = dict[tuple[str, str], Tensors]


# --- what is in the file ---------------------------------------------------------------------------------------------


def describe_model(model: QuantizedModel) -> tuple[Description, Tensors]:
    """Everything that a file must hold to give the model back: what JSON can hold, and tensors by name.

    Raises InputError for quantizers without a grid or of no type of the registry, for parameters that aren't float32,
    for paths that no file may have, and for more operations than it may have.
    """
    tensors: Tensors = {}
    quantizers = _quantizers(model)
    codes = _put_codes(model, quantizers, tensors)
    content: Description = {
        "network": model.network,
        "recipe": _plain(asdict(model.recipe)),
        "graph": describe_graph(model.graph),
        "modules": _describe_modules(model),
        "quantizers": _put_quantizers(quantizers, tensors),
        "codes": codes,
        "parameters": {name: parameter.requires_grad for name, parameter in _parameters(model)},
        "sites": _describe_sites(model, quantizers),
        "notes": list(model.notes),
        "calibration_images": model.calibration_images,
        "statistics_read": model.statistics_read,
    }
    _put_floats(model, tensors, {*codes}, tuple(f"{path}." for path in quantizers))
    for path in (*content["modules"], *quantizers, *content["parameters"]):
        check_path(path)
    _check_entries(content)
    return content, tensors


def _check_entries(content: Description) -> None:
    for name in TABLES:
        if len(content[name]) > MOST_ENTRIES:
            raise InputError(f"the {name} are {len(content[name])}, and no file may hold more than {MOST_ENTRIES}")


def _parameters(model: QuantizedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """By name; tied ones at each of their places, for a file has no word for what they share."""
    return model.named_parameters(remove_duplicate=False)


def _quantizers(model: QuantizedModel) -> dict[str, Quantizer]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Quantizer)}


def _describe_modules(model: QuantizedModel) -> dict[str, Description | None]:
    """By path, the modules that the graph calls; None for those that aren't on the list. Quantizers stand apart."""
    found: dict[str, Description | None] = {}
    for node in model.graph.nodes:
        module = module_of(model, node)
        if module is not None and not isinstance(module, Quantizer):
            found[str(node.target)] = describe_module(module)
    return found


def _put_quantizers(quantizers: Mapping[str, Quantizer], tensors: Tensors) -> dict[str, Description]:
    """By path, each quantizer's description; its storage goes into ``tensors`` as grid/PATH/NAME."""
    found = {}
    for path, quantizer in quantizers.items():
        found[path] = describe_quantizer(quantizer)
        tensors |= {f"grid/{path}/{name}": part for name, part in _stored(quantizer.storage()).items()}
    return found


def _put_codes(model: QuantizedModel, quantizers: Mapping[str, Quantizer], tensors: Tensors) -> dict[str, list[int]]:
    """By name, the shapes of the parameters that are stored as codes; the codes go in as codes/NAME/STREAM."""
    found = {}
    for name, parameter in _parameters(model):
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{name} is {parameter.dtype}; a packed checkpoint holds float32: call model.float() first"
            )
        quantizer, values = quantizers.get(f"{name}_quantizer"), parameter.detach()
        codes = None if quantizer is None else quantizer.quantize(values)
        if quantizer is None or codes is None or not torch.equal(quantizer.dequantize(codes), values):
            continue  # on no grid, or moved off it
        found[name] = list(codes.shape)
        tensors |= {f"codes/{name}/{part}": stream for part, stream in _stored(quantizer.pack(codes)).items()}
    return found


def _put_floats(model: QuantizedModel, tensors: Tensors, coded: set[str], quantizers: tuple[str, ...]) -> None:
    """Every other parameter and buffer, as it is, as float/NAME; quantizers' own are in their storage."""
    named = [*_parameters(model), *model.named_buffers(remove_duplicate=False)]
    floats = {f"float/{n}": t for n, t in named if n not in coded and not n.startswith(quantizers)}
    tensors |= _stored(floats)


def _stored(tensors: Mapping[str, Tensor]) -> Tensors:
    """As safetensors takes them: on the CPU, contiguous, each with memory of its own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _describe_sites(model: QuantizedModel, quantizers: Mapping[str, Quantizer]) -> list[Description]:
    paths = {id(quantizer): path for path, quantizer in quantizers.items()}
    found = []
    for site in model.sites:
        plain = {entry.name: getattr(site, entry.name) for entry in fields(Site) if entry.name != "quantizer"}
        found.append({**_plain(plain), "quantizer": paths.get(id(site.quantizer))})
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    back: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return back


# --- and back --------------------------------------------------------------------------------------------------------


def build_model(content: Description, tensors: Tensors, foreign: Foreign, most: int) -> QuantizedModel:
    """The model that was described, in eval mode. most: values that one parameter may have.

    Raises InputError, KeyError, TypeError … where the parts don't fit together, or hold what nothing asks for.
    """
    _check_entries(content)
    root, parts = nn.Module(), _parts(tensors)
    for path, description in content["modules"].items():
        put_module(root, path, foreign.modules[path] if description is None else build_module(description, most))
    _put_parts(root, content, parts)
    if parts:
        raise InputError(f"the file holds tensors that belong nowhere: {'/'.join(min(parts))}")
    _check_filled(root)
    graph = build_graph(content["graph"], root, foreign.nodes)
    kinds = {**get_type_hints(Site), "consumers": tuple}
    sites = tuple(_site(root, entry, kinds) for entry in content["sites"])
    model = QuantizedModel(root, graph, sites=sites, recipe=Recipe(**content["recipe"]))
    model.meta.update(_remarks(content))
    return model.eval()


def _parts(tensors: Tensors) -> _Parts:
    """The tensors by kind and path: grid/PATH/NAME, codes/PATH/NAME and float/PATH, the last all together."""
    found: _Parts = {}
    for whole, tensor in tensors.items():
        kind, _, rest = whole.partition("/")
        path, _, name = ("", "", rest) if kind == "float" else rest.rpartition("/")
        found.setdefault((kind, path), {})[name] = tensor
    return found


def _put_parts(root: nn.Module, content: Description, parts: _Parts) -> None:
    """Quantizers and values, each taken out of ``parts``. Biases come last: their grids follow from their layers'."""
    quantizers, codes, trainable = content["quantizers"], content["codes"], content["parameters"]
    biases = {path: entry for path, entry in quantizers.items() if entry["type"] == BiasQuantizer.__name__}
    for path, entry in quantizers.items():
        if path not in biases:
            put_module(root, path, build_quantizer(entry, parts.pop(("grid", path), {})))
    for name, tensor in parts.pop(("float", ""), {}).items():
        put_tensor(root, name, tensor, trainable=trainable.get(name))
    for name in sorted(codes, key=lambda name: f"{name}_quantizer" in biases):
        path = f"{name}_quantizer"
        if path in biases:
            put_module(root, path, _build_bias(root, path, biases.pop(path)))
        values = _decoded(root, name, codes[name], parts.pop(("codes", name)))
        put_tensor(root, name, values, trainable=trainable[name])
    for path, entry in biases.items():  # of those that lie on no grid any more
        put_module(root, path, _build_bias(root, path, entry))


def _build_bias(root: nn.Module, path: str, entry: Description) -> Quantizer:
    layer: Any = find(root, path.rpartition(".")[0])
    return build_quantizer(entry, {}, weight_scale=scale_of_outputs(layer, layer.weight_quantizer))


def _decoded(root: nn.Module, name: str, shape: list[int], streams: Tensors) -> Tensor:
    """A parameter's values from its codes. Raises InputError where they aren't as many as its layer is made for."""
    quantizer, declared = find(root, f"{name}_quantizer"), find(root, name)
    if not isinstance(declared, Tensor) or list(declared.shape) != shape:
        raise InputError(f"{name} is coded as {shape}, which is not what its layer is made for")
    held = sum(stream.numel() * stream.element_size() for stream in streams.values())
    if held != quantizer.code_bytes(shape):
        raise InputError(f"{name} has {held} bytes of codes, {quantizer.code_bytes(shape)} is what {shape} takes")
    values: Tensor = quantizer.dequantize(quantizer.unpack(streams, shape))
    return values


def _check_filled(root: nn.Module) -> None:
    for name, tensor in (*root.named_parameters(), *root.named_buffers()):
        if tensor.is_meta:
            raise InputError(f"{name} is missing")


def _site(root: nn.Module, entry: Description, kinds: Mapping[str, Any]) -> Site:
    given = {**entry, "consumers": tuple(entry["consumers"])}
    if given["quantizer"] is not None:
        given["quantizer"] = find(root, given["quantizer"]) or given["quantizer"]
    for name, value in given.items():
        if not isinstance(value, kinds[name]) or not _is_printable(value):
            raise InputError(f"{name} of a tensor can't be {value!r}")
    return Site(**given)


def _remarks(content: Description) -> dict[str, Any]:
    """What a model knows of how it came about."""
    found = {name: content[name] for name in REMARKS} | {"notes": tuple(content["notes"])}
    for name, value in found.items():
        if not isinstance(value, REMARKS[name]) or not _is_printable(value):
            raise InputError(f"{name} can't be {value!r}")
    return found


def _is_printable(value: Any) -> bool:
    """Whether text, or each of several, is a line that a terminal shows as it is; anything else is."""
    if isinstance(value, tuple):
        return all(isinstance(entry, str) and entry.isprintable() for entry in value)
    return not isinstance(value, str) or value.isprintable()
