"""Fake quantization on a grid of the tensor's own: statistics, range, grid and result in one call."""

from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer.backend import raw
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.fallback import SPREADS, SUPPORTS
from pytorch_quantizer.ops.arguments import (
    check_codes,
    check_float,
    check_no_gradient,
    check_out,
    dimension,
    mutated,
    rounding_arguments,
)


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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put relu(x), or x, on a grid laid over x's own statistics; (y, scale, zero_point), these [] or [C] along `axis`.

    The range is [μ − α, μ + α], or [0, max(μ, 0) + α] where support isn't "real", inside [min, max]; α = reach·spread,
    spread "abs_dev" E|x − μ| or "deviation" √E(x − μ)²; "none": [min, max] itself. support: "rectified", x is a ReLU's
    input that saturates at `ceiling`; "nonnegative", then μ = 0 and the spread is E[x | x > 0] or √E[x² | x > 0]. The
    grid is `QParams.from_range`'s, symmetric (signed grids alone) or affine. Nothing waits for the device: where x is
    empty or holds NaN or infinite values, scale and y are NaN. out: as in `fake_quantize`. Not differentiable.
    Raises InputError where an argument doesn't fit, and where a gradient is needed.
    """
    check_float("x", x)
    check_codes(qmin, qmax)
    check_no_gradient(x, "online_fake_quantize")
    if spread not in SPREADS or support not in SUPPORTS:
        raise InputError(
            f"spread must be one of {', '.join(SPREADS)} and support one of {', '.join(SUPPORTS)}, "
            f"got {spread!r} and {support!r}"
        )
    if not 0 <= reach < float("inf") or not ceiling > 0:
        raise InputError(f"reach must be finite, 0 or more, and ceiling above 0, got {reach} and {ceiling}")
    if symmetric and qmin >= 0:
        raise InputError(f"a symmetric grid must be signed, got qmin={qmin}")
    rule: tuple[Any, ...] = (relu, SPREADS.index(spread), reach, SUPPORTS.index(support), ceiling, symmetric)
    grid = (qmin, qmax, -1 if axis is None else dimension(x, axis), *rounding_arguments(rounding, seed, offset))
    if out is None:
        return raw.online_fake_quantize.default(x, *rule, *grid)
    check_out(x, out)
    scale, zero_point = raw.online_fake_quantize_out.default(x, *rule, *grid, out)
    return mutated(out), scale, zero_point


def _empty_grid(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    shape = () if axis < 0 else (x.shape[axis],)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("pytorch_quantizer::online_fake_quantize")
def _(x: Tensor, *rule_grid: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_empty_grid(x, rule_grid[-4])


@torch.library.register_fake("pytorch_quantizer::online_fake_quantize_out")
def _(x: Tensor, *rule_grid_out: Any) -> tuple[Tensor, Tensor]:
    return _empty_grid(x, rule_grid_out[-5])
