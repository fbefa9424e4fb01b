"""A float network whose batch norms and ReLUs stay steps of their own: what 'int8, not fused' quantizes.
What the quantizers then see is graph/place.py's.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pytorch_quantizer.errors import InputError


def unfused(model: nn.Module) -> nn.Module:
    """A copy that computes the same in float, of which quantization can fuse nothing into a convolution.

    A batch norm becomes the depthwise 1x1 convolution that it is in eval mode, weight γ/√(σ² + ε) and bias
    β − weight·μ a channel; a ReLU reads an average over windows of 1x1, which is what it is given. Both are quantized
    steps: convolution → Q → batch norm → Q → ReLU → Q, where the fused network has convolution → Q.
    Raises InputError for a network without a BatchNorm2d, and for one that normalises by the batch's own statistics.
    """
    model = copy.deepcopy(model)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise InputError("'not fused' is of batch norms, and the network has none: leave that row out")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, as_convolution(module))
        elif isinstance(module, nn.ReLU):
            model.set_submodule(name, nn.Sequential(nn.AvgPool2d(1), nn.ReLU()))
    return model.eval()


@torch.no_grad()
def as_convolution(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The depthwise 1x1 convolution that a batch norm is in eval mode, [N, C, H, W] -> the same shape."""
    if norm.running_mean is None or norm.running_var is None:
        raise InputError("a batch norm that normalises by the batch's own statistics is no convolution")
    gain = (norm.running_var.double() + norm.eps).rsqrt() * _or_else(norm.weight, 1.0)
    shift = _or_else(norm.bias, 0.0) - gain * norm.running_mean.double()
    channels = norm.num_features
    convolution = nn.Conv2d(channels, channels, 1, groups=channels, device=gain.device)
    convolution.weight.copy_(gain.reshape(-1, 1, 1, 1))
    convolution.bias.copy_(shift)  # type: ignore[union-attr]
    return convolution


def _or_else(parameter: Tensor | None, value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64) if parameter is None else parameter.double()
