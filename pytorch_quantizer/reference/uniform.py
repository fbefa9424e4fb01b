"""The uniform quantizer in plain PyTorch."""

import torch
from torch import Tensor

from pytorch_quantizer.reference.rounding import round_to_integer


def along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Return `values` in float32, [] or [C] laid along `axis` of x."""
    shape = [] if axis is None else [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
    return values.to(torch.float32).reshape(shape)


def valid(scale: Tensor) -> Tensor:
    """`scale`, NaN where it isn't positive and finite."""
    return torch.where((scale > 0) & torch.isfinite(scale), scale, torch.full_like(scale, torch.nan))


def whole_zero_point(zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Return the zero point that runs: a float32 one, which is being learned, rounded and put on the grid."""
    return torch.round(zero_point).clamp(qmin, qmax) if zero_point.is_floating_point() else zero_point


def _unclamped(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, rounding: str, seed: int, offset: int
) -> Tensor:
    """round(x/s) + z in float32; NaN where s isn't positive and finite."""
    v = x.to(torch.float32) / valid(along(scale, x, axis))
    return round_to_integer(v, rounding, seed, offset) + along(zero_point, x, axis)


@torch.no_grad()
def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    rounding: str = "half_even",
    seed: int = 0,
    offset: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Compute y = (clamp(round(x/s) + z, qmin, qmax) − z)·s, in float32, rounded once to x's dtype. No graph."""
    zero_point = whole_zero_point(zero_point, qmin, qmax)
    q = _unclamped(x, scale, zero_point, axis, rounding, seed, offset).clamp(qmin, qmax)
    y = ((q - along(zero_point, x, axis)) * valid(along(scale, x, axis))).to(x.dtype)
    return torch.empty_like(x).copy_(y) if out is None else out.copy_(y)


def fake_quantize_(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    rounding: str = "half_even",
    seed: int = 0,
    offset: int = 0,
) -> Tensor:
    """`fake_quantize` in place; returns x."""
    return fake_quantize(
        x, scale, zero_point, qmin, qmax, axis=axis, rounding=rounding, seed=seed, offset=offset, out=x
    )


@torch.no_grad()
def fused_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    *,
    other: Tensor | None = None,
    relu: bool = False,
    axis: int | None = None,
    rounding: str = "half_even",
    seed: int = 0,
    offset: int = 0,
) -> Tensor:
    """fake_quantize(relu(x + other)), each step rounded to x's dtype, laid out as x."""
    total = x if other is None else x + other
    total = torch.relu(total) if relu else total
    y = torch.empty_like(x)
    return fake_quantize(
        total, scale, zero_point, qmin, qmax, axis=axis, rounding=rounding, seed=seed, offset=offset, out=y
    )


@torch.no_grad()
def fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    rounding: str = "half_even",
    seed: int = 0,
    offset: int = 0,
) -> Tensor:
    """Compute dx = g where qmin ≤ round(x/s) + z ≤ qmax, else 0 (also where x or s is NaN), laid out as x."""
    zero_point = whole_zero_point(zero_point, qmin, qmax)
    q = _unclamped(x, scale, zero_point, axis, rounding, seed, offset)
    return torch.empty_like(x).copy_(torch.where((q >= qmin) & (q <= qmax), grad, torch.zeros_like(grad)))


@torch.no_grad()
def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    rounding: str = "half_even",
    seed: int = 0,
    offset: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute codes q = clamp(round(x/s) + z, qmin, qmax), laid out as x; NaN has no code and becomes clamp(z)."""
    zero_point = whole_zero_point(zero_point, qmin, qmax)
    q = _unclamped(x, scale, zero_point, axis, rounding, seed, offset)
    q = torch.where(torch.isnan(q), along(zero_point, x, axis), q).clamp(qmin, qmax)
    dtype = dtype or smallest_dtype(qmin, qmax)
    return torch.empty_like(x, dtype=dtype).copy_(q)


def smallest_dtype(qmin: int, qmax: int) -> torch.dtype:
    """Name the smallest of uint8, int8, int16, int32 that holds [qmin, qmax]."""
    for dtype in (torch.uint8, torch.int8, torch.int16):
        if torch.iinfo(dtype).min <= qmin and qmax <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32


@torch.no_grad()
def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    axis: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute y = (q − z)·s in float32, rounded once to `dtype`; NaN where s isn't positive and finite."""
    zero = along(zero_point, codes, axis)
    y = (codes.to(torch.float32) - zero) * valid(along(scale, codes, axis))
    return torch.empty_like(codes, dtype=dtype).copy_(y)
