"""The codebook quantizer, whose levels are a sorted list: codebook_fake_quantize, codebook_quantize and back.
Where levels and thresholds come from is the number types' business.

Everywhere: `levels` is float32 [K], or [C, K] with `axis` naming the dimension of size C, ascending, 1 ≤ K ≤ 256.
`highest`, float32 [K − 1] or [C, K − 1], ascending, is the highest value that still goes to each level but the last.
"""

from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer.backend import raw
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.ops.arguments import FLOATS, check_float, check_out, dimension, mutated

MAX_LEVELS = 256


def codebook_fake_quantize(
    x: Tensor, levels: Tensor, highest: Tensor, *, axis: int | None = None, out: Tensor | None = None
) -> Tensor:
    """Simulate quantization: y = levels[i], i the number of entries of `highest` below x, rounded once to x's dtype.

    x: any shape and layout, float32, float16 or bfloat16, compared in float32; y has its shape, dtype and layout. NaN
    stays NaN, ±inf go to the outermost levels.
    Differentiable in x by straight-through: dx = g·1[levels[0] ≤ x ≤ levels[K − 1]].
    out: written and returned; this form has no autograd. It may be x itself, but may not overlap it otherwise.
    Raises InputError where an argument doesn't fit, or where `out` is given and a gradient is needed.
    """
    check_float("x", x)
    tables = levels, highest, _table_axis(x, levels, highest, axis)
    if out is not None:
        check_out(x, out, "codebook_fake_quantize")
        raw.codebook_fake_quantize_out.default(x, *tables, out)
        return mutated(out)
    if x.requires_grad and torch.is_grad_enabled():
        return _CodebookFakeQuantize.apply(x, *tables)
    return raw.codebook_fake_quantize.default(x, *tables)


def codebook_quantize(x: Tensor, highest: Tensor, *, axis: int | None = None) -> Tensor:
    """Return the codes of x's levels, uint8: the number of entries of `highest` below x, in x's shape and layout.

    x: any shape and layout, float32, float16 or bfloat16. NaN has no code: it takes that of 0.
    Not differentiable. Raises InputError where an argument doesn't fit.
    """
    check_float("x", x)
    return raw.codebook_quantize.default(x.detach(), highest, _table_axis(x, None, highest, axis))


def codebook_dequantize(
    codes: Tensor, levels: Tensor, *, axis: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Undo `codebook_quantize`: y = levels[code], rounded once to `dtype` (float32, float16, bfloat16).

    codes: uint8, any shape and layout; y has its shape and layout. A code of K or more has no level and gives NaN.
    Not differentiable. Raises InputError where an argument doesn't fit.
    """
    if codes.dtype != torch.uint8:
        raise InputError(f"codes must be uint8, got {codes.dtype}")
    if dtype not in FLOATS:
        raise InputError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    return raw.codebook_dequantize.default(codes, levels, _table_axis(codes, levels, None, axis), dtype)


def _table_axis(x: Tensor, levels: Tensor | None, highest: Tensor | None, axis: int | None) -> int:
    """Check the tables there are, and return the axis as the raw ops take it."""
    raw_axis = -1 if axis is None else dimension(x, axis)
    channels = [] if axis is None else [x.shape[raw_axis]]
    if levels is not None:
        _check_table("levels", levels, channels, 1, x)
    if highest is not None:
        _check_table("highest", highest, channels, 0, x)
    if levels is not None and highest is not None and highest.shape[-1] != levels.shape[-1] - 1:
        raise InputError(
            f"highest must have an entry for each level but the last, got {highest.shape[-1]} for {levels.shape[-1]}"
        )
    return raw_axis


def _check_table(name: str, table: Tensor, channels: list[int], least: int, x: Tensor) -> None:
    """Refuse a table that isn't float32 [*channels, K] on x's device, K − least between 0 and 255."""
    if table.dtype != torch.float32 or table.device != x.device:
        raise InputError(f"{name} must be float32 on the tensor's device {x.device}, got {table.dtype}, {table.device}")
    most = MAX_LEVELS - 1 + least
    if list(table.shape[:-1]) != channels or table.dim() == 0 or not least <= table.shape[-1] <= most:
        shape = "".join(f"{n}, " for n in channels)
        raise InputError(f"{name} must have shape [{shape}{least} to {most}], got {list(table.shape)}")
    if table.requires_grad and torch.is_grad_enabled():
        raise InputError(f"{name} must not need a gradient here (only x gets one): pass {name}.detach()")


class _CodebookFakeQuantize(torch.autograd.Function):
    """Straight-through: the gradient passes where x lies between the outermost levels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, highest: Tensor, axis: int) -> Tensor:
        shape = [] if axis < 0 else [-1 if d == axis else 1 for d in range(x.dim())]
        ctx.save_for_backward(x, levels[..., 0].reshape(shape), levels[..., -1].reshape(shape))
        return raw.codebook_fake_quantize.default(x, levels, highest, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, low, high = ctx.saved_tensors
        return torch.where((x >= low) & (x <= high), gradients[0], 0.0), None, None, None


# --- fake (meta) versions: shape, dtype and layout without data -----------------------------------------------------


@torch.library.register_fake("pytorch_quantizer::codebook_fake_quantize")
def _(x: Tensor, levels: Tensor, highest: Tensor, axis: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("pytorch_quantizer::codebook_fake_quantize_out")
def _(x: Tensor, levels: Tensor, highest: Tensor, axis: int, out: Tensor) -> None:
    return None


@torch.library.register_fake("pytorch_quantizer::codebook_quantize")
def _(x: Tensor, highest: Tensor, axis: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.uint8)


@torch.library.register_fake("pytorch_quantizer::codebook_dequantize")
def _(codes: Tensor, levels: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(codes, dtype=dtype)
