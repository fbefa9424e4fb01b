"""A grid laid over a tensor's own statistics, and the tensor put on it, in plain PyTorch."""

import torch
from torch import Tensor

from pytorch_quantizer.reference.statistics import tensor_statistics
from pytorch_quantizer.reference.uniform import fused_fake_quantize

_FLOAT32 = torch.finfo(torch.float32)


@torch.no_grad()
def online_fake_quantize(
    x: Tensor,
    qmin: int,
    qmax: int,
    *,
    relu: bool = False,
    spread: str = "none",
    reach: float = 0.0,
    support: str = "real",
    ceiling: float = float("inf"),
    symmetric: bool = False,
    axis: int | None = None,
    rounding: str = "half_even",
    seed: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, scale, zero_point): y = fake_quantize(relu(x)) on the grid over the range that x's statistics give."""
    statistics = tensor_statistics(x, axis=axis)
    lo, hi = _range(statistics, spread, reach, support, ceiling)
    scale, zero_point = _grid(lo, hi, qmin, qmax, symmetric)
    known = (statistics[0] > 0) & torch.isfinite(statistics[1]) & torch.isfinite(statistics[2])
    scale, zero_point = torch.where(known, scale, torch.nan), torch.where(known, zero_point, 0)
    y = fused_fake_quantize(
        x, scale, zero_point, qmin, qmax, relu=relu, axis=axis, rounding=rounding, seed=seed, offset=offset
    )
    return y, scale, zero_point


def _range(statistics: Tensor, spread: str, reach: float, support: str, ceiling: float) -> tuple[Tensor, Tensor]:
    """[μ ± reach·spread], or [0, max(μ, 0) + reach·spread], inside what was observed; float64, [] or [C]."""
    _, lo, hi, mean, abs_dev, variance, _, positive_mean, positive_square = statistics
    if support == "rectified":
        lo, hi = lo.clamp(0, ceiling), hi.clamp(0, ceiling)
    if spread == "none":
        return lo, hi
    if support == "nonnegative":
        mean, abs_dev, variance = torch.zeros_like(mean), positive_mean, positive_square
    alpha = reach * (abs_dev if spread == "abs_dev" else variance.sqrt())
    below, above = (mean - alpha, mean + alpha) if support == "real" else (0 * alpha, mean.clamp(min=0) + alpha)
    return below.clamp(lo, hi), above.clamp(lo, hi)


def _grid(lo: Tensor, hi: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """GEMMLOWP's scale, float32, and zero point, int32, over [lo, hi]."""
    if not symmetric:
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    point = (lo == 0) & (hi == 0)
    step = torch.maximum(lo.abs(), hi.abs()) / qmax if symmetric else (hi - lo) / (qmax - qmin)
    scale = torch.where(point, 1.0, step).clamp(2.0**-126, _FLOAT32.max).to(torch.float32)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero = torch.round(qmin - lo / scale.to(torch.float64)).clamp(qmin, qmax)
    centred = ((lo + hi).abs() <= 1e-6 * (hi - lo)) & (hi > lo)
    zero = torch.where(centred, 0.0 if qmin < 0 else (qmax + 1) / 2, zero)
    return scale, torch.where(point, float(max(qmin, 0)), zero).to(torch.int32)
