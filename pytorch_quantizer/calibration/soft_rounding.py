"""Weights whose rounding is learned: each rests between its two neighbours on the grid until it settles on one.
AdaRound (Nagel et al. 2020): its rectified sigmoid and its regularizer. What the rounding is judged by is elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytorch_quantizer.quantization.qtypes import IntQuantizer

STRETCH = (-0.1, 1.1)  # of the sigmoid, so that 0 and 1 are reached


class SoftRoundedWeight(nn.Module):
    """s·(clamp(⌊w/s₀⌋ + h, qmin − z, qmax − z)), h in [0, 1] learned by ``logit``, s = s₀·e^t by ``growth``.

    h = clamp(σ(V)·1.2 − 0.1, 0, 1) (AdaRound, eq. 23) begins at w/s₀ − ⌊w/s₀⌋, so that the weight begins as it is in
    float, but for what is off the grid. weight: any shape, float; quantizer: fitted, its scale is s₀. learns_scale:
    whether t, [] or [C], is a parameter.
    """

    lower: Tensor
    start: Tensor

    def __init__(self, weight: Tensor, quantizer: IntQuantizer, *, learns_scale: bool = True) -> None:
        super().__init__()
        self.axis = quantizer.axis
        zero_point: Any = self._along(quantizer.zero_point, weight)
        if not bool(zero_point.any()):
            zero_point = 0  # numbers clamp faster than tensors
        self.least, self.most = quantizer.qmin - zero_point, quantizer.qmax - zero_point
        self._quantizer = (quantizer,)  # in a tuple, so that it is no submodule
        self.register_buffer("start", quantizer.scale.detach().clone())
        weight = weight.detach()
        if weight.dim() == 4:  # as convolutions on a CPU are fastest
            weight = weight.contiguous(memory_format=torch.channels_last)
        places = weight / self._along(self.start, weight)
        self.register_buffer("lower", torch.floor(places))
        low, high = STRETCH
        self.logit = nn.Parameter(torch.logit(((places - self.lower) - low) / (high - low)))
        self.growth = nn.Parameter(torch.zeros_like(self.start), requires_grad=learns_scale)

    def share(self) -> Tensor:
        """h, of the weight's shape: 0 is down, 1 is up."""
        low, high = STRETCH
        return torch.clamp(torch.sigmoid(self.logit) * (high - low) + low, 0, 1)

    def scale(self) -> Tensor:
        """s, [] or [C]."""
        return self.start * self.growth.exp()

    def forward(self, share: Tensor) -> Tensor:
        """The weight at h = ``share``."""
        places = torch.clamp(self.lower + share, self.least, self.most)
        return places * self._along(self.scale(), places)

    @torch.no_grad()
    def harden(self) -> tuple[IntQuantizer, Tensor]:
        """The quantizer on the learned scale, and the weight on its grid, each h taken to the nearer end."""
        quantizer = self._quantizer[0]
        quantizer.scale = self.scale().detach().clone()
        places = torch.clamp(self.lower + (self.share() >= 0.5), self.least, self.most)
        codes = (places + self._along(quantizer.zero_point, places)).to(torch.int32)
        return quantizer, quantizer.dequantize(codes)

    @torch.no_grad()
    def undecided(self) -> int:
        """How many weights are nearer to the middle than to either end: h between 0.05 and 0.95."""
        share = self.share()
        return int(((share > 0.05) & (share < 0.95)).sum())

    def _along(self, values: Tensor, like: Tensor) -> Tensor:
        """[] or [C] shaped to meet the weight."""
        return values if self.axis is None else values.reshape([-1 if d == self.axis else 1 for d in range(like.dim())])


def indecision(share: Tensor, exponent: float) -> Tensor:
    """Σ 1 − |2h − 1|^β (AdaRound, eq. 24): 0 where every h is 0 or 1, the milder the higher β."""
    return share.numel() - (2 * share - 1).abs().pow(exponent).sum()
