"""From a layer's sums to codes of the tensor it produces: the one multiplication that integer kernels do in between.
Which sums and which grids is integer.py's business.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pytorch_quantizer.quantization.qparams import QParams

FORMS = ("float32", "fixed_point")
HIGHEST = 2**31 - 1


def scaled(values: Tensor, scale: Tensor, output_scale: Tensor, *, wide: bool = False) -> Tensor:
    """v = values·(scale / output_scale), the multiplier one float32 number, as ONNX Runtime computes; before rounding.

    values: float64 that holds whole numbers, or their averages; scale: broadcastable to it. wide: in float64, for sums
    that int32 does not hold.
    """
    if wide:
        return values * (scale.double() / output_scale.double())
    multiplier = scale.float() / output_scale.float()
    return values.float() * multiplier


def codes_of(v: Tensor, grid: QParams) -> Tensor:
    """clamp(round(v) + z, qmin, qmax), half to even, in int64; NaN takes the code of zero."""
    z = grid.zero_point.double()
    q = torch.round(v.double()) + z
    return torch.where(q.isnan(), z, q).clamp(grid.qmin, grid.qmax).long()


def fixed_point(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """(mantissa, shift) of gemmlowp, multiplier ≈ mantissa·2^(−31 − shift), mantissa in [2^30, 2^31), both int64.

    multiplier: positive and finite. A negative shift is a shift to the left (Jacob et al. 2018, section 2.2).
    """
    fraction, exponent = torch.frexp(multiplier.double())
    mantissa = torch.round(fraction * 2**31).long()
    over = mantissa == 2**31
    return torch.where(over, mantissa // 2, mantissa), -(exponent.long() + over.long())


def multiply_fixed_point(values: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """round(values·mantissa·2^(−31 − shift)) in integers alone, int64, rounded twice as gemmlowp does.

    First the upper half of the doubled product, a tie upwards; then its division by 2^shift, a tie away from zero.
    values: int64 that fit in int32; what a shift to the left would push beyond it saturates.
    """
    left, right = (-shift).clamp(min=0), shift.clamp(min=0)
    values = (values << left).clamp(-HIGHEST - 1, HIGHEST)
    product = values * mantissa
    nudge = torch.where(product >= 0, 2**30, 1 - 2**30)
    high = torch.div(product + nudge, 2**31, rounding_mode="trunc")
    return _divide_by_power(high, right)


def _divide_by_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x / 2^exponent, rounded half away from zero."""
    mask = (torch.ones_like(exponent) << exponent) - 1
    remainder = x & mask
    threshold = (mask >> 1) + (x < 0).long()
    return (x >> exponent) + (remainder > threshold).long()
