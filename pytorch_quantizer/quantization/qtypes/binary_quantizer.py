"""BinaryQuantizer: −α and +α, α = E|x| (XNOR-Net). Uniform grids of one bit are int_quantizer.py's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.qparams import MAX_SCALE, MIN_SCALE
from pytorch_quantizer.quantization.qtypes.format_quantizer import FormatQuantizer
from pytorch_quantizer.quantization.statistics import TensorStatistics, check_observed


class BinaryQuantizer(FormatQuantizer):
    """y = α·sign(x), sign(0) = sign(−0) = +1, per tensor or per channel; α = E|x| minimises Σ(x − y)².

    Rastegari et al. (2016), "XNOR-Net", eq. 6. Codes −1 and +1, int8; zero point 0, scale α, so integer kernels can
    run it. Zero is no level; α is kept at or above 2^−126, so an all-zero channel comes out as that. NaN stays NaN in
    forward and is coded +1. Of a tensor without negative values one level alone would be used: ``fit`` refuses it.
    """

    is_integer = True
    widths = range(1, 2)
    fixed_bits = 1
    stored: ClassVar[tuple[str, ...]] = ("scale",)

    def _fit(self, statistics: TensorStatistics, x: Tensor | None) -> None:
        check_observed(statistics)
        if self.domain.support != "real":
            raise InputError("binary has the levels −α and +α, and the tensor is never negative; use int1 for it")
        # E|x| = 2·E max(x, 0) − E x, with what the statistics hold.
        positive = statistics.positive_mean * statistics.positive_count / statistics.count
        magnitude = (2 * positive - statistics.mean).clamp(MIN_SCALE, MAX_SCALE)
        self.scale = magnitude.to(torch.float32)

    @property
    def zero_point(self) -> Tensor:
        """0, int32, the shape of scale."""
        self._check_fitted()
        return torch.zeros_like(self.scale, dtype=torch.int32)

    def _simulate(self, x: Tensor) -> Tensor:
        scale = self._along(self.scale, x)
        return torch.where(x.isnan(), x, torch.where(x < 0, -scale, scale))

    def pack(self, codes: Tensor) -> dict[str, Tensor]:
        """A bit a code: 0 for −1, 1 for +1."""
        return super().pack((codes > 0).to(torch.uint8))

    def unpack(self, packed: dict[str, Tensor], shape: Iterable[int]) -> Tensor:
        """−1 and +1 again, int8."""
        return super().unpack(packed, shape).to(torch.int8) * 2 - 1

    def quantize(self, x: Tensor) -> Tensor:
        """−1 where x < 0, else +1; int8."""
        self._check_fitted()
        return torch.where(x < 0, -1, 1).to(torch.int8)

    def dequantize(self, codes: Tensor) -> Tensor:
        """q · α, float32."""
        self._check_fitted()
        return codes * self._along(self.scale, codes)

    def range(self) -> tuple[Tensor, Tensor]:
        """[−α, α]."""
        self._check_fitted()
        return -self.scale, self.scale
