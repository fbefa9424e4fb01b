"""The gradients of a learned scale and zero point in plain PyTorch."""

import torch
from torch import Tensor

from pytorch_quantizer.reference.uniform import along, fake_quantize_backward, valid, whole_zero_point


@torch.no_grad()
def learnable_fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    *,
    axis: int | None = None,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dx as fake_quantize_backward does, ds = Σ g·((q − z) − v·1[in]) and dz = Σ −s·g·1[out], times grad_scale.

    v = x/s, q = clamp(round(v) + z); in: round(v) + z is on the grid, out: it isn't, NaN with it. Elementwise in
    float32, the sums in float64, rounded once to float32; ds and dz have scale's shape.
    """
    s, z = valid(along(scale, x, axis)), along(whole_zero_point(zero_point, qmin, qmax), x, axis)
    v = x.to(torch.float32) / s
    q = torch.round(v) + z
    inside = (q >= qmin) & (q <= qmax)
    level = q.clamp(qmin, qmax) - z
    slope = torch.where(inside, level - v, level)
    over = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    g = grad.to(torch.float64)
    slopes, outside = _sum(g * slope.to(torch.float64), over), _sum(torch.where(inside, 0.0, g), over)
    dz = grad_scale * (-valid(scale).to(torch.float64) * outside)
    dx = fake_quantize_backward(grad, x, scale, zero_point, qmin, qmax, axis=axis)
    return dx, (grad_scale * slopes).to(torch.float32), dz.to(torch.float32)


def _sum(terms: Tensor, over: list[int]) -> Tensor:
    return terms.sum(over) if over else terms
