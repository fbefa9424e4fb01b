"""Steps that are learned: the scale, and on request the zero point, of IntQuantizers as parameters, LSQ and LSQ+.
What they are trained on is the trainers' business (reconstruct.py, qat.py); the gradients are an op's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from pytorch_quantizer import ops
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import module_of
from pytorch_quantizer.quantization.qparams import MAX_SCALE, MIN_SCALE
from pytorch_quantizer.quantization.qtypes import IntQuantizer


class LearnedStep(nn.Module):
    """An IntQuantizer under training: s = s₀·e^t and z = clamp(round(z₀ + o)), t and o its parameters, at first 0.

    So s stays positive, a learning rate is relative to it, and before the first step the results are the quantizer's
    to the bit. growth: t, offset: o (None unless ``zero_point``, and where the grid is symmetric), each [] or [C].
    ``harden`` gives the quantizer itself what was learned. Raises InputError where ``obstacle`` names one.
    """

    start: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: IntQuantizer, *, zero_point: bool = False) -> None:
        super().__init__()
        against = obstacle(quantizer)
        if against is not None:
            raise InputError(f"a step that is learned needs a plain integer grid: {against}")
        self.qmin, self.qmax, self.axis = quantizer.qmin, quantizer.qmax, quantizer.axis
        self._quantizer = (quantizer,)  # in a tuple, so that it is no submodule and its buffers are not listed twice
        self.register_buffer("start", quantizer.scale.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.detach().float())
        self.growth = nn.Parameter(torch.zeros_like(self.start))
        learns = zero_point and not quantizer.symmetric
        self.offset = nn.Parameter(torch.zeros_like(self.start)) if learns else None

    @property
    def quantizer(self) -> IntQuantizer:
        """What ``harden`` writes to."""
        return self._quantizer[0]

    def grid(self) -> tuple[Tensor, Tensor]:
        """(scale, zero point), float32, differentiable; the op rounds and clamps the zero point."""
        scale = (self.start * self.growth.exp()).clamp(MIN_SCALE, MAX_SCALE)
        return scale, self.zero_point if self.offset is None else self.zero_point + self.offset

    def forward(self, x: Tensor, inplace: bool = False, other: Tensor | None = None, relu: bool = False) -> Tensor:
        """Simulate relu(x + other), each only if given, as IntQuantizer does; nothing is ever overwritten."""
        x = x if other is None else x + other
        x = x.relu() if relu else x
        return ops.learnable_fake_quantize(
            x, *self.grid(), self.qmin, self.qmax, axis=self.axis, grad_scale=self._grad_scale(x)
        )

    @torch.no_grad()
    def harden(self) -> IntQuantizer:
        """Give the quantizer the grid that ``forward`` runs on, to the bit, and return it.

        Raises InputError where the training left no number.
        """
        scale, zero_point = self.grid()
        if not bool(torch.isfinite(scale).all() and torch.isfinite(zero_point).all()):
            raise InputError("learning a step diverged (it is not finite): take a lower learning rate")
        quantizer = self.quantizer
        quantizer.scale = scale.clone()
        quantizer.zero_point = torch.round(zero_point).clamp(self.qmin, self.qmax).to(torch.int32)
        return quantizer

    def extra_repr(self) -> str:
        """What print shows."""
        return f"[{self.qmin}, {self.qmax}], axis={self.axis}, learns {'s, z' if self.offset is not None else 's'}"

    def _grad_scale(self, x: Tensor) -> float:
        """LSQ's 1/√(N·qmax), N the elements that share a scale."""
        return (max(x.numel() // max(self.start.numel(), 1), 1) * max(self.qmax, 1)) ** -0.5


def obstacle(quantizer: nn.Module | None) -> str | None:
    """Why a quantizer's step can't be learned, None where it can."""
    if type(quantizer) is not IntQuantizer:  # online and allocated grids have no one step
        return f"{type(quantizer).__name__} has no step of its own"
    if quantizer.scale is None:
        return "it has no grid yet"
    return None if quantizer.rounding == "half_even" else f"rounding is {quantizer.rounding}"


def install_steps(
    model: fx.GraphModule, nodes: Iterable[fx.Node] | None = None, *, zero_points: bool = False
) -> dict[str, LearnedStep]:
    """Put a LearnedStep in the place of each activation's IntQuantizer, in place; by the quantizer's path.

    nodes: those whose calls are looked at, all of the graph unless given. The model's forward is written anew, without
    the fusions that only quantizers do. ``harden_steps`` undoes it.
    """
    installed: dict[str, LearnedStep] = {}
    for node in model.graph.nodes if nodes is None else nodes:
        quantizer, path = module_of(model, node), str(node.target)
        if path not in installed and obstacle(quantizer) is None:
            assert isinstance(quantizer, IntQuantizer)
            installed[path] = LearnedStep(quantizer, zero_point=zero_points)
            _put(model, path, installed[path])
    model.recompile()
    return installed


def harden_steps(model: fx.GraphModule, installed: dict[str, LearnedStep]) -> None:
    """Put the very quantizers back that ``install_steps`` took out, on the grids that were learned.

    Biases whose grid is s_x·s_w are to be put on it anew: graph/biases.py, renew_biases.
    """
    for path, step in installed.items():
        _put(model, path, step.harden())
    model.recompile()


def _put(model: fx.GraphModule, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    parent: Any = model.get_submodule(owner)
    parent._modules[name] = module
