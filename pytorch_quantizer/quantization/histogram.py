"""Histogram: how often values fall in bins whose width is a power of two, mergeable exactly and in any order.
What a range or an error is concluded from it is clipping.py's and expected_error.py's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer import ops
from pytorch_quantizer.errors import InputError

BINS = 2048  # 4 to 8 of them to a step of an 8-bit grid over [−max, max]
MIN_EXPONENT, MAX_EXPONENT = -126, 127  # 2^−126 is the narrowest scale there is; finer bins would tell nothing


@dataclass(frozen=True)
class Histogram:
    """Counts of x ∈ [(i − bins/2)·2^k, (i + 1 − bins/2)·2^k), i = 0 … bins − 1; exact zeros are counted apart.

    counts: int64, [bins] (per tensor) or [C, bins] (per channel), without the zeros. zeros, exponent (k): int64, []
    or [C]. Edges are multiples of the width and zero is one of them, so that two bins of one width make exactly one of
    twice the width: merging loses nothing but fineness and doesn't depend on the order.
    """

    counts: Tensor
    zeros: Tensor
    exponent: Tensor

    @classmethod
    def from_tensor(
        cls, x: Tensor, *, axis: int | None = None, bins: int = BINS, largest: Tensor | None = None
    ) -> Histogram:
        """Count x of any shape, float32 or narrower, per tensor or per channel along ``axis``, in one more read.

        bins: a power of two. largest: max |x|, [] or [C], where it is known. A channel that holds NaN or infinite
        values counts nothing.
        """
        if largest is None:
            rows = x.detach().reshape(1, -1) if axis is None else x.detach().movedim(axis, 0).flatten(1)
            largest = _largest(rows).reshape([] if axis is None else [-1])
        empty = torch.zeros((*largest.shape, bins + 2), dtype=torch.int64, device=x.device)
        finest = torch.full_like(largest, MIN_EXPONENT, dtype=torch.int64)
        counted, exponent = ops.growing_histogram(x, empty, finest, largest=largest.float(), axis=axis)
        return cls(counted[..., :bins], counted[..., bins], exponent)

    @property
    def bins(self) -> int:
        """How many bins, of which half are for negative values."""
        return self.counts.shape[-1]

    @property
    def width(self) -> Tensor:
        """2^k, float64, [] or [C]."""
        return power_of_two(self.exponent)

    @property
    def total(self) -> Tensor:
        """Values counted, zeros included, int64, [] or [C]."""
        return self.counts.sum(-1) + self.zeros

    def edges(self) -> Tensor:
        """The edges of the bins, float64, [bins + 1] or [C, bins + 1]."""
        steps = torch.arange(self.bins + 1, device=self.counts.device, dtype=torch.float64) - self.bins // 2
        return self.width[..., None] * steps

    def centres(self) -> Tensor:
        """The middles of the bins, float64, shaped as counts. Zeros are in none of them: their value is 0."""
        return self.edges()[..., :-1] + self.width[..., None] / 2

    def merge(self, other: Histogram) -> Histogram:
        """Both together, on the wider bins of the two. Raises InputError where bins or channels differ in number."""
        if self.counts.shape != other.counts.shape:
            shapes = f"{list(self.counts.shape)} and {list(other.counts.shape)}"
            raise InputError(f"histograms merge only with the same channels and bins, got {shapes}")
        exponent = torch.maximum(self.exponent, other.exponent)
        counts = self._coarsened(exponent) + other._coarsened(exponent)
        return Histogram(counts, self.zeros + other.zeros, exponent)

    def _coarsened(self, exponent: Tensor) -> Tensor:
        """The counts on bins of width 2^exponent, at least this one's."""
        shift = (exponent - self.exponent)[..., None]
        if shift.device.type == "cpu" and not bool(shift.any()):  # elsewhere asking would mean to wait
            return self.counts
        index = torch.arange(self.bins, device=self.counts.device) - self.bins // 2
        target = torch.bitwise_right_shift(index.expand_as(self.counts), shift) + self.bins // 2
        return torch.zeros_like(self.counts).scatter_add_(-1, target, self.counts)

    def rectified(self, upper: float | None = None) -> Histogram:
        """That of clamp(x, 0, upper): negative values become zeros, those of bins above ``upper`` fall in one bin.

        That is the one which begins at ``upper``, as for 6 whenever bins are at most 2 wide, or else the next: what
        ends at ``upper`` takes its values for it (HistogramValues does).
        """
        half = self.bins // 2
        counts, zeros = self.counts.clone(), self.zeros + self.counts[..., :half].sum(-1)
        counts[..., :half] = 0
        if upper is not None:
            last = torch.ceil(upper / self.width).clamp(max=half - 1).long()[..., None] + half
            above = torch.arange(self.bins, device=counts.device) > last
            counts = torch.where(above, 0, counts).scatter_add(-1, last, (counts * above).sum(-1, keepdim=True))
        return Histogram(counts, zeros, self.exponent)

    def with_bins(self, bins: int) -> Histogram:
        """The same on fewer, wider bins, a power of two of them; on its own where it has no more than that."""
        if bins >= self.bins:
            return self
        shift = (self.bins // bins).bit_length() - 1
        counts = self.counts.unflatten(-1, (bins, self.bins // bins)).sum(-1)
        return Histogram(counts, self.zeros, self.exponent + shift)

    def quantile(self, share: float) -> Tensor:
        """The value that ``share`` of all values don't exceed, zeros counted, float64 [] or [C]; even inside a bin."""
        half = self.bins // 2
        counts = torch.cat([self.counts[..., :half], self.zeros[..., None], self.counts[..., half:]], -1).double()
        below = counts.cumsum(-1)
        wanted = share * below[..., -1:]
        index = torch.searchsorted(below, wanted).clamp(max=self.bins)
        count, above = (values.gather(-1, index) for values in (counts, below))
        inside = 1 - (above - wanted) / count.clamp(min=1)
        is_zero = index == half
        place = index - half - (index > half).long() + torch.where(is_zero, 0.0, inside)
        return place.squeeze(-1) * self.width

    def mean_magnitude(self) -> Tensor:
        """E[|x| | x ≠ 0] by the bins' middles, float64 [] or [C]; 0 where there is none."""
        total = self.counts.sum(-1)
        return (self.counts * self.centres().abs()).sum(-1) / total.clamp(min=1)

    def channels(self, block: slice) -> Histogram:
        """That of some channels, where this one is per channel."""
        return Histogram(self.counts[block], self.zeros[block], self.exponent[block])

    def to(self, device: torch.device | str) -> Histogram:
        """The same on another device."""
        return Histogram(self.counts.to(device), self.zeros.to(device), self.exponent.to(device))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: bins, exponent, zeros, and the counts from bin ``first`` to the last that isn't empty.

        Per channel exponent, zeros, first and counts are lists, a channel each.
        """
        rows = [_trimmed(row) for row in self.counts.reshape(-1, self.bins).tolist()]
        entry = {"exponent": self.exponent.tolist(), "zeros": self.zeros.tolist()}
        first, counts = [row[0] for row in rows], [row[1] for row in rows]
        if self.counts.dim() == 1:
            return {"bins": self.bins, **entry, "first": first[0], "counts": counts[0]}
        return {"bins": self.bins, **entry, "first": first, "counts": counts}

    @classmethod
    def from_dict(cls, values: Any) -> Histogram:
        """What ``to_dict`` wrote. Raises InputError that names the entry which is missing, unknown or impossible."""
        keys = ("bins", "exponent", "zeros", "first", "counts")
        if not isinstance(values, dict) or sorted(values) != sorted(keys):
            shown = sorted(map(str, values)) if isinstance(values, dict) else values
            raise InputError(f"histogram must hold {', '.join(keys)}; got {shown}")
        bins = _whole("bins", values["bins"], 2, 2**24)
        if bins & (bins - 1):
            raise InputError(f"histogram.bins must be a power of two, got {bins}")
        if not isinstance(values["exponent"], list):
            counts, zeros, exponent = _row(bins, *(values[key] for key in keys[1:]))
            return cls(torch.tensor(counts), torch.tensor(zeros), torch.tensor(exponent))
        columns = [values[key] for key in keys[1:]]
        if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            raise InputError("histogram.exponent, zeros, first and counts must be lists of one entry a channel")
        rows = [_row(bins, *row) for row in zip(*columns, strict=True)]
        filled, zero, power = (torch.tensor([row[i] for row in rows], dtype=torch.int64) for i in range(3))
        return cls(filled.reshape(len(rows), bins), zero, power)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^k in float64, exactly, for whole −1022 ≤ k ≤ 1023; library powers may be off by the last bit."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _largest(rows: Tensor) -> Tensor:
    """max |x| of each row, 0 where it is empty; NaN where it holds one."""
    return rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])


def _trimmed(counts: list[int]) -> tuple[int, list[int]]:
    """(where the first count is that isn't 0, the counts from there to the last)."""
    filled = [i for i, count in enumerate(counts) if count]
    return (filled[0], counts[filled[0] : filled[-1] + 1]) if filled else (0, [])


def _row(bins: int, exponent: Any, zeros: Any, first: Any, counts: Any) -> tuple[list[int], int, int]:
    """One channel's (counts [bins], zeros, exponent), checked."""
    if not isinstance(counts, list):
        raise InputError(f"histogram.counts must be a list of whole numbers, got {counts!r}")
    first = _whole("first", first, 0, bins)
    if first + len(counts) > bins:
        raise InputError(f"histogram.counts must fit {bins} bins, got {len(counts)} from bin {first}")
    checked = [_whole("counts", count, 0, 2**62) for count in counts]
    full = [0] * first + checked + [0] * (bins - first - len(counts))
    return full, _whole("zeros", zeros, 0, 2**62), _whole("exponent", exponent, MIN_EXPONENT, MAX_EXPONENT)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"histogram.{name} must be a whole number from {low} to {high}, got {value!r}")
    return value
