"""Digests of what tensors and files hold, by which a file is found damaged and a run found to be another one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.user_path import user_path

PIECE = 2**20  # bytes of a file that are read at a time


def tensors_digest(tensors: Mapping[str, Tensor], about: str = "") -> str:
    """SHA-256, 64 hexadecimal digits, over ``about``, then name, dtype, shape and bytes of each tensor by name."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_tensor(tensors: Mapping[str, Tensor], about: str) -> Tensor:
    """``tensors_digest`` as uint8 [32], to lie beside them in a file."""
    return torch.tensor([*bytes.fromhex(tensors_digest(tensors, about))], dtype=torch.uint8)


def file_digest(path: str | Path) -> str:
    """SHA-256 over a file, 64 hexadecimal digits. Raises InputError for one that can't be read."""
    digest = hashlib.sha256()
    try:
        with user_path(path).open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
