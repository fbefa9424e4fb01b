"""Fake quantization whose scale and zero point are learned: LSQ (Esser et al. 2020) and LSQ+ (Bhalgat et al. 2020)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pytorch_quantizer.backend import raw
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.ops.arguments import check_codes, check_float, parameter_axis


def learnable_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    grad_scale: float = 1.0,
) -> Tensor:
    """Simulate quantization as `fake_quantize` does, half to even, with gradients for x, scale and zero_point.

    scale, zero_point: float32, [] or with `axis` [C]; the zero point that runs is clamp(round(zero_point)).
    dx = g·1[in], ds = grad_scale·Σ g·((q − z) − (x/s)·1[in]), dz = grad_scale·Σ −s·g·1[out]; in: qmin ≤ round(x/s) + z
    ≤ qmax, out: not. grad_scale: LSQ's is 1/√(N·qmax), N the elements that share a scale. One pass over x and g; sums
    in float64, repeatable to the bit. Not differentiable twice. Raises InputError where an argument doesn't fit.
    """
    check_float("x", x)
    if scale.dtype != torch.float32 or zero_point.dtype != torch.float32:
        raise InputError(f"scale and zero_point, being learned, must be float32, got {scale.dtype}, {zero_point.dtype}")
    grid = scale, zero_point, *check_codes(qmin, qmax), parameter_axis(x, scale, zero_point, axis)
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad or zero_point.requires_grad):
        return _LearnableFakeQuantize.apply(x, *grid, float(grad_scale))
    return raw.fake_quantize.default(x, *grid, 0, 0, 0)


class _LearnableFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, *rest: Any) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.rest = rest
        return raw.fake_quantize.default(x, scale, zero_point, *rest[:-1], 0, 0, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = raw.learnable_fake_quantize_backward.default(grad, *ctx.saved_tensors, *ctx.rest)
        return *gradients, *[None] * len(ctx.rest)


@torch.library.register_fake("pytorch_quantizer::learnable_fake_quantize_backward")
def _(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


@torch.library.register_fake("pytorch_quantizer::learnable_fake_quantize_backward_out")
def _(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, *rest_outs: Any) -> None:
    return None
