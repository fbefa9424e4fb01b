"""Average: a running average of a network's weights, exponentially weighted towards the latest (EMA)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class Average:
    """A copy of a model whose floating-point parameters and buffers follow: a ← decay·a + (1 − decay)·w.

    In its first steps the decay is (1 + n) / (10 + n) where that is less, so that the beginning is soon forgotten.
    Other buffers, such as counts, are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.averaged = deepcopy(model)

    @torch.no_grad()
    def update(self) -> None:
        """Take in what the model is now."""
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for mine, its in zip(_tensors(self.averaged), _tensors(self.model), strict=True):
            if mine.is_floating_point():
                mine.lerp_(its, share)
            else:
                mine.copy_(its)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
