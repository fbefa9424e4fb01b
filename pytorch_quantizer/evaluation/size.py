"""Bytes that a model takes: those of its file on disk, and what its tensors add up to without writing one.
The file formats themselves are export/'s business.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from pytorch_quantizer.export.checkpoint import save
from pytorch_quantizer.graph.quantized_model import QuantizedModel


def file_bytes(model: nn.Module) -> int:
    """The size of the model's file on disk, everything in it included; it is written into a temporary folder.

    A QuantizedModel: the packed checkpoint that pq.save writes. A model that runs from a file, which it tells as its
    `path`, as an OnnxRuntimeModel does: that one, as it lies there. Another: its parameters and buffers in safetensors,
    one that has several names once. Raises InputError for a QuantizedModel that pq.save can't write.
    """
    if (own := _own_file(model)) is not None:
        return own.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        if isinstance(model, QuantizedModel):
            save(model, path)
        else:
            save_file(_stored(model), path)
        return path.stat().st_size


def file_label(model: nn.Module) -> str:
    """Which file's bytes file_bytes gives for this model."""
    if isinstance(model, QuantizedModel):
        return "file on disk: packed checkpoint of pq.save"
    if (own := _own_file(model)) is not None:
        return f"file on disk: {own.name}"
    return "file on disk: parameters and buffers as they are, in safetensors"


def size_bytes(model: nn.Module) -> int:
    """What storing the model's tensors takes, headers left out; nothing is written.

    A float model: its parameters and buffers. A QuantizedModel: each quantized weight's codes packed at their bits (a
    tensor is filled up to whole bytes; MX types have a byte more for each block's scale), int32 biases, every
    quantizer's storage (scales, zero points, codebooks), and in float what is left in float.
    """
    if not isinstance(model, QuantizedModel):
        return _bytes([*model.parameters(), *model.buffers()])
    quantized = {site.node: site.quantizer for site in model.sites if site.quantizer is not None}
    codes = left = 0
    for name, parameter in model.named_parameters():
        if name in quantized:
            codes += quantized[name].code_bytes(parameter.shape)
        else:
            left += _bytes([parameter])
    in_quantizers = {id(buffer) for quantizer in quantized.values() for buffer in quantizer.buffers()}
    left += _bytes(buffer for buffer in model.buffers() if id(buffer) not in in_quantizers)
    return codes + left + sum(_bytes(site.quantizer.storage().values()) for site in model.sites if site.quantizer)


def _own_file(model: nn.Module) -> Path | None:
    path = getattr(model, "path", None)
    return path if isinstance(path, Path) else None


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """By name, what the model's state_dict holds, each tensor once, as safetensors takes it."""
    kept = model.state_dict().keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named if name in kept}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
