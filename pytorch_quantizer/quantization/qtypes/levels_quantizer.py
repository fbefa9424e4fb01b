"""LevelsQuantizer: what types share whose levels are a sorted list: each value goes to the nearest.
Where the levels come from is the business of kmeans_quantizer.py and power_of_two_quantizer.py.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer import ops
from pytorch_quantizer.quantization.qtypes.format_quantizer import FormatQuantizer


class LevelsQuantizer(FormatQuantizer):
    """y = the nearest of at most 2^bits levels, float32; codes are their indices, ascending, uint8.

    A value midway between two levels goes to the one nearer to zero, between −a and a to −a. NaN stays NaN in forward
    and is coded as 0 is; infinite values go to the outermost levels. A code that has no level is dequantized to NaN.
    One buffer is ``stored``.
    """

    def __init__(self, bits: int | None = None, **settings: Any) -> None:
        super().__init__(bits, **settings)
        self._known: _Tables | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the tables: a copy's buffer counts its changes anew and could pass for the original's."""
        return self.__dict__ | {"_known": None}

    @abstractmethod
    def levels(self) -> Tensor:
        """The levels, ascending, float32: [K], or [C, K] along ``axis``. Raises InputError before ``fit``."""

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """As FormatQuantizer's, in one pass where no gradient is needed."""
        if x.requires_grad and torch.is_grad_enabled():
            return super().forward(x)
        tables = self._tables()
        return ops.codebook_fake_quantize(x, tables.levels, tables.highest, axis=self.axis, out=x if inplace else None)

    def _simulate(self, x: Tensor) -> Tensor:
        tables = self._tables()
        return ops.codebook_fake_quantize(x, tables.levels, tables.highest, axis=self.axis)

    def quantize(self, x: Tensor) -> Tensor:
        """The index of the nearest level, uint8."""
        return ops.codebook_quantize(x, self._tables().highest, axis=self.axis)

    def dequantize(self, codes: Tensor) -> Tensor:
        """The levels of indices, float32."""
        return ops.codebook_dequantize(codes, self._tables().levels, axis=self.axis)

    def range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest level."""
        levels = self.levels()
        return levels[..., 0], levels[..., -1]

    def _tables(self) -> _Tables:
        """The levels and their thresholds, computed once for as long as the stored buffer stays what it is."""
        self._check_fitted()
        stored: Tensor = getattr(self, self.stored[0])
        if torch.compiler.is_compiling() or stored.is_inference():  # neither tells whether the buffer was changed
            return _Tables.of(self.levels())
        if self._known is None or not self._known.made_from(stored):
            self._known = _Tables.of(self.levels(), stored, stored._version)
        return self._known


@dataclass(frozen=True)
class _Tables:
    """What the ops take, and the buffer it was made from, as it was after so many changes in place."""

    levels: Tensor
    highest: Tensor
    stored: Tensor | None
    version: int

    @classmethod
    def of(cls, levels: Tensor, stored: Tensor | None = None, version: int = 0) -> _Tables:
        return cls(levels, _highest_of_each(levels), stored, version)

    def made_from(self, stored: Tensor) -> bool:
        return self.stored is stored and self.version == stored._version


def _highest_of_each(levels: Tensor) -> Tensor:
    """The highest float32 that still goes to each level but the last: [K − 1] of [K], or [C, K − 1] of [C, K]."""
    middle = (levels[..., :-1].double() + levels[..., 1:].double()) / 2
    highest = middle.float()
    # Below zero the level above is the nearer to zero, so a middle that float32 holds is its own.
    too_high = (highest.double() > middle) | ((highest.double() == middle) & (middle < 0))
    return torch.where(too_high, torch.nextafter(highest, highest.new_tensor(-torch.inf)), highest).contiguous()
