"""The training of one block: batches, losses, learning rates and annealing.
What a block holds that can learn is learned_block.py's business; which block comes when, reconstruct.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pytorch_quantizer.calibration.activation_cache import Rows
from pytorch_quantizer.calibration.dropping import Dropping
from pytorch_quantizer.calibration.learned_block import LearnedBlock
from pytorch_quantizer.calibration.soft_rounding import indecision


@dataclass(frozen=True)
class Schedule:
    """How a block is trained. iterations, batch: of Adam. drop: the probability that a value is let through in float.

    rounding_rate, scale_rate, step_rate, bias_rate: Adam's, the last three fall along a cosine. decisiveness: the
    weight of the regularizer, whose exponent falls from ``mild`` to ``strict`` once the share ``free`` is over.
    """

    iterations: int
    batch: int = 32
    drop: float = 0.5
    rounding_rate: float = 1e-2
    scale_rate: float = 1e-3
    step_rate: float = 2e-3
    bias_rate: float = 1e-3
    decisiveness: float = 0.01
    mild: float = 20.0
    strict: float = 2.0
    free: float = 0.2
    undropped: float = 0.0

    def exponent(self, done: float) -> float | None:
        """β of the regularizer once ``done`` of the iterations are over; None while there is no regularizer."""
        if done < self.free:
            return None
        return self.strict + (self.mild - self.strict) * (1 - done) / (1 - self.free)


class Examples(NamedTuple):
    """What a block is trained on, a row an image.

    inputs: as the quantized network gives them. floats: as the float network does, those that it has. target: its
    output.
    """

    inputs: Mapping[fx.Node, Rows]
    floats: Mapping[fx.Node, Rows]
    target: Rows


def train_block(
    learned: LearnedBlock,
    examples: Examples,
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Train in place: for the least error of the output, with weights that settle on one of their neighbours.

    The error is squared, summed over the channels and averaged over the rest (BRECQ's without Fisher weights).
    A batch has no more images than there are. advance: called after each iteration.
    """
    draws, noise = torch.Generator().manual_seed(seed), torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.Adam(_groups(learned, schedule))
    rates = [group["lr"] for group in optimizer.param_groups]
    images = examples.target.written
    for iteration in range(schedule.iterations):
        done = iteration / schedule.iterations
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate if group["stays"] else rate * 0.5 * (1 + math.cos(math.pi * done))
        drops = Dropping(schedule.drop if done < 1 - schedule.undropped else 0.0, noise)
        rows = torch.randint(images, (min(schedule.batch, images),), generator=draws)
        loss = _error(learned, examples, rows, drops, device)
        exponent = schedule.exponent(done)
        if exponent is not None:
            undecided = [indecision(layer.share, exponent) for layer in learned.soft_layers]
            loss = loss + schedule.decisiveness * sum(undecided)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        advance()


def _error(learned: LearnedBlock, examples: Examples, rows: Tensor, drops: Dropping, device: torch.device) -> Tensor:
    """The output's error on some images, their inputs partly those of the float network where values are dropped."""
    inputs = {node: kept.read(rows).to(device) for node, kept in examples.inputs.items()}
    if drops.probability > 0:
        for node, kept in examples.floats.items():
            inputs[node] = drops.mixed(kept.read(rows).to(device), inputs[node])
    target = examples.target.read(rows).to(device)
    channels = target.shape[-1 if target.dim() <= 3 else 1]  # of [N, tokens, C] the last
    return F.mse_loss(learned(inputs, drops), target, reduction="sum") * (channels / target.numel())


def _groups(learned: LearnedBlock, schedule: Schedule) -> list[dict[str, Any]]:
    """Adam's groups: those whose rate stays, so that weights can still decide at the end, and those whose falls."""
    layers = learned.soft_layers
    groups = [
        ([layer.weight.logit for layer in layers], schedule.rounding_rate, True),
        ([layer.weight.growth for layer in layers], schedule.scale_rate, False),
        ([layer.bias for layer in layers if layer.bias is not None], schedule.bias_rate, False),
        ([step.growth for step in learned.learned_steps], schedule.step_rate, False),
    ]
    return [{"params": params, "lr": rate, "stays": stays} for params, rate, stays in groups if params]
