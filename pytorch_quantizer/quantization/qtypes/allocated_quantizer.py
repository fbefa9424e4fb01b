"""AllocatedQuantizer: uniform grids whose number of bits differs from channel to channel.
How many each channel gets is decided in bit_allocation.py. Integer kernels run neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
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
from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.qparams import MAX_BITS, MAX_SCALE, MIN_SCALE, GridSpec
from pytorch_quantizer.quantization.qtypes.quantizer import UNFITTED, Quantizer
from pytorch_quantizer.quantization.statistics import MOMENTS, TensorStatistics
from pytorch_quantizer.reference import smallest_dtype

Grid = tuple[Tensor, Tensor, Tensor]  # scale, zero_point and shift of some channels, each [K]


class AllocatedQuantizer(Quantizer):
    """Channel c has 2^M_c levels: y = (clamp(round(x / s_c) + z_c, qmin_c, qmax_c) − z_c) · s_c.

    bits: M_c, whole numbers from 0 to 16, [C]. Each channel is what IntQuantizer(M_c) is on it alone, except that
    0 bits keep the channel's mean (that of the tensor as it is read: after the ReLU, where there is one), and 1 bit of
    a tensor of any sign keeps the side of the mean, μ ± E|x − μ|: a grid of one bit that holds zero has no second side.
    The mean after a ReLU is exact; after ReLU6 it is that of the ReLU, at most 6.
    signed, narrow, symmetric, clip, domain, across_batches, rounding, seed: as for IntQuantizer, the same for all
    channels. axis: the dimension of the channels.
    Attributes: channel_bits, int64 [C]; mean_bits, their mean; bits, that rounded up.
    Raises InputError where these contradict each other or are unknown.
    """

    scale: Any  # Tensor [C] once fitted, None before; so are zero_point and shift
    zero_point: Any
    shift: Any  # what 0-bit and 1-bit channels are moved by: y = grid(x − shift) + shift; 0 elsewhere
    levels: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        bits: Tensor,
        *,
        signed: bool = True,
        narrow: bool = False,
        symmetric: bool = True,
        axis: int = 0,
        clip: str = "minmax",
        domain: Domain = ANY_VALUES,
        across_batches: str = "max",
        rounding: str = "half_even",
        seed: int = 0,
    ) -> None:
        super().__init__()
        GridSpec(MAX_BITS, signed=signed, symmetric=symmetric, narrow=narrow)
        if rounding not in ops.ROUNDINGS:
            raise InputError(f"rounding must be one of {', '.join(ops.ROUNDINGS)}, got {rounding!r}")
        self.signed, self.narrow, self.symmetric, self.axis = signed, narrow, symmetric, axis
        self.clip, self.domain = check_clipping(clip), domain
        self.across_batches = check_across_batches(across_batches)
        self.rounding, self.seed, self.drawn = rounding, seed, 0
        for name in ("scale", "zero_point", "shift"):
            self.register_buffer(name, None)
        for name in ("levels", "lowest", "highest"):  # they follow from the bits; no state of their own
            self.register_buffer(name, None, persistent=False)
        self._allocate(self._levels_of(bits))

    def _levels_of(self, bits: Tensor) -> Tensor:
        return 2 ** whole_numbers("bits", bits, 0, MAX_BITS)

    def _limits(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(qmin, qmax) of each channel, as qparams.grid_limits gives them; both 0 where there is one level."""
        if not self.signed:
            return torch.zeros_like(levels), levels - 1
        narrow = (levels > 2).long() * int(self.narrow)
        return -(levels // 2) + narrow, (levels // 2 - 1).clamp(min=0)

    def _allocate(self, levels: Tensor) -> None:
        """Take int64 levels [C], and what follows from them."""
        self.levels = levels
        self.lowest, self.highest = self._limits(levels)
        self.widest = min(int(self.lowest.min()), 0), max(int(self.highest.max()), 1)
        self.is_shifted = bool(self._coarse().any())
        self.bits = math.ceil(self.mean_bits)

    def _coarse(self) -> Tensor:
        """Which channels keep their mean, or the side of it, instead of a grid that holds zero: bool [C]."""
        return self.levels <= (2 if self.domain.support == "real" else 1)

    @property
    def channel_bits(self) -> Tensor:
        """Bits that a code of each channel takes, int64 [C]: ⌈log2 levels⌉."""
        return torch.frexp((self.levels - 1).double()).exponent.long()

    @property
    def mean_bits(self) -> float:
        """Mean bits of a code."""
        return float(self.channel_bits.double().mean())

    @property
    def needs_histogram(self) -> bool:
        """Whether statistics to ``fit`` to must hold a histogram."""
        return needs_histogram(self.clip)

    @property
    def takes_gain(self) -> bool:
        """Always: each channel has its scale."""
        return True

    def multiply(self, gain: Tensor) -> Self:
        """s_c ← gain_c·s_c, and the mean of a 0-bit channel with it."""
        self.scale, self.shift = ((part.double() * gain.double()).to(part.dtype) for part in (self.scale, self.shift))
        return self

    def code_bytes(self, shape: Iterable[int]) -> int:
        """Bytes that the codes of a tensor of this shape take, each channel's packed at its own bits."""
        sizes = list(shape)
        if sizes[self.axis] != len(self.levels):
            raise InputError(f"bits are for {len(self.levels)} channels, a tensor has {sizes[self.axis]}: {sizes}")
        values = math.prod(sizes) // len(self.levels)
        return -(-values * int(self.channel_bits.sum()) // 8)

    @property
    def signed_codes(self) -> bool:
        """Of signed grids."""
        return self.signed

    def pack(self, codes: Tensor) -> dict[str, Tensor]:
        """One stream: all codes of the first channel at its bits, then the next channel's, nothing in between."""
        rows = codes.movedim(self.axis, 0).reshape(len(self.levels), -1).int()
        places = [torch.arange(bits, device=rows.device, dtype=torch.int32) for bits in self.channel_bits.tolist()]
        stream = [(row[:, None] >> place & 1).flatten() for row, place in zip(rows, places, strict=True)]
        return {"codes": ops.pack(torch.cat(stream).to(torch.uint8), 1)}

    def unpack(self, packed: dict[str, Tensor], shape: Iterable[int]) -> Tensor:
        """The codes again, of the dtype that ``quantize`` gives them."""
        sizes = list(shape)
        values = math.prod(sizes) // max(len(self.levels), 1)
        widths = self.channel_bits.tolist()
        stream = ops.unpack(packed["codes"], 1, [values * sum(widths)]).int()
        rows = []
        for part, bits in zip(stream.split([values * bits for bits in widths]), widths, strict=True):
            places = torch.arange(bits, device=part.device, dtype=torch.int32)
            code = (part.view(values, bits) << places).sum(1)
            rows.append(code - ((code >> (bits - 1) & 1) << bits) if self.signed and bits else code)
        moved = sizes[self.axis : self.axis + 1] + sizes[: self.axis] + sizes[self.axis + 1 :]
        codes = torch.stack(rows).reshape(moved).movedim(0, self.axis).contiguous()
        return codes.to(smallest_dtype(*self.widest))

    def fit(self, source: Tensor | TensorStatistics) -> Self:
        """Choose each channel's range at its own bits; channels of the same bits are chosen together.

        Raises InputError where the channels are not as many as the bits, and where clipping.choose_range does.
        """
        if isinstance(source, Tensor):
            source = TensorStatistics.from_tensor(source.detach(), axis=self.axis, histogram=self.needs_histogram)
        if source.count.shape != self.levels.shape:
            counted = list(source.count.shape)
            raise InputError(f"bits are for {len(self.levels)} channels, the statistics have shape {counted}")
        self._range(source, "minmax", GridSpec(8, signed=True, symmetric=True))  # what has no range is checked as well
        self.to(source.count.device)
        scale, shift = (torch.zeros(self.levels.shape, device=self.levels.device) for _ in range(2))
        zero_point = torch.zeros_like(self.levels, dtype=torch.int32)
        for levels in self.levels.unique().tolist():
            index = (self.levels == levels).nonzero()[:, 0]
            scale[index], zero_point[index], shift[index] = self._grid(_channels(source, index), levels, index)
        self.scale, self.zero_point, self.shift = scale, zero_point, shift
        return self

    def _grid(self, statistics: TensorStatistics, levels: int, index: Tensor) -> Grid:
        """The grid of the channels ``index``, which have ``levels`` each and these statistics."""
        if bool(self._coarse()[index[0]]):
            return self._coarse_grid(statistics, levels, index)
        bits = levels.bit_length() - 1
        # One bit has no symmetric signed grid, {−1, 0} is all it holds; unsigned, of values >= 0, affine is the same.
        symmetric, narrow = self.symmetric and bits > 1, self.narrow and bits > 1
        spec = GridSpec(bits, signed=self.signed, symmetric=symmetric, narrow=narrow)
        qparams = spec.over(*self._range(statistics, self.clip, spec), axis=0)
        return qparams.scale, qparams.zero_point, torch.zeros_like(qparams.scale)

    def _range(self, statistics: TensorStatistics, method: str, spec: GridSpec) -> tuple[Tensor, Tensor]:
        return choose_range(
            statistics, method=method, grid=spec, domain=self.domain, across_batches=self.across_batches
        )

    def _coarse_grid(self, statistics: TensorStatistics, levels: int, index: Tensor) -> Grid:
        """Levels μ, or μ ± E|x − μ|: about the upper one, the codes are qmax and, a step of 2·E|x − μ| below, qmin."""
        spread = statistics.abs_dev if levels == 2 else torch.zeros_like(statistics.abs_dev)
        scale = (2 * spread).clamp(MIN_SCALE, MAX_SCALE).float()
        return scale, self.highest[index].int(), (self._mean(statistics) + spread).float()

    def _mean(self, statistics: TensorStatistics) -> Tensor:
        """The mean of the tensor as it is read, [K]."""
        if self.domain.support != "rectified":
            return statistics.mean
        mean = statistics.positive_count * statistics.positive_mean / statistics.count
        return mean.clamp(0, self.domain.upper)

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Simulate. ``inplace`` overwrites x if no gradient is needed. Straight-through; 0-bit channels pass none."""
        self._check_fitted()
        differentiable = x.requires_grad and torch.is_grad_enabled()
        if x.dtype != torch.float32 and (differentiable or self.is_shifted):  # so that the result is rounded once
            y = self(x.float()).to(x.dtype)
            return x.copy_(y) if inplace and not differentiable else y
        op = ops.fake_quantize_ if inplace and not differentiable else ops.fake_quantize
        y = self._moved(x, -1, inplace and not differentiable)
        y = op(y, self.scale, self.zero_point, *self.widest, axis=self.axis, **self._rounding(x))
        # One kernel call knows one [qmin, qmax], the widest; each channel's own is drawn here, after the rounding.
        low, high = (self._along(end, y) for end in self._representable())
        if differentiable:  # at a bound itself, clamp's gradient is a half
            y = torch.where(y < low, low, torch.where(y > high, high, y))
        else:
            y.clamp_(low, high)
        return self._moved(y, +1, not differentiable)

    def quantize(self, x: Tensor) -> Tensor:
        """Codes in each channel's [qmin, qmax], of the smallest dtype that holds them all. NaN becomes z."""
        self._check_fitted()
        x = self._moved(x.detach().float() if self.is_shifted else x, -1, False)
        codes = ops.quantize(x, self.scale, self.zero_point, *self.widest, axis=self.axis, **self._rounding(x))
        low, high = (self._along(end.to(codes.dtype), codes) for end in (self.lowest, self.highest))
        return codes.clamp_(low, high)

    def dequantize(self, codes: Tensor) -> Tensor:
        """(q − z) · s + shift, float32."""
        self._check_fitted()
        return self._moved(ops.dequantize(codes, self.scale, self.zero_point, axis=self.axis), +1, True)

    def _check_fitted(self) -> None:
        if self.scale is None:
            raise InputError(UNFITTED)

    def _along(self, values: Tensor, x: Tensor) -> Tensor:
        """[C] in a shape that broadcasts along x's channels."""
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return values.view(shape)

    def _moved(self, x: Tensor, sign: int, inplace: bool) -> Tensor:
        """x ± shift; x itself where no channel is shifted."""
        if not self.is_shifted:
            return x
        shift = self._along(self.shift, x)
        return x.add_(shift, alpha=sign) if inplace else x.add(shift, alpha=sign)

    def _representable(self) -> tuple[Tensor, Tensor]:
        """[(qmin − z)·s, (qmax − z)·s] before the shift, float32 [C], as the kernels compute them."""
        low, high = ((end - self.zero_point).float() * self.scale for end in (self.lowest, self.highest))
        return low, high

    def _rounding(self, x: Tensor) -> dict[str, Any]:
        if self.rounding != "stochastic":
            return {"rounding": self.rounding}
        self.drawn += x.numel()
        return {"rounding": self.rounding, "seed": self.seed, "offset": self.drawn - x.numel()}

    def storage(self) -> dict[str, Tensor]:
        """scale [C], bits uint8 [C], zero_point [C] of affine grids, shift of the 0-bit and 1-bit channels alone."""
        self._check_fitted()
        stored = {"scale": self.scale, **self._stored_levels()}
        if not (self.symmetric and torch.equal(self.zero_point, self._symmetric_zero_point())):
            stored["zero_point"] = self.zero_point
        return stored | ({"shift": self.shift[self._coarse()]} if self.is_shifted else {})

    def _stored_levels(self) -> dict[str, Tensor]:
        return {"bits": self.channel_bits.to(torch.uint8)}

    def restore(self, storage: dict[str, Tensor]) -> Self:
        """The bits and grids that ``storage`` returned. Raises InputError where they don't fit together."""
        name = "bits" if "bits" in storage else "levels"
        self._allocate(self._levels_of(storage[name]))
        scale = storage["scale"]
        shift, coarse = torch.zeros_like(scale), self._coarse()
        zero_point = storage.get("zero_point", self._symmetric_zero_point())
        if not scale.shape == zero_point.shape == self.levels.shape or not bool(torch.all(scale > 0)):
            raise InputError(f"scale and zero_point must be [C], scale positive, for the {len(coarse)} stored {name}")
        if self.is_shifted:
            if storage["shift"].numel() != int(coarse.sum()):
                raise InputError(f"shift must hold {int(coarse.sum())} values, got {storage['shift'].numel()}")
            shift[coarse] = storage["shift"]
        self.scale, self.zero_point, self.shift = scale, zero_point, shift
        return self

    def _symmetric_zero_point(self) -> Tensor:
        """0, but in one-bit channels the code of the upper level, which shift is the value of."""
        return torch.where(self._coarse(), self.highest, 0).to(torch.int32)

    def range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest representable value of each channel, float32 [C]."""
        self._check_fitted()
        low, high = self._representable()
        return low + self.shift, high + self.shift

    def describe(self) -> str:
        """int~4.00: the mean number of bits."""
        return f"{'int' if self.signed else 'uint'}~{self.mean_bits:.2f}"

    def extra_repr(self) -> str:
        """What print shows."""
        kind = "symmetric" if self.symmetric else "affine"
        return f"{self.describe()}, {kind}, {len(self.levels)} channels along axis={self.axis}, clip={self.clip}"


def whole_numbers(name: str, values: Tensor, low: int, high: int) -> Tensor:
    """The values as int64 [C]. Raises InputError where they aren't whole numbers in [low, high]."""
    if values.dim() != 1 or values.numel() == 0 or values.is_floating_point():
        raise InputError(f"{name} must be whole numbers [C], got {values.dtype} of shape {list(values.shape)}")
    bad = values[(values < low) | (values > high)]
    if len(bad):
        raise InputError(f"{name} of a channel must be between {low} and {high}, got {int(bad[0])}")
    return values.detach().to(torch.int64)


def _channels(statistics: TensorStatistics, index: Tensor) -> TensorStatistics:
    """The statistics of some of the channels."""
    moments = {name: getattr(statistics, name)[index] for name in MOMENTS}
    histogram = statistics.histogram
    if histogram is not None:
        histogram = Histogram(*(getattr(histogram, field.name)[index] for field in fields(Histogram)))
    return TensorStatistics(**moments, histogram=histogram)
