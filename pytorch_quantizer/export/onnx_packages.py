"""The packages that ONNX needs and this package doesn't: imported when asked for, their absence one clear error."""

from __future__ import annotations

import importlib
from typing import Any

from pytorch_quantizer.errors import InputError

REMEDY = "pip install 'pytorch-quantizer[onnx]'"


def package(name: str) -> Any:
    """The module of that name. Raises InputError that says how to install it where it isn't there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name.split('.')[0]} is missing, which ONNX needs: {REMEDY}") from error
