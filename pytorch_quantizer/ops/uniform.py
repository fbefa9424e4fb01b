"""The uniform quantizer: fake_quantize, quantize and dequantize."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pytorch_quantizer.backend import raw
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.ops.arguments import (
    CODES,
    FLOATS,
    channel_axis,
    check_code_dtype,
    check_no_gradient,
    check_out,
    grid_arguments,
    mutated,
)
from pytorch_quantizer.reference import smallest_dtype


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
    """Simulate quantization: y = (clamp(round(x/s) + z, qmin, qmax) − z)·s, in float32, rounded once to x's dtype.

    x: any shape and layout, float32, float16 or bfloat16; y has its shape, dtype and layout. NaN stays NaN, ±inf
    saturates. rounding: half_even, half_away, or stochastic (q = ⌊v⌋ + [u < v − ⌊v⌋], v = x/s, u from
    `reference.uniform24(x.shape, seed, offset)`, whatever the layout or device).
    Differentiable in x by straight-through: dx = g·1[qmin ≤ round(x/s) + z ≤ qmax].
    out: written and returned; this form has no autograd. It may be x itself, but may not overlap it otherwise.
    Raises InputError where an argument doesn't fit, or where `out` is given and a gradient is needed.
    """
    grid = grid_arguments(x, scale, zero_point, qmin, qmax, axis, rounding, seed, offset)
    if out is not None:
        check_out(x, out)
        raw.fake_quantize_out.default(x, *grid, out)
        return mutated(out)
    if x.requires_grad and torch.is_grad_enabled():
        return _FakeQuantize.apply(x, *grid)
    return raw.fake_quantize.default(x, *grid)


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
    """`fake_quantize` in place: x is overwritten and returned. No autograd: InputError where a gradient is needed."""
    grid = grid_arguments(x, scale, zero_point, qmin, qmax, axis, rounding, seed, offset)
    check_no_gradient(x, "fake_quantize_")
    raw.fake_quantize_.default(x, *grid)
    return mutated(x)


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
    out: Tensor | None = None,
) -> Tensor:
    """Compute `fake_quantize(relu(x + other))` in one pass, the same to the bit as step by step.

    other: added, or None; relu: whether max(·, 0) follows. Where `other` isn't like x, or a gradient is needed, the
    steps run one by one. out: as in `fake_quantize`; it may be x or other. Raises InputError as `fake_quantize` does.
    """
    if _needs_gradient(x, other) or not _is_like(other, x):
        total = x if other is None else x + other
        total = torch.relu(total) if relu else total
        keywords: dict[str, Any] = {"axis": axis, "rounding": rounding, "seed": seed, "offset": offset, "out": out}
        return fake_quantize(total, scale, zero_point, qmin, qmax, **keywords)
    grid = grid_arguments(x, scale, zero_point, qmin, qmax, axis, rounding, seed, offset)
    if out is None:
        return raw.fused_fake_quantize.default(x, other, relu, *grid)
    check_out(x, out)
    raw.fused_fake_quantize_out.default(x, other, relu, *grid, out)
    return mutated(out)


def _is_like(other: Tensor | None, x: Tensor) -> bool:
    return other is None or (other.shape == x.shape and other.dtype == x.dtype and other.device == x.device)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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
    """Return the codes q = clamp(round(x/s) + z, qmin, qmax) in x's shape and layout; arguments as in `fake_quantize`.

    dtype: int8, uint8, int16 or int32; None takes the smallest that holds [qmin, qmax], unsigned where qmin ≥ 0.
    NaN has no code: it becomes z (clamped to the grid), and so does everything where s isn't positive and finite.
    Not differentiable. Raises InputError where an argument doesn't fit.
    """
    grid = grid_arguments(x, scale, zero_point, qmin, qmax, axis, rounding, seed, offset)
    dtype = smallest_dtype(qmin, qmax) if dtype is None else dtype
    check_code_dtype(dtype, qmin, qmax)
    return raw.quantize.default(x.detach(), *grid, dtype)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Undo `quantize`: y = (q − z)·s, computed in float32 and rounded once to `dtype` (float32, float16, bfloat16).

    codes: int8, uint8, int16 or int32, any shape and layout, |q| ≤ 2²⁴; y has its shape and layout.
    Not differentiable. Raises InputError where an argument doesn't fit, and where a gradient is needed.
    """
    check_no_gradient(scale, "dequantize")
    if codes.dtype not in CODES:
        raise InputError(f"codes must be int8, uint8, int16 or int32, got {codes.dtype}")
    if dtype not in FLOATS:
        raise InputError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    axis = channel_axis(codes, scale, zero_point, axis)
    return raw.dequantize.default(codes, scale, zero_point, axis, dtype)


class _FakeQuantize(torch.autograd.Function):
    """Straight-through fake quantization. (`register_autograd` costs three times as much a call.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, *grid: int) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.grid = grid
        return raw.fake_quantize.default(x, scale, zero_point, *grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        dx = raw.fake_quantize_backward.default(grad, x, scale, zero_point, *ctx.grid)
        return dx, *[None] * (2 + len(ctx.grid))


# --- fake (meta) versions: shape, dtype and layout without data -----------------------------------------------------


@torch.library.register_fake("pytorch_quantizer::fake_quantize")
def _(x: Tensor, *grid: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("pytorch_quantizer::fake_quantize_")
def _(x: Tensor, *grid: Any) -> None:
    return None


@torch.library.register_fake("pytorch_quantizer::fake_quantize_out")
def _(x: Tensor, *grid_out: Any) -> None:
    return None


@torch.library.register_fake("pytorch_quantizer::fused_fake_quantize")
def _(x: Tensor, *other_relu_grid: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("pytorch_quantizer::fused_fake_quantize_out")
def _(x: Tensor, *other_relu_grid_out: Any) -> None:
    return None


@torch.library.register_fake("pytorch_quantizer::fake_quantize_backward")
def _(grad: Tensor, x: Tensor, *grid: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("pytorch_quantizer::fake_quantize_backward_out")
def _(grad: Tensor, x: Tensor, *grid_out: Any) -> None:
    return None


@torch.library.register_fake("pytorch_quantizer::quantize")
def _(x: Tensor, *grid_dtype: Any) -> Tensor:
    return torch.empty_like(x, dtype=grid_dtype[-1])


@torch.library.register_fake("pytorch_quantizer::dequantize")
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(codes, dtype=dtype)
