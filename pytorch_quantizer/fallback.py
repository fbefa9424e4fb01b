"""The ops where no kernel is built: their schemas, and the plain-PyTorch functions behind them, after one warning."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer import reference
from pytorch_quantizer.user_warnings import warn_user

ROUNDINGS = ("half_even", "half_away", "stochastic")
SPREADS = ("none", "abs_dev", "deviation")
SUPPORTS = ("real", "rectified", "nonnegative")

_GRID = "Tensor scale, Tensor zero_point, int qmin, int qmax, int axis, int rounding, SymInt seed, SymInt offset"

_LEARNED = "Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, int axis, float grad_scale"

_ONLINE = (
    "bool relu, int spread, float reach, int support, float ceiling, bool symmetric, int qmin, int qmax, int axis, "
    "int rounding, SymInt seed, SymInt offset"
)

# The schemas of kernels/schemas.cpp, used where it isn't built. axis -1: per tensor; rounding: index into ROUNDINGS.
SCHEMAS = {
    "fake_quantize": f"(Tensor x, {_GRID}) -> Tensor",
    "fake_quantize_": f"(Tensor(a!) x, {_GRID}) -> ()",
    "fake_quantize_out": f"(Tensor x, {_GRID}, Tensor(a!) out) -> ()",
    "fused_fake_quantize": f"(Tensor x, Tensor? other, bool relu, {_GRID}) -> Tensor",
    "fused_fake_quantize_out": f"(Tensor x, Tensor? other, bool relu, {_GRID}, Tensor(a!) out) -> ()",
    "fake_quantize_backward": f"(Tensor grad, Tensor x, {_GRID}) -> Tensor",
    "fake_quantize_backward_out": f"(Tensor grad, Tensor x, {_GRID}, Tensor(a!) out) -> ()",
    "learnable_fake_quantize_backward": f"({_LEARNED}) -> (Tensor, Tensor, Tensor)",
    "learnable_fake_quantize_backward_out": (
        f"({_LEARNED}, Tensor(a!) dx, Tensor(b!) dscale, Tensor(c!) dzero_point) -> ()"
    ),
    "online_fake_quantize": f"(Tensor x, {_ONLINE}) -> (Tensor, Tensor, Tensor)",
    "online_fake_quantize_out": f"(Tensor x, {_ONLINE}, Tensor(a!) out) -> (Tensor, Tensor)",
    "quantize": f"(Tensor x, {_GRID}, ScalarType dtype) -> Tensor",
    "dequantize": "(Tensor codes, Tensor scale, Tensor zero_point, int axis, ScalarType dtype) -> Tensor",
    "tensor_statistics": "(Tensor x, int axis) -> Tensor",
    "histogram": "(Tensor x, Tensor exponent, int bins, int axis) -> Tensor",
    "growing_histogram": ("(Tensor x, Tensor largest, Tensor counts, Tensor exponent, int axis) -> (Tensor, Tensor)"),
    "codebook_fake_quantize": "(Tensor x, Tensor levels, Tensor highest, int axis) -> Tensor",
    "codebook_fake_quantize_out": "(Tensor x, Tensor levels, Tensor highest, int axis, Tensor(a!) out) -> ()",
    "codebook_quantize": "(Tensor x, Tensor highest, int axis) -> Tensor",
    "codebook_dequantize": "(Tensor codes, Tensor levels, int axis, ScalarType dtype) -> Tensor",
    "pack": "(Tensor codes, int bits) -> Tensor",
    "pack_out": "(Tensor codes, int bits, Tensor(a!) out) -> ()",
    "unpack": "(Tensor packed, int bits, SymInt numel, bool signed, ScalarType dtype) -> Tensor",
    "unpack_out": "(Tensor packed, int bits, bool signed, Tensor(a!) out) -> ()",
}


@functools.cache
def _warn_once(device: str) -> None:
    warn_user(
        f"pytorch_quantizer has no kernels built for {device}: plain PyTorch runs instead, with the same results, "
        "much slower. Build them with kernels/build_all.sh"
    )


def _named(grid: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split the tail of a raw call as the reference takes it: positional scale … qmax, then keywords."""
    *positional, axis, rounding, seed, offset = grid
    keywords = {"axis": _axis(axis), "rounding": ROUNDINGS[rounding], "seed": seed, "offset": offset}
    return tuple(positional), keywords


def _axis(raw: int) -> int | None:
    return None if raw < 0 else raw


def _fake_quantize(x: Tensor, *grid: Any) -> Tensor:
    _warn_once(x.device.type)
    positional, keywords = _named(grid)
    return reference.fake_quantize(x, *positional, **keywords)


def _fake_quantize_inplace(x: Tensor, *grid: Any) -> None:
    _fake_quantize_out(x, *grid, x)


def _fake_quantize_out(x: Tensor, *grid_out: Any) -> None:
    _warn_once(x.device.type)
    positional, keywords = _named(grid_out[:-1])
    reference.fake_quantize(x, *positional, **keywords, out=grid_out[-1])


def _fused_fake_quantize(x: Tensor, other: Tensor | None, relu: bool, *grid: Any) -> Tensor:
    _warn_once(x.device.type)
    positional, keywords = _named(grid)
    return reference.fused_fake_quantize(x, *positional, **keywords, other=other, relu=relu)


def _fused_fake_quantize_out(x: Tensor, other: Tensor | None, relu: bool, *grid_out: Any) -> None:
    grid_out[-1].copy_(_fused_fake_quantize(x, other, relu, *grid_out[:-1]))


def _fake_quantize_backward(grad: Tensor, x: Tensor, *grid: Any) -> Tensor:
    _warn_once(x.device.type)
    positional, keywords = _named(grid)
    return reference.fake_quantize_backward(grad, x, *positional, **keywords)


def _fake_quantize_backward_out(grad: Tensor, x: Tensor, *grid_out: Any) -> None:
    grid_out[-1].copy_(_fake_quantize_backward(grad, x, *grid_out[:-1]))


def _learnable_backward(grad: Tensor, x: Tensor, *learned: Any) -> tuple[Tensor, Tensor, Tensor]:
    _warn_once(x.device.type)
    *grid, axis, grad_scale = learned
    return reference.learnable_fake_quantize_backward(grad, x, *grid, axis=_axis(axis), grad_scale=grad_scale)


def _learnable_backward_out(grad: Tensor, x: Tensor, *learned_outs: Any) -> None:
    for out, result in zip(learned_outs[-3:], _learnable_backward(grad, x, *learned_outs[:-3]), strict=True):
        out.copy_(result)


def _online_fake_quantize(x: Tensor, relu: bool, *rule_grid: Any) -> tuple[Tensor, Tensor, Tensor]:
    _warn_once(x.device.type)
    spread, reach, support, ceiling, symmetric, *grid = rule_grid
    rule = {"spread": SPREADS[spread], "support": SUPPORTS[support], "reach": reach, "ceiling": ceiling}
    (qmin, qmax), keywords = _named(tuple(grid))
    return reference.online_fake_quantize(x, qmin, qmax, relu=relu, symmetric=symmetric, **rule, **keywords)


def _online_fake_quantize_out(x: Tensor, relu: bool, *rule_grid_out: Any) -> tuple[Tensor, Tensor]:
    y, scale, zero_point = _online_fake_quantize(x, relu, *rule_grid_out[:-1])
    rule_grid_out[-1].copy_(y)
    return scale, zero_point


def _quantize(x: Tensor, *grid_dtype: Any) -> Tensor:
    _warn_once(x.device.type)
    positional, keywords = _named(grid_dtype[:-1])
    return reference.quantize(x, *positional, **keywords, dtype=grid_dtype[-1])


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    _warn_once(codes.device.type)
    return reference.dequantize(codes, scale, zero_point, axis=_axis(axis), dtype=dtype)


def _tensor_statistics(x: Tensor, axis: int) -> Tensor:
    _warn_once(x.device.type)
    return reference.tensor_statistics(x, axis=_axis(axis))


def _histogram(x: Tensor, exponent: Tensor, bins: int, axis: int) -> Tensor:
    _warn_once(x.device.type)
    return reference.histogram(x, exponent, bins=bins, axis=_axis(axis))


def _growing_histogram(
    x: Tensor, largest: Tensor, counts: Tensor, exponent: Tensor, axis: int
) -> tuple[Tensor, Tensor]:
    _warn_once(x.device.type)
    return reference.growing_histogram(x, largest, counts, exponent, axis=_axis(axis))


def _codebook_fake_quantize(x: Tensor, levels: Tensor, highest: Tensor, axis: int) -> Tensor:
    _warn_once(x.device.type)
    return reference.codebook_fake_quantize(x, levels, highest, axis=_axis(axis))


def _codebook_fake_quantize_out(x: Tensor, levels: Tensor, highest: Tensor, axis: int, out: Tensor) -> None:
    _warn_once(x.device.type)
    reference.codebook_fake_quantize(x, levels, highest, axis=_axis(axis), out=out)


def _codebook_quantize(x: Tensor, highest: Tensor, axis: int) -> Tensor:
    _warn_once(x.device.type)
    return reference.codebook_quantize(x, highest, axis=_axis(axis))


def _codebook_dequantize(codes: Tensor, levels: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    _warn_once(codes.device.type)
    return reference.codebook_dequantize(codes, levels, axis=_axis(axis), dtype=dtype)


def _pack(codes: Tensor, bits: int) -> Tensor:
    _warn_once(codes.device.type)
    return reference.pack(codes, bits)


def _pack_out(codes: Tensor, bits: int, out: Tensor) -> None:
    _warn_once(codes.device.type)
    reference.pack(codes, bits, out=out)


def _unpack(packed: Tensor, bits: int, numel: int, signed: bool, dtype: torch.dtype) -> Tensor:
    _warn_once(packed.device.type)
    return reference.unpack(packed, bits, numel, signed=signed, dtype=dtype)


def _unpack_out(packed: Tensor, bits: int, signed: bool, out: Tensor) -> None:
    _warn_once(packed.device.type)
    reference.unpack(packed, bits, out.numel(), signed=signed, dtype=out.dtype, out=out)


FALLBACKS: dict[str, Callable[..., Any]] = {
    "fake_quantize": _fake_quantize,
    "fake_quantize_": _fake_quantize_inplace,
    "fake_quantize_out": _fake_quantize_out,
    "fused_fake_quantize": _fused_fake_quantize,
    "fused_fake_quantize_out": _fused_fake_quantize_out,
    "fake_quantize_backward": _fake_quantize_backward,
    "fake_quantize_backward_out": _fake_quantize_backward_out,
    "learnable_fake_quantize_backward": _learnable_backward,
    "learnable_fake_quantize_backward_out": _learnable_backward_out,
    "online_fake_quantize": _online_fake_quantize,
    "online_fake_quantize_out": _online_fake_quantize_out,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "tensor_statistics": _tensor_statistics,
    "histogram": _histogram,
    "growing_histogram": _growing_histogram,
    "codebook_fake_quantize": _codebook_fake_quantize,
    "codebook_fake_quantize_out": _codebook_fake_quantize_out,
    "codebook_quantize": _codebook_quantize,
    "codebook_dequantize": _codebook_dequantize,
    "pack": _pack,
    "pack_out": _pack_out,
    "unpack": _unpack,
    "unpack_out": _unpack_out,
}
