"""IntQuantizer: uniform integer grids of 1 to 16 bits. The arithmetic is an op; ranges come from clipping.py."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from pytorch_quantizer import ops
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.clipping import (
    ANY_VALUES,
    Domain,
    check_across_batches,
    check_clipping,
    choose_range,
    needs_histogram,
)
from pytorch_quantizer.quantization.qparams import GridSpec, QParams, grid_limits
from pytorch_quantizer.quantization.qtypes.quantizer import UNFITTED, Quantizer
from pytorch_quantizer.quantization.statistics import TensorStatistics


class IntQuantizer(Quantizer):
    """y = (clamp(round(x / s) + z, qmin, qmax) − z) · s, per tensor or per channel along ``axis``.

    bits: 1 to 16. signed, narrow: the code range (qparams.grid_limits). symmetric: z = 0; else affine (GEMMLOWP).
    clip: a name in clipping.CLIPPINGS, with its parameter; across_batches: "max" or "mean" (clipping.choose_range).
    domain: what is known of the values. rounding: one of ops.ROUNDINGS; stochastic draws from ``seed``, each forward
    from where the last one stopped (not when a CUDA graph replays one: it repeats what it captured).
    Raises InputError where these contradict each other or are unknown.
    """

    is_integer = True
    takes_relu = True
    takes_addition = True
    scale: Any  # Tensor once fitted, None before
    zero_point: Any

    def __init__(
        self,
        bits: int = 8,
        *,
        signed: bool = True,
        narrow: bool = False,
        symmetric: bool = True,
        axis: int | None = None,
        clip: str = "minmax",
        domain: Domain = ANY_VALUES,
        rounding: str = "half_even",
        seed: int = 0,
        across_batches: str = "max",
    ) -> None:
        super().__init__()
        self.qmin, self.qmax = grid_limits(bits, signed=signed, narrow=narrow)
        if rounding not in ops.ROUNDINGS:
            raise InputError(f"rounding must be one of {', '.join(ops.ROUNDINGS)}, got {rounding!r}")
        self.bits, self.signed, self.narrow, self.symmetric = bits, signed, narrow, symmetric
        self.axis, self.clip, self.domain, self.rounding = axis, check_clipping(clip), domain, rounding
        self.across_batches = check_across_batches(across_batches)
        self.seed, self.drawn = seed, 0
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)

    @classmethod
    def from_qparams(cls, qparams: QParams) -> Self:
        """A fitted quantizer on a grid that is known already."""
        symmetric = qparams.signed and not bool(torch.any(qparams.zero_point))
        quantizer = cls(
            qparams.bits, signed=qparams.signed, narrow=qparams.narrow, symmetric=symmetric, axis=qparams.axis
        )
        quantizer.qparams = qparams
        return quantizer

    @property
    def needs_histogram(self) -> bool:
        """Whether statistics to ``fit`` to must hold a histogram: where the clipping is read or sought in one."""
        return needs_histogram(self.clip)

    @property
    def signed_codes(self) -> bool:
        """Of a signed grid."""
        return self.signed

    @property
    def takes_gain(self) -> bool:
        """Whether there is a scale a channel."""
        return self.axis is not None

    def multiply(self, gain: Tensor) -> Self:
        """s_c ← gain_c·s_c, rounded once."""
        self.scale = (self.scale.double() * gain.double()).to(self.scale.dtype)
        return self

    @property
    def qparams(self) -> QParams:
        """The grid. Raises InputError before ``fit``."""
        if self.scale is None or self.zero_point is None:
            raise InputError(UNFITTED)
        return QParams(self.scale, self.zero_point, self.bits, self.signed, self.narrow, self.axis)

    @qparams.setter
    def qparams(self, qparams: QParams) -> None:
        mine = (self.bits, self.signed, self.narrow, self.axis)
        if (qparams.bits, qparams.signed, qparams.narrow, qparams.axis) != mine:
            raise InputError(f"the grid is {qparams}, the quantizer expects (bits, signed, narrow, axis) = {mine}")
        self.scale, self.zero_point = qparams.scale, qparams.zero_point

    def fit(self, source: Tensor | TensorStatistics) -> Self:
        """Clip what the statistics say (clipping.choose_range) and lay the grid over it (QParams.from_range)."""
        if isinstance(source, Tensor):
            source = TensorStatistics.from_tensor(source.detach(), axis=self.axis, histogram=self.needs_histogram)
        grid = GridSpec(self.bits, self.signed, self.symmetric, self.narrow)
        lo, hi = choose_range(
            source, method=self.clip, grid=grid, domain=self.domain, across_batches=self.across_batches
        )
        self.qparams = grid.over(lo, hi, self.axis)
        return self

    def forward(self, x: Tensor, inplace: bool = False, other: Tensor | None = None, relu: bool = False) -> Tensor:
        """Simulate relu(x + other), each only if given, in one pass.

        ``inplace`` overwrites x if no gradient is needed; the graph asks it where nobody else reads x.
        """
        if self.scale is None:
            raise InputError(UNFITTED)
        grid: Any = (self.scale, self.zero_point, self.qmin, self.qmax)
        inplace = inplace and not x.requires_grad
        if other is None and not relu:
            op = ops.fake_quantize_ if inplace else ops.fake_quantize
            return op(x, *grid, axis=self.axis, **self._rounding(x))
        inplace = inplace and (other is None or (_is_like(other, x) and not other.requires_grad))
        out = x if inplace else None
        return ops.fused_fake_quantize(x, *grid, other=other, relu=relu, out=out, axis=self.axis, **self._rounding(x))

    def quantize(self, x: Tensor) -> Tensor:
        """Codes: int8, uint8 or int16 (int32 for unsigned 16 bits), the smallest that holds [qmin, qmax]."""
        q = self.qparams
        return ops.quantize(x, q.scale, q.zero_point, q.qmin, q.qmax, axis=q.axis, **self._rounding(x))

    def _rounding(self, x: Tensor) -> dict[str, Any]:
        if self.rounding != "stochastic":
            return {"rounding": self.rounding}
        self.drawn += x.numel()
        return {"rounding": self.rounding, "seed": self.seed, "offset": self.drawn - x.numel()}

    def dequantize(self, codes: Tensor) -> Tensor:
        """(q − z) · s, float32."""
        q = self.qparams
        return ops.dequantize(codes, q.scale, q.zero_point, axis=q.axis)

    def storage(self) -> dict[str, Tensor]:
        """Scale, and the zero point of an affine grid."""
        q = self.qparams
        return {"scale": q.scale} if self.symmetric else {"scale": q.scale, "zero_point": q.zero_point}

    def restore(self, storage: dict[str, Tensor]) -> Self:
        """The grid of a stored scale and zero point, 0 where none is stored. Raises InputError where they don't fit."""
        scale = storage["scale"]
        zero_point = storage.get("zero_point", torch.zeros_like(scale, dtype=torch.int32))
        self.qparams = QParams(scale, zero_point, self.bits, self.signed, self.narrow, self.axis)
        return self

    def range(self) -> tuple[Tensor, Tensor]:
        """[(qmin − z)·s, (qmax − z)·s]."""
        return self.qparams.range()

    def describe(self) -> str:
        """int4, uint8: the number of bits and the sign."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    def extra_repr(self) -> str:
        """What print shows."""
        granularity = "per-tensor" if self.axis is None else f"per-channel axis={self.axis}"
        kind = "symmetric" if self.symmetric else "affine"
        return f"{self.describe()}, {kind}, {granularity}, clip={self.clip}"


def _is_like(a: Tensor, b: Tensor) -> bool:
    """Whether their sum is a tensor of b's kind: it then has room in b."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
