"""Number types: one file each, and the registry that recipes' names ("int4", "float32") are looked up in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.qparams import MAX_BITS
from pytorch_quantizer.quantization.qtypes.bias_quantizer import BiasQuantizer
from pytorch_quantizer.quantization.qtypes.int_quantizer import IntQuantizer
from pytorch_quantizer.quantization.qtypes.quantizer import Quantizer

__all__ = ["NUMBER_TYPES", "BiasQuantizer", "IntQuantizer", "NumberType", "Quantizer"]

NUMBER_TYPES: dict[str, type[Quantizer]] = {"int": IntQuantizer}
FLOAT_BITS = 32


@dataclass(frozen=True)
class NumberType:
    """What a recipe asks of a tensor: a number type's name and its bits. "float32" leaves the tensor as it is."""

    name: str
    bits: int

    @classmethod
    def parse(cls, text: str) -> NumberType:
        """Read "int4" or "float32". Raises InputError that names the rule for anything else."""
        if text in ("float32", "float"):
            return cls("float", FLOAT_BITS)
        match = re.fullmatch(r"([a-z_]+?)(\d+)", str(text))
        if not match or match[1] not in NUMBER_TYPES:
            known = ", ".join(f"{name}1 … {name}{MAX_BITS}" for name in NUMBER_TYPES)
            raise InputError(f"a number type must be one of {known} or float32, got {text!r}")
        bits = int(match[2])
        if not 1 <= bits <= MAX_BITS:
            raise InputError(f"bits must be between 1 and {MAX_BITS}, got {bits} in {text!r}")
        return cls(match[1], bits)

    @property
    def is_float(self) -> bool:
        """Whether the tensor stays in float."""
        return self.name == "float"

    def __str__(self) -> str:
        return f"{self.name}{self.bits}"
