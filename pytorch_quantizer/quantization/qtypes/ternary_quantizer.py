"""TernaryQuantizer: −α, 0 and +α, the α that leaves the least squared error. int_quantizer.py has other grids."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pytorch_quantizer import ops
from pytorch_quantizer.quantization.qparams import MAX_SCALE, MIN_SCALE
from pytorch_quantizer.quantization.qtypes.format_quantizer import FormatQuantizer
from pytorch_quantizer.quantization.qtypes.observed import weighted_points
from pytorch_quantizer.quantization.statistics import TensorStatistics


class TernaryQuantizer(FormatQuantizer):
    """y = α·t, t = clamp(round(x / α), −1, 1), per tensor or per channel; α minimises Σ(x − y)².

    Li & Liu (2016), "Ternary weight networks": with t = ±1 on the k largest |x| the best α is their mean and the error
    Σx² − (Σ|x|)²/k. They put the threshold near 0.7·E|x|; here every k is tried, which is exact: at the best k the
    threshold is α/2, that of rounding. Ties go to 0. Codes −1, 0, 1, int8; zero point 0, scale α, so integer kernels
    can run it. α = 1 where all is zero. Fitted to statistics, it is the optimum of the histogram's bins.
    """

    is_integer = True
    widths = range(2, 3)
    fixed_bits = 2
    stored: ClassVar[tuple[str, ...]] = ("scale",)

    @property
    def needs_histogram(self) -> bool:
        """Always: the threshold depends on how the values are spread."""
        return True

    @property
    def zero_point(self) -> Tensor:
        """0, int32, the shape of scale."""
        self._check_fitted()
        return torch.zeros_like(self.scale, dtype=torch.int32)

    def _fit(self, statistics: TensorStatistics, x: Tensor | None) -> None:
        values, counts = weighted_points(statistics, x, axis=self.axis, domain=self.domain, family="ternary")
        magnitudes, order = values.double().abs().sort(dim=1, descending=True)
        weights = torch.ones_like(magnitudes) if counts is None else counts.gather(1, order)
        many, total = weights.cumsum(1), (weights * magnitudes).cumsum(1)
        best = (total.square() / many.clamp(min=1)).argmax(1, keepdim=True)
        scale = (total.gather(1, best) / many.gather(1, best).clamp(min=1))[:, 0]
        scale = torch.where(scale == 0, 1.0, scale).clamp(MIN_SCALE, MAX_SCALE)
        self.scale = self._per_channel(scale.to(torch.float32))

    def _simulate(self, x: Tensor) -> Tensor:
        return ops.fake_quantize(x, self.scale, self.zero_point, -1, 1, axis=self.axis)

    @property
    def signed_codes(self) -> bool:
        """−1 is one."""
        return True

    def quantize(self, x: Tensor) -> Tensor:
        """−1, 0, 1; int8; NaN is coded 0."""
        zero_point = self.zero_point
        return ops.quantize(x, self.scale, zero_point, -1, 1, axis=self.axis)

    def dequantize(self, codes: Tensor) -> Tensor:
        """q · α, float32."""
        zero_point = self.zero_point
        return ops.dequantize(codes, self.scale, zero_point, axis=self.axis)

    def range(self) -> tuple[Tensor, Tensor]:
        """[−α, α]."""
        self._check_fitted()
        return -self.scale, self.scale
