"""Packed checkpoints: a quantized model in a safetensors file, codes at their bits, and the same model back.
FORMAT.md, beside this file, says what is where; scripts/read_checkpoint.py reads it with NumPy alone.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pytorch_quantizer.atomic import atomic_path
from pytorch_quantizer.digests import tensors_digest
from pytorch_quantizer.environment import choose_device
from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.export.foreign import find_foreign
from pytorch_quantizer.export.model_description import VALUES_A_BYTE, Tensors, build_model, describe_model
from pytorch_quantizer.export.plain_values import Description
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.packed_mark import KEY
from pytorch_quantizer.user_path import user_path

DESCRIPTION = "description"  # the tensor that holds everything that is no tensor: JSON, zlib, uint8
MOST_TEXT = 2**24  # bytes of JSON; a description of a thousand operations takes one or two million
VERSION = 2
NOT_OURS = "it is no packed checkpoint of a quantized model (pq.save writes those)"
DAMAGED = "is damaged: get it anew"


def save(model: QuantizedModel, path: str | Path) -> None:
    """Write a quantized model into a safetensors file, weights as codes packed at their bits; ``load`` gives it back.

    The file is written whole or not at all. A weight that lies on no grid any more (shifted by weight correction, where
    deployable is false) is stored in float32. Raises InputError for a model that isn't quantized, quantizers that have
    no grid yet or are no number types of the registry, parameters that aren't float32, a network too large to describe,
    and where nothing can be written.
    """
    if not isinstance(model, QuantizedModel):
        raise InputError(f"pq.save takes a QuantizedModel (pq.quantize makes one), got {type(model).__name__}")
    content, tensors = describe_model(model)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    tensors[DESCRIPTION] = torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8)
    most = VALUES_A_BYTE * sum(tensor.nbytes for tensor in tensors.values())
    if len(text) > MOST_TEXT or any(parameter.numel() > most for parameter in model.parameters()):
        raise InputError(f"the network is too large for a file that can be loaded: {len(text)} bytes describe it")
    said = json.dumps({"version": VERSION, "checksum": _checksum(tensors)})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: said})


def load(path: str | Path, *, model: nn.Module | None = None, device: str | torch.device = "cpu") -> QuantizedModel:
    """The model that ``save`` wrote, the same to the bit, in eval mode.

    Nothing that the file says is imported or run, and what it takes in memory is bounded by the file's size: modules
    and functions come from a closed list of torch's. A network that holds others needs ``model``, the float network it
    was made from, whose own are then taken by name; wherever it is given it must be that one.
    Raises InputError for a file that isn't there, isn't such a checkpoint or is damaged, and where ``model`` is missing
    or another network.
    """
    path, device = user_path(path), choose_device(str(device))
    with _reading(path):
        content, tensors = _read(path)
        foreign = find_foreign(content, model)
        return build_model(content, tensors, foreign, VALUES_A_BYTE * path.stat().st_size).to(device)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return tensors_digest(tensors, f"version {VERSION}\n")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file, or one made to do harm, leads to becomes one error."""
    try:
        yield
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    except Exception as error:  # there is no telling what a value that nobody expects is refused with
        raise InputError(f"{path} {DAMAGED} ({type(error).__name__}: {first_line(error)})") from error


def _read(path: Path) -> tuple[Description, Tensors]:
    if not path.is_file():
        raise InputError(f"{path} is not a file: check the path")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        why = f"it is cut off, or {NOT_OURS.removeprefix('it is ')}"
        raise InputError(f"{path} can't be read as safetensors ({first_line(error)}): {why}") from error
    if text is None:
        raise InputError(f"{path} has no {KEY!r} in its metadata: {NOT_OURS}")
    said = json.loads(text)
    if said["version"] != VERSION:
        raise InputError(
            f"{path} is of version {said['version']!r}, this package reads {VERSION}: save it anew with it"
        )
    if said["checksum"] != _checksum(tensors):
        raise InputError(f"{path} {DAMAGED} (its checksum is another)")
    return _unzipped(tensors.pop(DESCRIPTION)), tensors


def _unzipped(packed: Tensor) -> Description:
    unzip = zlib.decompressobj()
    text = unzip.decompress(packed.numpy().tobytes(), MOST_TEXT)
    if not unzip.eof:
        raise InputError(f"its description unpacks to more than {MOST_TEXT >> 20} MiB, or is cut short")
    content: Any = json.loads(text, parse_constant=_no_number)
    if not isinstance(content, dict):
        raise InputError(f"its description is a {type(content).__name__}, no table")
    return content


def _no_number(constant: str) -> NoReturn:
    raise InputError(f"its description holds {constant}, which is no JSON")
