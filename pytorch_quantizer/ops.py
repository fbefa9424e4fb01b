"""The Python face of each kernel: argument checks, fake (meta) version, autograd.
The arithmetic lives in kernels/ and, in plain PyTorch, in reference.py; which of the two runs is decided in backend.py.

Everywhere: `scale` is float32 and `zero_point` int32, both [] with axis None (per tensor) or [C] with `axis` naming the
dimension of size C (per channel). An s that isn't positive and finite gives NaN; values are never read on the host.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pytorch_quantizer.backend import ROUNDINGS as ROUNDINGS
from pytorch_quantizer.backend import load
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.reference import smallest_dtype

MAX_BINS = 2**24
STATISTICS = (
    "count",
    "min",
    "max",
    "mean",
    "abs_dev",
    "variance",
    "positive_count",
    "positive_mean",
    "positive_mean_square",
)

_ROUNDING_INDEX = {name: index for index, name in enumerate(ROUNDINGS)}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_CODES = (torch.int8, torch.uint8, torch.int16, torch.int32)
_LARGEST_CODE = 2**24  # float32 counts no further than this in steps of one

load()
_raw = torch.ops.pytorch_quantizer


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
    grid = _grid_arguments(x, scale, zero_point, qmin, qmax, axis, rounding, seed, offset)
    if out is not None:
        _check_out(x, out)
        _raw.fake_quantize_out.default(x, *grid, out)
        return _mutated(out)
    if x.requires_grad and torch.is_grad_enabled():
        return _FakeQuantize.apply(x, *grid)
    return _raw.fake_quantize.default(x, *grid)


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
    grid = _grid_arguments(x, scale, zero_point, qmin, qmax, axis, rounding, seed, offset)
    _check_no_gradient(x, "fake_quantize_")
    _raw.fake_quantize_.default(x, *grid)
    return _mutated(x)


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
    grid = _grid_arguments(x, scale, zero_point, qmin, qmax, axis, rounding, seed, offset)
    dtype = smallest_dtype(qmin, qmax) if dtype is None else dtype
    _check_code_dtype(dtype, qmin, qmax)
    return _raw.quantize.default(x.detach(), *grid, dtype)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Undo `quantize`: y = (q − z)·s, computed in float32 and rounded once to `dtype` (float32, float16, bfloat16).

    codes: int8, uint8, int16 or int32, any shape and layout, |q| ≤ 2²⁴; y has its shape and layout.
    Not differentiable. Raises InputError where an argument doesn't fit.
    """
    if codes.dtype not in _CODES:
        raise InputError(f"codes must be int8, uint8, int16 or int32, got {codes.dtype}")
    if dtype not in _FLOATS:
        raise InputError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    axis = _channel_axis(codes, scale, zero_point, axis)
    return _raw.dequantize.default(codes, scale, zero_point, axis, dtype)


def tensor_statistics(x: Tensor, *, axis: int | None = None) -> Tensor:
    """Measure what calibration needs of one tensor, in at most two reads: float64 [9], or [9, C] along `axis`.

    Rows, as in STATISTICS: count, min, max, mean μ, E|x − μ|, variance E(x − μ)², and of the positive part its count,
    E[x | x > 0] and E[x² | x > 0]. Empty: count 0, min +inf, max −inf, the rest 0. NaN makes min, max, mean, abs_dev
    and variance NaN. Sums are float64 over fixed chunks in a fixed order: the same bits for any number of threads.
    x: float32, float16 or bfloat16, any layout. Not differentiable. Raises InputError where an argument doesn't fit.
    """
    _check_float("x", x)
    raw_axis = -1 if axis is None else _dimension(x, axis)
    return _raw.tensor_statistics.default(x.detach(), raw_axis)


def histogram(x: Tensor, exponent: Tensor, *, bins: int, axis: int | None = None) -> Tensor:
    """Count values in bins of width 2^k, in one read: int64 [bins + 2], or [C, bins + 2] along `axis`.

    Entry i < bins: x in [(i − bins/2)·2^k, (i + 1 − bins/2)·2^k), exactly, zeros left out. Then the exact zeros, then
    what lies in no bin, NaN with it. exponent: k, int64 [] or [C], −126 to 127. bins: a power of two, 2 to 2^24.
    x: float32, float16 or bfloat16, any layout. Not differentiable. Raises InputError where an argument doesn't fit.
    """
    _check_float("x", x)
    raw_axis = -1 if axis is None else _dimension(x, axis)
    shape = [] if axis is None else [x.shape[raw_axis]]
    if exponent.dtype != torch.int64 or list(exponent.shape) != shape or exponent.device != x.device:
        found = f"{exponent.dtype} {list(exponent.shape)} on {exponent.device}"
        raise InputError(f"exponent must be int64 {shape} on x's device {x.device}, got {found}")
    if not 2 <= bins <= MAX_BINS or bins & (bins - 1):
        raise InputError(f"bins must be a power of two from 2 to {MAX_BINS}, got {bins}")
    return _raw.histogram.default(x.detach(), exponent, bins, raw_axis)


class _FakeQuantize(torch.autograd.Function):
    """Straight-through fake quantization. (`register_autograd` costs three times as much a call.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, *grid: int) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.grid = grid
        return _raw.fake_quantize.default(x, scale, zero_point, *grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        dx = _raw.fake_quantize_backward.default(grad, x, scale, zero_point, *ctx.grid)
        return dx, *[None] * (2 + len(ctx.grid))


# --- argument checks: shapes, dtypes and devices alone, so that nothing waits for a GPU -----------------------------


def _grid_arguments(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None,
    rounding: str,
    seed: int,
    offset: int,
) -> tuple[Any, ...]:
    """Return the checked arguments in the order of the raw ops, after x."""
    _check_float("x", x)
    axis = _channel_axis(x, scale, zero_point, axis)
    if not -_LARGEST_CODE <= qmin < qmax <= _LARGEST_CODE:
        raise InputError(f"qmin < qmax must hold, both within ±2**24, got qmin={qmin}, qmax={qmax}")
    index = _ROUNDING_INDEX.get(rounding)
    if index is None:
        raise InputError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if index == 2:
        _check_random(seed, offset)
    if scale.requires_grad and torch.is_grad_enabled():
        raise InputError("scale must not need a gradient here (only x gets one): pass scale.detach()")
    return scale, zero_point, qmin, qmax, axis, index, seed, offset


def _check_float(name: str, x: Tensor) -> None:
    if x.dtype not in _FLOATS:
        raise InputError(f"{name} must be float32, float16 or bfloat16, got {x.dtype}")


def _channel_axis(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> int:
    """Return the checked axis as the raw ops take it: not negative, or -1 for per tensor."""
    if scale.dtype != torch.float32 or zero_point.dtype != torch.int32:
        raise InputError(f"scale must be float32 and zero_point int32, got {scale.dtype} and {zero_point.dtype}")
    if scale.device != x.device or zero_point.device != x.device:
        raise InputError(
            f"scale and zero_point must be on the tensor's device {x.device}, got {scale.device}, {zero_point.device}"
        )
    if axis is None:
        raw, expected = -1, x.shape[:0]
    else:
        raw = _dimension(x, axis)
        expected = x.shape[raw : raw + 1]
    if scale.shape != expected or zero_point.shape != expected:
        raise InputError(
            f"scale and zero_point must have shape {list(expected)} with axis={axis} and a tensor of shape "
            f"{list(x.shape)}, got {list(scale.shape)} and {list(zero_point.shape)}"
        )
    return raw


def _dimension(x: Tensor, axis: int) -> int:
    if not -x.dim() <= axis < x.dim():
        raise InputError(f"axis must name one of the {x.dim()} dimensions of the tensor, got {axis}")
    return axis % x.dim()


def _check_random(seed: int, offset: int) -> None:
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"seed must fit in 64 bits, got {seed}")
    if not 0 <= offset < 2**63:
        raise InputError(f"offset must be between 0 and 2**63 - 1, got {offset}")


def _check_out(x: Tensor, out: Tensor) -> None:
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise InputError(
            f"out must be like x ({list(x.shape)}, {x.dtype}, {x.device}), "
            f"got {list(out.shape)}, {out.dtype}, {out.device}"
        )
    _check_no_gradient(x, "fake_quantize with out=")
    _check_no_gradient(out, "fake_quantize with out=")


def _check_no_gradient(x: Tensor, form: str) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise InputError(f"{form} has no gradient and a tensor needs one: use fake_quantize, or torch.no_grad()")


def _check_code_dtype(dtype: torch.dtype, qmin: int, qmax: int) -> None:
    if dtype not in _CODES:
        raise InputError(f"dtype must be int8, uint8, int16 or int32, got {dtype}")
    limits = torch.iinfo(dtype)
    if qmin < limits.min or qmax > limits.max:
        raise InputError(f"dtype must hold [qmin, qmax] = [{qmin}, {qmax}], got {dtype}")


def _mutated(x: Tensor) -> Tensor:
    """Tell autograd that x was written, so that a graph that saved it notices; compiled code does that itself."""
    if not (torch.compiler.is_compiling() or x.is_inference()):
        torch.autograd.graph.increment_version(x)
    return x


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


@torch.library.register_fake("pytorch_quantizer::fake_quantize_backward")
def _(grad: Tensor, x: Tensor, *grid: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("pytorch_quantizer::quantize")
def _(x: Tensor, *grid_dtype: Any) -> Tensor:
    return torch.empty_like(x, dtype=grid_dtype[-1])


@torch.library.register_fake("pytorch_quantizer::dequantize")
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(codes, dtype=dtype)


@torch.library.register_fake("pytorch_quantizer::tensor_statistics")
def _(x: Tensor, axis: int) -> Tensor:
    shape = (len(STATISTICS),) if axis < 0 else (len(STATISTICS), x.shape[axis])
    return x.new_empty(shape, dtype=torch.float64)


@torch.library.register_fake("pytorch_quantizer::histogram")
def _(x: Tensor, exponent: Tensor, bins: int, axis: int) -> Tensor:
    return x.new_empty((bins + 2,) if axis < 0 else (x.shape[axis], bins + 2), dtype=torch.int64)
