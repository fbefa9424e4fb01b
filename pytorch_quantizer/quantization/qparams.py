"""QParams: the uniform grid that one tensor lives on, and how a clipping range becomes one (GEMMLOWP).
How a range is chosen is clipping.py's business; what is done with a grid is qtypes/'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError

MIN_SCALE = 2.0**-126  # the smallest normal float32: a denormal scale would lose bits in x / s
MAX_SCALE = float(torch.finfo(torch.float32).max)
SYMMETRIC_TOLERANCE = 1e-6  # |lo + hi| below this share of hi − lo counts as a range centred on zero
MAX_BITS = 16


def grid_limits(bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """(qmin, qmax) of a b-bit grid: [0, 2^b−1], [−2^(b−1), 2^(b−1)−1], or narrow [−(2^(b−1)−1), 2^(b−1)−1].

    Raises InputError where bits is not 1 to 16, or narrow is asked of an unsigned or a 1-bit grid.
    """
    if not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
        raise InputError(f"bits must be a whole number between 1 and {MAX_BITS}, got {bits}")
    if not signed:
        if narrow:
            raise InputError("narrow=True leaves out the lowest signed code; it needs signed=True")
        return 0, 2**bits - 1
    if narrow and bits < 2:
        raise InputError("narrow=True needs bits of 2 or more, got 1 (1 bit is the binary type's)")
    return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class QParams:
    """A uniform grid: y = (q − zero_point) · scale for codes q in [qmin, qmax].

    scale: float32, [] (per tensor) or [C] (per channel along ``axis``), positive and finite.
    zero_point: int32, the same shape, inside [qmin, qmax].
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    signed: bool
    narrow: bool = False
    axis: int | None = None

    def __post_init__(self) -> None:
        """Check what the ops never check: values (it may synchronise a device, once)."""
        qmin, qmax = grid_limits(self.bits, signed=self.signed, narrow=self.narrow)
        if self.scale.dtype != torch.float32 or self.zero_point.dtype != torch.int32:
            raise InputError(
                f"scale must be float32 and zero_point int32, got {self.scale.dtype} and {self.zero_point.dtype}"
            )
        dims = 0 if self.axis is None else 1
        if self.scale.dim() != dims or self.zero_point.shape != self.scale.shape:
            raise InputError(
                f"with axis={self.axis}, scale and zero_point must have shape {'[]' if dims == 0 else '[C]'}, "
                f"got {list(self.scale.shape)} and {list(self.zero_point.shape)}"
            )
        _check_all((self.scale > 0) & torch.isfinite(self.scale), self.scale, "scale must be positive and finite")
        inside = (self.zero_point >= qmin) & (self.zero_point <= qmax)
        _check_all(inside, self.zero_point, f"zero_point must lie in [{qmin}, {qmax}]")

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return grid_limits(self.bits, signed=self.signed, narrow=self.narrow)[0]

    @property
    def qmax(self) -> int:
        """The highest code."""
        return grid_limits(self.bits, signed=self.signed, narrow=self.narrow)[1]

    def range(self) -> tuple[Tensor, Tensor]:
        """The representable range [(qmin − z)·s, (qmax − z)·s], float32, shapes as scale's."""
        return (self.qmin - self.zero_point) * self.scale, (self.qmax - self.zero_point) * self.scale

    @classmethod
    def from_range(
        cls,
        lo: Tensor | float,
        hi: Tensor | float,
        *,
        bits: int,
        signed: bool,
        symmetric: bool,
        narrow: bool = False,
        axis: int | None = None,
    ) -> QParams:
        """The grid that GEMMLOWP's rule gives for the clipping range [lo, hi], each [] or [C].

        Affine: the range is widened to hold 0; s = (hi − lo)/(qmax − qmin); z = clamp(round(qmin − lo/s), qmin, qmax).
        Symmetric and signed: z = 0, s = max(|lo|, |hi|)/(2^(b−1) − 1). Symmetric and unsigned: z = 0, s = hi/(2^b − 1).
        Computed in float64; s is rounded to float32 once and kept in [2^−126, largest float32].
        Raises InputError where a bound is not finite, lo > hi, or the grid can't be symmetric over the range.
        """
        lo64, hi64 = (torch.as_tensor(bound, dtype=torch.float64) for bound in (lo, hi))
        _check_range(lo64, hi64)
        qmin, qmax = grid_limits(bits, signed=signed, narrow=narrow)
        if symmetric:
            scale, zero_point = _symmetric(lo64, hi64, bits, signed)
        else:
            scale, zero_point = _affine(lo64, hi64, qmin, qmax, centre=0 if signed else 2 ** (bits - 1))
        return cls(scale, zero_point, bits, signed, narrow, axis)


@dataclass(frozen=True)
class GridSpec:
    """The kind of uniform grid that will run, before its range is known: QParams.from_range's settings.

    Raises InputError where bits is not 1 to 16, or narrow is asked of an unsigned or a 1-bit grid.
    """

    bits: int
    signed: bool
    symmetric: bool
    narrow: bool = False

    def __post_init__(self) -> None:
        grid_limits(self.bits, signed=self.signed, narrow=self.narrow)

    def over(self, lo: Tensor | float, hi: Tensor | float, axis: int | None = None) -> QParams:
        """The grid of this kind over [lo, hi], each [] or, with an axis, [C]. Raises InputError as from_range does."""
        return QParams.from_range(
            lo, hi, bits=self.bits, signed=self.signed, symmetric=self.symmetric, narrow=self.narrow, axis=axis
        )


def _check_range(lo: Tensor, hi: Tensor) -> None:
    if bool(((hi - lo).isfinite() & (lo <= hi)).all()):
        return
    if not bool(torch.all(torch.isfinite(lo) & torch.isfinite(hi))):
        raise InputError("a clipping range must be finite; the tensor holds NaN or infinite values")
    lo, hi = torch.broadcast_tensors(lo, hi)
    if bool(torch.any(lo > hi)):
        first = int((lo > hi).flatten().nonzero()[0])
        shown = f"[{lo.flatten()[first].item()}, {hi.flatten()[first].item()}]"
        raise InputError(f"a clipping range [lo, hi] needs lo <= hi, got {shown}")


def _check_all(good: Tensor, values: Tensor, rule: str) -> None:
    """Raise InputError that gives the first value which breaks the rule."""
    if not bool(good.all()):
        raise InputError(f"{rule}, got {values[~good].flatten()[0].item()}")


def _round_scale(width: Tensor, steps: int) -> Tensor:
    """Width / steps as float32, inside [2^−126, largest]; 1 where the range is the point 0, its width 0."""
    return torch.where(width == 0, 1.0, width / steps).clamp(MIN_SCALE, MAX_SCALE).to(torch.float32)


def _symmetric(lo: Tensor, hi: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    if not signed and bool(torch.any(lo < 0)):
        raise InputError("a symmetric unsigned grid can't hold negative values; use signed=True or symmetric=False")
    if signed and bits < 2:
        raise InputError("a symmetric signed grid needs bits of 2 or more, got 1 (1 bit is the binary type's)")
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    scale = _round_scale(torch.maximum(lo.abs(), hi.abs()), steps)
    return scale, torch.zeros_like(scale, dtype=torch.int32)


def _affine(lo: Tensor, hi: Tensor, qmin: int, qmax: int, centre: int) -> tuple[Tensor, Tensor]:
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    width = hi - lo
    scale = _round_scale(width, qmax - qmin)
    zero_point = torch.clamp(torch.round(qmin - lo / scale.double()), qmin, qmax)
    # On a centred range z sits on a tie and would flip with the last bit of lo.
    zero_point = torch.where((lo + hi).abs() <= SYMMETRIC_TOLERANCE * width, float(centre), zero_point)
    zero_point = torch.where(width == 0, float(max(qmin, 0)), zero_point)
    return scale, zero_point.to(torch.int32)
