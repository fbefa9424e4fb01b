"""What all points of a sweep share: how many images, on which device; flags of the command and keys of the file.
What differs between points is plan.py's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.user_path import user_path


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Each field's ``metadata["help"]`` is its flag's help. Raises InputError where a value is out of its rule."""

    data: Path | None = _option(None, "folder of the data sets that name none themselves")
    calibration_samples: int = _option(1024, "images that ranges are chosen from, drawn from the training split")
    batch_size: int = _option(128, "images a batch")
    limit: int | None = _option(None, "evaluate this many images, spread evenly over the data set; default: all")
    image_size: int | None = _option(None, "pixels that images are brought to, square; default: each network's own")
    device: str | None = _option(None, "cpu, cuda or cuda:N; default: the GPU if it works")
    strict: bool = _option(False, "a module that can't be captured is an error instead of staying in float")
    skip_corrupt: bool = _option(False, "pass over images that can't be decoded, and count them")

    def __post_init__(self) -> None:
        for name in ("calibration_samples", "batch_size", "limit", "image_size"):
            _check_count(name, getattr(self, name), optional=name in ("limit", "image_size"))
        for name in ("strict", "skip_corrupt"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.device is not None and not isinstance(self.device, str):
            raise InputError(f"device must be cpu, cuda or cuda:N, got {self.device!r}")
        if self.data is not None:
            object.__setattr__(self, "data", expanded("data", self.data))


def _check_count(name: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a whole number of 1 or more, got {value!r}")


def expanded(name: str, text: Any) -> Path:
    """A path with ~ and $VARIABLES filled in. Raises InputError for a variable that isn't set, and for no path."""
    if not isinstance(text, str | Path):
        raise InputError(f"{name} must be a path, got {text!r}")
    path = os.path.expandvars(str(text))
    if "$" in path:
        raise InputError(f"{name} {str(text)!r} names a variable that isn't set: set it, or write the path out")
    return user_path(path)
