"""The checks of arguments that all ops share: shapes, dtypes and devices alone, so that nothing waits for a GPU."""

from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.fallback import ROUNDINGS

_ROUNDING_INDEX = {name: index for index, name in enumerate(ROUNDINGS)}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CODES = (torch.int8, torch.uint8, torch.int16, torch.int32)
_LARGEST_CODE = 2**24  # float32 counts no further than this in steps of one


def grid_arguments(
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
    check_float("x", x)
    axis = channel_axis(x, scale, zero_point, axis)
    check_codes(qmin, qmax)
    rounding_index, seed, offset = rounding_arguments(rounding, seed, offset)
    if scale.requires_grad and torch.is_grad_enabled():
        raise InputError("scale must not need a gradient here (only x gets one): pass scale.detach()")
    return scale, zero_point, qmin, qmax, axis, rounding_index, seed, offset


def check_codes(qmin: int, qmax: int) -> tuple[int, int]:
    """Return both; InputError where they are no range of codes that float32 counts exactly."""
    if not -_LARGEST_CODE <= qmin < qmax <= _LARGEST_CODE:
        raise InputError(f"qmin < qmax must hold, both within ±2**24, got qmin={qmin}, qmax={qmax}")
    return qmin, qmax


def rounding_arguments(rounding: str, seed: int, offset: int) -> tuple[int, int, int]:
    """Return rounding as the raw ops take it, seed and offset; InputError where they are none."""
    index = _ROUNDING_INDEX.get(rounding)
    if index is None:
        raise InputError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if index == 2:
        check_random(seed, offset)
    return index, seed, offset


def check_float(name: str, x: Tensor) -> None:
    """Refuse what no kernel computes with."""
    if x.dtype not in FLOATS:
        raise InputError(f"{name} must be float32, float16 or bfloat16, got {x.dtype}")


def channel_axis(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> int:
    """Return the checked axis as the raw ops take it: not negative, or -1 for per tensor."""
    if scale.dtype != torch.float32 or zero_point.dtype != torch.int32:
        raise InputError(f"scale must be float32 and zero_point int32, got {scale.dtype} and {zero_point.dtype}")
    return parameter_axis(x, scale, zero_point, axis)


def parameter_axis(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> int:
    """Return the axis as the raw ops take it; scale and zero_point lie along it, whatever their types."""
    if scale.device != x.device or zero_point.device != x.device:
        raise InputError(
            f"scale and zero_point must be on the tensor's device {x.device}, got {scale.device}, {zero_point.device}"
        )
    if axis is None:
        raw, expected = -1, x.shape[:0]
    else:
        raw = dimension(x, axis)
        expected = x.shape[raw : raw + 1]
    if scale.shape != expected or zero_point.shape != expected:
        raise InputError(
            f"scale and zero_point must have shape {list(expected)} with axis={axis} and a tensor of shape "
            f"{list(x.shape)}, got {list(scale.shape)} and {list(zero_point.shape)}"
        )
    return raw


def dimension(x: Tensor, axis: int) -> int:
    """Return `axis` counted from the front; InputError where the tensor has no such dimension."""
    if not -x.dim() <= axis < x.dim():
        raise InputError(f"axis must name one of the {x.dim()} dimensions of the tensor, got {axis}")
    return axis % x.dim()


def check_random(seed: int, offset: int) -> None:
    """Refuse what no counter or key holds."""
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"seed must fit in 64 bits, got {seed}")
    if not 0 <= offset < 2**63:
        raise InputError(f"offset must be between 0 and 2**63 - 1, got {offset}")


def check_out(x: Tensor, out: Tensor, op: str = "fake_quantize") -> None:
    """Refuse an `out` that isn't like x, and a gradient that nobody would compute."""
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise InputError(
            f"out must be like x ({list(x.shape)}, {x.dtype}, {x.device}), "
            f"got {list(out.shape)}, {out.dtype}, {out.device}"
        )
    check_no_gradient(x, f"{op} with out=", op)
    check_no_gradient(out, f"{op} with out=", op)


def check_no_gradient(x: Tensor, form: str, op: str = "fake_quantize") -> None:
    """Refuse a form without autograd where a gradient is needed; `op` has one."""
    if x.requires_grad and torch.is_grad_enabled():
        raise InputError(f"{form} has no gradient and a tensor needs one: use {op}, or torch.no_grad()")


def check_code_dtype(dtype: torch.dtype, qmin: int, qmax: int) -> None:
    """Refuse a type of codes that doesn't hold the grid."""
    if dtype not in CODES:
        raise InputError(f"dtype must be int8, uint8, int16 or int32, got {dtype}")
    limits = torch.iinfo(dtype)
    if qmin < limits.min or qmax > limits.max:
        raise InputError(f"dtype must hold [qmin, qmax] = [{qmin}, {qmax}], got {dtype}")


def mutated(x: Tensor) -> Tensor:
    """Tell autograd that x was written, so that a graph that saved it notices; compiled code does that itself."""
    if not (torch.compiler.is_compiling() or x.is_inference()):
        torch.autograd.graph.increment_version(x)
    return x
