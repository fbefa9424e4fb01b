"""Packed checkpoints: a quantized model in a safetensors file, codes at their bits, and the same model back.
FORMAT.md, beside this file, says what is where; scripts/read_checkpoint.py reads it with NumPy alone.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pytorch_quantizer.atomic import atomic_path
from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.export.graph_description import (
    build_graph,
    build_module,
    describe_graph,
    describe_module,
)
from pytorch_quantizer.export.plain_values import Description
from pytorch_quantizer.export.quantizer_description import build_quantizer, describe_quantizer
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.operations import layer_nodes, module_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import scale_of_outputs
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.qtypes import BiasQuantizer, Quantizer
from pytorch_quantizer.quantization.recipe import Recipe

KEY = "pytorch_quantizer"  # of the file's metadata: {"version", "checksum"}
DESCRIPTION = "description"  # the tensor that holds everything that is no tensor: JSON, zlib, uint8
MOST_TEXT = 2**28  # bytes of JSON: what unpacks to more is no description
VERSION = 1
NOT_OURS = "it is no packed checkpoint of a quantized model (pq.save writes those)"
DAMAGED = "is damaged: get it anew"
Tensors = dict[str, Tensor]


def save(model: QuantizedModel, path: str | Path) -> None:
    """Write a quantized model into a safetensors file, weights as codes packed at their bits; ``load`` gives it back.

    The file is written whole or not at all. A weight that lies on no grid any more (shifted by weight correction, where
    deployable is false) is stored in float32. Raises InputError for a model that isn't quantized, quantizers that have
    no grid yet or are no number types of the registry, and where nothing can be written.
    """
    if not isinstance(model, QuantizedModel):
        raise InputError(f"pq.save takes a QuantizedModel (pq.quantize makes one), got {type(model).__name__}")
    tensors: Tensors = {}
    codes = _put_codes(model, tensors)
    content = {
        "recipe": _plain(asdict(model.recipe)),
        "graph": describe_graph(model.graph),
        "modules": _describe_modules(model),
        "quantizers": _put_quantizers(model, tensors),
        "codes": codes,
        "sites": _describe_sites(model),
        "notes": list(model.notes),
        "calibration_images": model.calibration_images,
        "statistics_read": model.statistics_read,
    }
    _put_floats(model, tensors, set(codes))
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    tensors[DESCRIPTION] = torch.frombuffer(bytearray(zlib.compress(text.encode(), 9)), dtype=torch.uint8)
    said = json.dumps({"version": VERSION, "checksum": _checksum(tensors)})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: said})


def load(path: str | Path, *, model: nn.Module | None = None, device: str | torch.device = "cpu") -> QuantizedModel:
    """The model that ``save`` wrote, the same to the bit, in eval mode.

    Nothing that the file says is imported or run: modules and functions come from a closed list of torch's. A network
    that holds others needs ``model``, the float network it was made from, whose own are then taken by name.
    Raises InputError for a file that isn't there, isn't such a checkpoint or is damaged, and where ``model`` is missing
    or another network.
    """
    path = Path(path).expanduser()
    with _reading(path):
        content, tensors = _read(path)
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        return _build(content, tensors, _Foreign(path, content, model)).eval()


# --- what is in the file ---------------------------------------------------------------------------------------------


def _describe_modules(model: QuantizedModel) -> dict[str, Description | None]:
    """By path, the modules that the graph calls; None for those that aren't on the list. Quantizers stand apart."""
    found: dict[str, Description | None] = {}
    for node in model.graph.nodes:
        module = module_of(model, node)
        if module is not None and not isinstance(module, Quantizer):
            found[str(node.target)] = describe_module(module)
    return found


def _quantizers(model: QuantizedModel) -> dict[str, Quantizer]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Quantizer)}


def _put_quantizers(model: QuantizedModel, tensors: Tensors) -> dict[str, Description]:
    """By path, each quantizer's description; its storage goes into ``tensors`` as grid/PATH/NAME."""
    found = {}
    for path, quantizer in _quantizers(model).items():
        found[path] = describe_quantizer(quantizer)
        tensors |= {f"grid/{path}/{name}": part for name, part in _stored(quantizer.storage()).items()}
    return found


def _put_codes(model: QuantizedModel, tensors: Tensors) -> dict[str, Description]:
    """By name, the parameters that are stored as codes: their quantizer and shape; the codes go in as NAME/STREAM."""
    found = {}
    for name, parameter in model.named_parameters():
        path, values = f"{name}_quantizer", parameter.detach()
        quantizer = _quantizers(model).get(path)
        codes = None if quantizer is None else quantizer.quantize(values)
        if quantizer is None or codes is None or not torch.equal(quantizer.dequantize(codes), values):
            continue  # on no grid, or moved off it
        found[name] = {"quantizer": path, "shape": list(codes.shape)}
        tensors |= {f"codes/{name}/{part}": stream for part, stream in _stored(quantizer.pack(codes)).items()}
    return found


def _put_floats(model: QuantizedModel, tensors: Tensors, coded: set[str]) -> None:
    """Every other parameter and buffer, as it is, as float/NAME; quantizers' own are in their storage."""
    quantizers = tuple(f"{path}." for path in _quantizers(model))
    named = [*model.named_parameters(), *model.named_buffers()]
    floats = {f"float/{n}": t.detach() for n, t in named if n not in coded and not n.startswith(quantizers)}
    tensors |= _stored(floats)


def _stored(tensors: Mapping[str, Tensor]) -> Tensors:
    """As safetensors takes them: on the CPU, contiguous, each with memory of its own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _describe_sites(model: QuantizedModel) -> list[Description]:
    paths = {id(quantizer): path for path, quantizer in _quantizers(model).items()}
    found = []
    for site in model.sites:
        plain = {entry.name: getattr(site, entry.name) for entry in fields(Site) if entry.name != "quantizer"}
        found.append({**_plain(plain), "quantizer": paths.get(id(site.quantizer))})
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    back: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return back


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, in the order of names."""
    digest = hashlib.sha256(f"version {VERSION}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- and back --------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file leads to becomes one error."""
    try:
        yield
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        RuntimeError,
        RecursionError,
        zlib.error,
    ) as error:
        raise InputError(f"{path} {DAMAGED} ({type(error).__name__}: {first_line(error)})") from error


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    if not path.is_file():
        raise InputError(f"{path} is not a file: check the path")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read as safetensors ({first_line(error)}); {NOT_OURS}") from error
    if text is None:
        raise InputError(f"{path} has no {KEY!r} in its metadata: {NOT_OURS}")
    said = json.loads(text)
    if said["version"] != VERSION:
        raise InputError(f"{path} is of version {said['version']}, this package reads {VERSION}: update it")
    if said["checksum"] != _checksum(tensors):
        raise InputError(f"{path} {DAMAGED} (its checksum is another)")
    return _unzipped(tensors.pop(DESCRIPTION)), tensors


def _unzipped(packed: Tensor) -> dict[str, Any]:
    unzip = zlib.decompressobj()
    text = unzip.decompress(packed.numpy().tobytes(), MOST_TEXT)
    if not unzip.eof:
        raise InputError(f"its description unpacks to more than {MOST_TEXT >> 20} MiB, or is cut short")
    content: dict[str, Any] = json.loads(text)
    return content


class _Foreign:
    """What a checkpoint takes from the float model: modules and functions that aren't on the list."""

    def __init__(self, path: Path, content: Mapping[str, Any], model: nn.Module | None) -> None:
        wanted = [name for name, module in content["modules"].items() if module is None]
        calls = [entry["name"] for entry in content["graph"] if entry["target"] is None and entry["op"] != "output"]
        self.modules: dict[str, nn.Module] = {}
        self.functions: dict[str, Any] = {}
        if not wanted and not calls:
            return
        if model is None:
            named = ", ".join([*wanted, *calls][:3])
            raise InputError(
                f"{path} holds {len(wanted) + len(calls)} module(s) or function(s) that are not torch's own ({named}): "
                "give the float model it was made from, pq.load(path, model=float_model)"
            )
        graph = capture(model).graph
        own_modules, of_nodes = dict(graph.named_modules()), {node.name: node.target for node in graph.graph.nodes}
        for name in [*wanted, *calls]:
            if name not in own_modules and name not in of_nodes:
                raise InputError(f"{path}: the model given has no {name!r}: it is not the one this was made from")
        self.modules = {name: own_modules[name] for name in wanted}
        self.functions = {name: of_nodes[name] for name in calls}


def _build(content: Mapping[str, Any], tensors: Tensors, foreign: _Foreign) -> QuantizedModel:
    root = nn.Module()
    for path, description in content["modules"].items():
        _put_module(root, path, foreign.modules[path] if description is None else build_module(description))
    biases = {path: entry for path, entry in content["quantizers"].items() if entry["type"] == BiasQuantizer.__name__}
    for path, entry in content["quantizers"].items():
        if path not in biases:
            _put_module(root, path, build_quantizer(entry, _storage_of(f"grid/{path}", tensors)))
    for path, entry in biases.items():
        layer: Any = root.get_submodule(path.rpartition(".")[0])
        scale = scale_of_outputs(layer, layer.weight_quantizer)
        _put_module(root, path, build_quantizer(entry, {}, weight_scale=scale))
    for name, tensor in tensors.items():
        if name.startswith("float/"):
            _put_tensor(root, name.removeprefix("float/"), tensor)
    for name, entry in content["codes"].items():
        _put_tensor(root, name, _decoded(root, name, entry, tensors))
    _check_filled(root)
    sites = tuple(_site(root, entry) for entry in content["sites"])
    graph = build_graph(content["graph"], foreign.functions)
    recipe = Recipe(**content["recipe"])
    model = QuantizedModel(root, graph, sites=sites, recipe=recipe)
    known = ("notes", "calibration_images", "statistics_read")
    model.meta.update({name: tuple(content[name]) if name == "notes" else content[name] for name in known})
    for _, layer in layer_nodes(model):
        layer.requires_grad_(True)
    return model


def _storage_of(path: str, tensors: Tensors) -> Tensors:
    prefix = f"{path}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _decoded(root: nn.Module, name: str, entry: Description, tensors: Tensors) -> Tensor:
    quantizer: Any = root.get_submodule(entry["quantizer"])
    values: Tensor = quantizer.dequantize(quantizer.unpack(_storage_of(f"codes/{name}", tensors), entry["shape"]))
    return values


def _put_module(root: nn.Module, path: str, module: nn.Module) -> None:
    *owners, name = path.split(".")
    owner = root
    for part in owners:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.add_module(name, module)


def _put_tensor(root: nn.Module, path: str, tensor: Tensor) -> None:
    """Give a parameter or a buffer its values; one of no module becomes a parameter of its owner."""
    *owners, name = path.split(".")
    owner = root
    for part in owners:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if name in owner._buffers:
        owner._buffers[name] = tensor
        return
    declared = owner._parameters.get(name)
    if declared is not None and declared.shape != tensor.shape:
        raise InputError(f"{path} is {list(tensor.shape)}, its layer is made for {list(declared.shape)}")
    if tensor.is_floating_point():
        owner.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    else:
        owner.register_buffer(name, tensor)


def _check_filled(root: nn.Module) -> None:
    for name, tensor in (*root.named_parameters(), *root.named_buffers()):
        if tensor.is_meta:
            raise InputError(f"{name} is missing")


def _site(root: nn.Module, entry: Description) -> Site:
    given = {name: value for name, value in entry.items() if name != "quantizer"}
    quantizer: Any = None if entry["quantizer"] is None else root.get_submodule(entry["quantizer"])
    return Site(**{**given, "consumers": tuple(given["consumers"])}, quantizer=quantizer)
