"""Values let through unquantized at random while a block is learned (QDrop, Wei et al. 2022).
Where that happens is learned_block.py's business.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WORDS = 8  # bytes of an int64, which is what is drawn
LEVELS = 256  # of a byte: what a probability is rounded to


class Dropping:
    """Draws masks of elements with a probability, in steps of 1/256, repeatable under a seed on each device."""

    def __init__(self, probability: float, generator: torch.Generator | None = None) -> None:
        self.probability, self.generator = probability, generator

    def mixed(self, x: Tensor, instead: Tensor) -> Tensor:
        """x where an element is dropped, ``instead`` elsewhere, with gradients for both."""
        if self.probability <= 0:
            return instead
        mixed: Tensor = _Mixed.apply(x, instead, self.mask(x))
        return mixed

    def mask(self, like: Tensor) -> Tensor:
        """1 with the probability, else 0, as a tensor like another, which must be dense, in the same layout."""
        words = torch.empty(-(-like.numel() // WORDS), dtype=torch.int64, device=like.device)
        words.random_(-(2**63), None, generator=self.generator)
        highest = max(round(self.probability * LEVELS), 1) - 1 - LEVELS // 2  # that counts: at least the lowest byte
        drawn = words.view(torch.int8)[: like.numel()] <= highest
        return drawn.to(like.dtype).as_strided(like.shape, like.stride())


class _Mixed(torch.autograd.Function):
    """y + m·(x − y). (torch.where takes ten times as long on a CPU.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return (x - y).mul_(mask).add_(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        kept = gradients[0] * mask
        return kept, gradients[0] - kept if ctx.needs_input_grad[1] else None, None
