"""The kernels in plain PyTorch: the specification they are tested against, bit for bit, and what runs without them.
Nothing here checks arguments (ops.py does), carries a graph, or is meant to be fast.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def uniform24(shape: torch.Size, seed: int, offset: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2⁻²⁴, float32 of `shape`: Philox4x32-10 (Salmon et al. 2011).

    The element at row-major index i takes counter (lo32(n), hi32(n), 0, 0), n = offset + i mod 2⁶⁴, key (lo32(seed),
    hi32(seed)) and, of the four words that come out, the upper 24 bits of the first.
    """
    counter = torch.arange(shape.numel(), dtype=torch.int64, device=device).view(shape) + offset
    a, b = counter & _WORD, (counter >> 32) & _WORD
    c, d = torch.zeros_like(a), torch.zeros_like(a)
    key_a, key_b = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        low, high = a * 0xD2511F53, c * 0xCD9E8D57  # wrap modulo 2⁶⁴: the mask after the shift undoes the sign
        a, b, c, d = ((high >> 32) & _WORD) ^ b ^ key_a, high & _WORD, ((low >> 32) & _WORD) ^ d ^ key_b, low & _WORD
        key_a, key_b = (key_a + 0x9E3779B9) & _WORD, (key_b + 0xBB67AE85) & _WORD
    return (a >> 8).to(torch.float32) * 2.0**-24


def _round(v: Tensor, rounding: str, seed: int, offset: int) -> Tensor:
    if rounding == "half_even":
        return torch.round(v)
    if rounding == "half_away":
        whole = torch.trunc(v)
        return whole + torch.where((v - whole).abs() >= 0.5, torch.sign(v), torch.zeros_like(v))
    below = torch.floor(v)
    return below + (uniform24(v.shape, seed, offset, v.device) < v - below).to(v.dtype)


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """`values` in float32, [] or [C] laid along `axis` of x."""
    shape = [] if axis is None else [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
    return values.to(torch.float32).reshape(shape)


def _valid(scale: Tensor) -> Tensor:
    return torch.where((scale > 0) & torch.isfinite(scale), scale, torch.full_like(scale, torch.nan))


def _unclamped(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, rounding: str, seed: int, offset: int
) -> Tensor:
    """round(x/s) + z in float32; NaN where s isn't positive and finite."""
    v = x.to(torch.float32) / _valid(_along(scale, x, axis))
    return _round(v, rounding, seed, offset) + _along(zero_point, x, axis)


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
    q = _unclamped(x, scale, zero_point, axis, rounding, seed, offset).clamp(qmin, qmax)
    y = ((q - _along(zero_point, x, axis)) * _valid(_along(scale, x, axis))).to(x.dtype)
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
    q = _unclamped(x, scale, zero_point, axis, rounding, seed, offset)
    q = torch.where(torch.isnan(q), _along(zero_point, x, axis), q).clamp(qmin, qmax)
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
    zero = _along(zero_point, codes, axis)
    y = (codes.to(torch.float32) - zero) * _valid(_along(scale, codes, axis))
    return torch.empty_like(codes, dtype=dtype).copy_(y)


@torch.no_grad()
def tensor_statistics(x: Tensor, *, axis: int | None = None) -> Tensor:
    """Compute the rows of `ops.STATISTICS` in float64: [9], or [9, C] along `axis`."""
    rows = (x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)).to(torch.float64)
    statistics = _row_statistics(rows)
    return statistics[:, 0] if axis is None else statistics


def _row_statistics(rows: Tensor) -> Tensor:
    """[C, n] → [9, C]. Adding 0.0 to min and max makes −0 and +0 the same number."""
    n = rows.shape[1]
    count, positive = rows.new_full(rows.shape[:1], n), rows > 0
    low = rows.amin(1) + 0.0 if n else torch.full_like(count, torch.inf)
    high = rows.amax(1) + 0.0 if n else torch.full_like(count, -torch.inf)
    mean = rows.sum(1) / max(n, 1)
    centred = rows - mean[:, None]
    abs_dev, variance = centred.abs().sum(1) / max(n, 1), centred.square().sum(1) / max(n, 1)
    kept, positive_count = torch.where(positive, rows, 0.0), positive.sum(1).to(torch.float64)
    positive_mean, positive_square = (k.sum(1) / positive_count.clamp(min=1) for k in (kept, kept.square()))
    return torch.stack([count, low, high, mean, abs_dev, variance, positive_count, positive_mean, positive_square])


def histogram(x: Tensor, exponent: Tensor, *, bins: int, axis: int | None = None) -> Tensor:
    """Count values in bins of width 2^k: int64 [bins + 2], or [C, bins + 2] along `axis`; zeros, then those outside.

    In float64, where the product with a power of two is exact for every float32.
    """
    rows = (x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)).to(torch.float64)
    place = torch.floor(torch.ldexp(rows, -exponent.reshape(-1, 1))) + bins // 2
    place = torch.where((place >= 0) & (place < bins), place, bins + 1.0)
    place = torch.where(rows == 0, float(bins), place).to(torch.int64)
    counts = place.new_zeros(rows.shape[0], bins + 2).scatter_add_(1, place, torch.ones_like(place))
    return counts[0] if axis is None else counts
