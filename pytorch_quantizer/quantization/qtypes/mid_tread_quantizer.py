"""MidTreadQuantizer: uniform grids around zero whose number of levels differs from channel to channel.
How many each channel gets is decided in bit_allocation.py. Integer kernels don't run it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.clipping import ANY_VALUES, Domain
from pytorch_quantizer.quantization.qparams import MAX_BITS, MAX_SCALE, MIN_SCALE, GridSpec
from pytorch_quantizer.quantization.qtypes.allocated_quantizer import AllocatedQuantizer, Grid, whole_numbers
from pytorch_quantizer.quantization.statistics import TensorStatistics


class MidTreadQuantizer(AllocatedQuantizer):
    """Channel c has B_c levels, any whole number, of which zero is one: y = clamp(round(x / s_c), −h_c, h_c) · s_c.

    levels: B_c = 2·h_c + 1, odd, [C]; unsigned: codes 0 to B_c − 1. A channel of one level keeps its mean.
    The range is ``clip``'s for log2 B_c bits, between those for the whole numbers of bits beside it (a signed grid's
    2 bits and more): s_c = max(|lo|, |hi|)/h_c. The other arguments are AllocatedQuantizer's.
    Raises InputError for an even number of levels on a signed grid.
    """

    def __init__(
        self,
        levels: Tensor,
        *,
        signed: bool = True,
        axis: int = 0,
        clip: str = "minmax",
        domain: Domain = ANY_VALUES,
        across_batches: str = "max",
        rounding: str = "half_even",
        seed: int = 0,
    ) -> None:
        super().__init__(
            levels,
            signed=signed,
            axis=axis,
            clip=clip,
            domain=domain,
            across_batches=across_batches,
            rounding=rounding,
            seed=seed,
        )

    def _levels_of(self, bits: Tensor) -> Tensor:
        levels = whole_numbers("levels", bits, 1, 2**MAX_BITS)
        if self.signed and not bool(torch.all(levels % 2)):
            even = int(levels[levels % 2 == 0][0])
            raise InputError(
                f"levels of a signed mid-tread grid must be odd, zero and as many on each side, got {even}"
            )
        return levels

    def _limits(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        half = (levels - 1) // 2
        return (-half, half) if self.signed else (torch.zeros_like(levels), levels - 1)

    def _coarse(self) -> Tensor:
        return self.levels == 1

    def _grid(self, statistics: TensorStatistics, levels: int, index: Tensor) -> Grid:
        if levels == 1:
            return self._coarse_grid(statistics, levels, index)
        bits, fewest = math.log2(levels), 2 if self.signed else 1
        specs = [
            GridSpec(min(max(whole, fewest), MAX_BITS), signed=self.signed, symmetric=True)
            for whole in (math.floor(bits), math.ceil(bits))
        ]
        (lo, hi), (further_lo, further_hi) = (self._range(statistics, self.clip, spec) for spec in specs)
        lo, hi = (torch.lerp(a, b, bits % 1) for a, b in ((lo, further_lo), (hi, further_hi)))
        if not self.signed and bool(torch.any(lo < 0)):
            raise InputError("an unsigned mid-tread grid can't hold negative values; use signed=True")
        extent = torch.maximum(lo.abs(), hi.abs())
        scale = torch.where(extent == 0, 1.0, extent / self.highest[index]).clamp(MIN_SCALE, MAX_SCALE).float()
        return scale, torch.zeros_like(index, dtype=torch.int32), torch.zeros_like(scale)

    def _stored_levels(self) -> dict[str, Tensor]:
        return {"levels": self.levels.to(torch.int32)}

    def describe(self) -> str:
        """midtread~15.50levels: the mean number of levels."""
        return f"midtread~{float(self.levels.double().mean()):.2f}levels"
