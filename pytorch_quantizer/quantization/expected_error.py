"""The error that uniform grids make on values that follow a density or a histogram, in closed form, many at once.
Which grid is best is range_search.py's business; the densities' partial moments are distributions.py's.

For nearest rounding to levels j·s, −L ≤ j ≤ U (zero among them), the squared error is the one of rounding all to zero
less what each boundary b = (j ± ½)·s between levels gains, 2s·E(|x| − |b|)⁺ over the values on b's side of zero:
E(x − q)² = E x² − 2s·Σ_b E(|x| − |b|)⁺. The first partial moment at each boundary is all that it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pytorch_quantizer.quantization.distributions import Distribution
from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.qparams import QParams

SMALLEST_SCALE = 2.0**-300  # stands for the scale 0 of a constant; its square is still a float64
BLOCK = 2**17  # float64 numbers worked on at a time


class Grids(NamedTuple):
    """K grids for each of C channels: scale and lowest level (qmin − z), float64 [C, K]; ``steps`` levels above it."""

    scale: Tensor
    lowest: Tensor
    steps: int

    @classmethod
    def of(cls, qparams: QParams, channels: int) -> Grids:
        """The grids of QParams [C·K], or of one [] for a single channel."""
        many = qparams.scale.numel() // max(channels, 1)
        scale, zero_point = (values.double().reshape(channels, many) for values in (qparams.scale, qparams.zero_point))
        return cls(scale, qparams.qmin - zero_point, qparams.qmax - qparams.qmin)


class Values(Protocol):
    """What values of C channels are distributed as."""

    def error(self, grids: Grids) -> Tensor:
        """E|x − q|^p of each grid, float64 [C, K]."""


@dataclass(frozen=True)
class DensityValues:
    """A density of location and scale [C] each; rectified: of max(x, 0), in whose error negative x have no part."""

    distribution: Distribution
    location: Tensor
    scale: Tensor
    rectified: bool = False

    def error(self, grids: Grids) -> Tensor:
        """E(x − q)², float64 [C, K]: no noise is assumed inside cells."""
        location, spread = self.location[:, None], self.scale[:, None].clamp(min=SMALLEST_SCALE)
        step = grids.scale / spread
        if self.rectified:
            power = spread.square() * self.distribution.excess_square(-location / spread)
            gained = self._gained(location, spread, step, grids.lowest + grids.steps)
        else:
            power = spread.square() * self.distribution.variance + location.square()
            gained = self._gained(location, spread, step, grids.lowest + grids.steps)
            gained += self._gained(-location, spread, step, -grids.lowest)
        return (power - 2 * grids.scale * gained).clamp(min=0)

    def _gained(self, location: Tensor, spread: Tensor, step: Tensor, levels: Tensor) -> Tensor:
        """Σ E(x − b)⁺ over the boundaries (j + ½)·s, j < levels, on the positive side; [C, K]."""
        first = step / 2 - location / spread
        return spread * self.distribution.excess_sum(first, step, levels)


def expected_mse(
    distribution: Distribution,
    qparams: QParams,
    location: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    *,
    rectified: bool = False,
) -> Tensor:
    """E(x − q(x))² of the very grid of ``qparams``, clamps and zero included, float64, [] or [C] as its scale.

    x follows the distribution, with location and scale (b or σ) [] or [C]. rectified: the grid sees max(x, 0).
    """
    shape, device = qparams.scale.shape, qparams.scale.device
    centre, spread = (
        torch.as_tensor(value, dtype=torch.float64, device=device).expand(shape).reshape(-1)
        for value in (location, scale)
    )
    values = DensityValues(distribution, centre, spread, rectified)
    return values.error(Grids.of(qparams, centre.numel())).reshape(shape)


def _halves(grids: Grids) -> Tensor:
    """Where a level gives way to the next, in units of the scale, [C, K, steps], or [1, 1, steps] if all are alike."""
    halves = torch.arange(grids.steps, dtype=torch.float64, device=grids.scale.device) + 0.5
    first = grids.lowest[:1, :1]
    return (first if bool((grids.lowest == first).all()) else grids.lowest)[..., None] + halves


class HistogramValues:
    """A histogram of values known to lie in [low, high], each [C]: even inside a bin, and zeros apart.

    The first and the last bin that hold any are taken as points, in the middle of what [low, high] leaves of them:
    a constant and a ceiling are then exactly what they are. Everything is in units of the bins' width.
    """

    def __init__(self, histogram: Histogram, low: Tensor, high: Tensor, *, power: float = 2.0) -> None:
        self.power = power
        self.bins = histogram.bins
        self.width = histogram.width.reshape(-1)
        self.total = histogram.total.reshape(-1).double()
        counts = histogram.counts.reshape(-1, self.bins).double()
        low, high = (end.reshape(-1) / self.width for end in (low, high))
        self.points, self.masses, self.counts = _without_ends(counts, low, high)
        self.tables, self.moment = _partial_moments(self.counts)

    def error(self, grids: Grids) -> Tensor:
        """Σ|x − q|^p / count, float64 [C, K]; where a channel is empty, 0."""
        scale = grids.scale / self.width[:, None]
        grids = Grids(scale, grids.lowest, grids.steps)
        by_levels = self.power == 2 and grids.steps <= self.bins
        evaluate, size = (self._by_levels, grids.steps) if by_levels else (self._by_bins, self.bins)
        found = by_blocks(evaluate, grids, size) + self._of_points(grids)
        return found.clamp(min=0) * self.width[:, None] ** self.power / self.total.clamp(min=1)[:, None]

    def _of_points(self, grids: Grids) -> Tensor:
        """Of the two end bins, [C, K]."""
        points = self.points[:, None, :] / grids.scale[..., None]
        off = points - _nearest(points, grids)
        errors = self.masses[:, None, :] * (off * grids.scale[..., None]).abs() ** self.power
        return errors.sum(-1)

    def _by_levels(self, channels: slice, grids: Grids) -> Tensor:
        """By the partial moment at each boundary: quadratic inside a bin, from a table of its edges."""
        half = self.bins // 2
        steps = _halves(grids)
        inside = (grids.scale[..., None] * steps).abs_().clamp_(max=half)
        index = inside.to(torch.int32)  # the edge on the side of zero
        inside -= index
        row = torch.arange(grids.scale.shape[0], device=steps.device, dtype=torch.int32)[:, None, None]
        index += (row * 2 + (steps < 0).int()) * (half + 1)
        flat = index.view(-1)
        moment, beyond, count = (
            table[channels].view(-1).index_select(0, flat).view(index.shape) for table in self.tables
        )
        gained = moment.add_(inside * (inside * count).sub_(beyond)).sum(-1)
        return self.moment[channels, None] - 2 * grids.scale * gained

    def _by_bins(self, channels: slice, grids: Grids) -> Tensor:
        """By the antiderivative of |x − q|^p at the edges: j·c + sign(d)·|d|^(p+1)/(p+1), d from the nearest j."""
        edges = torch.arange(self.bins + 1, dtype=torch.float64, device=grids.scale.device) - self.bins // 2
        at = edges / grids.scale[..., None]
        level = _nearest(at, grids)
        off = at - level
        cell = 2 * 0.5 ** (self.power + 1) / (self.power + 1)
        beyond = off * off.square() if self.power == 2 else off.sign() * off.abs() ** (self.power + 1)
        integral = level * cell + beyond / (self.power + 1)
        error = (integral.diff(dim=-1) * self.counts[channels, None]).sum(-1)
        return error * grids.scale ** (self.power + 1)


def _nearest(at: Tensor, grids: Grids) -> Tensor:
    """The level nearest to values [C, K, n] in units of the scale, itself in those units."""
    lowest = grids.lowest[..., None]
    return torch.minimum(torch.maximum(at.round(), lowest), lowest + grids.steps)


def _without_ends(counts: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(points [C, 2], their masses [C, 2], the counts without them), in units of the width."""
    bins = counts.shape[1]
    filled = (counts > 0).to(torch.uint8)
    ends = torch.stack([filled.argmax(1), bins - 1 - filled.flip(1).argmax(1)], 1)
    masses = counts.gather(1, ends)
    masses[:, 1] *= ends[:, 1] != ends[:, 0]  # one bin alone is one point
    left = ends.double() - bins // 2
    low, high = low[:, None], high[:, None]
    points = (torch.minimum(torch.maximum(left, low), high) + torch.minimum(left + 1, high)) / 2
    return torch.where(masses > 0, points, 0.0), masses, counts.scatter(1, ends, 0.0)


def _partial_moments(counts: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """(three tables [C, 2, bins/2 + 1], Σx² [C]), in units of the width.

    For the positive and the negative side, at the edge i away from zero: Σ(|x| − i)⁺, how many lie beyond it, and half
    of how many lie in the bin that begins there.
    """
    half = counts.shape[1] // 2
    sides = torch.stack([counts[:, half:], counts[:, :half].flip(1)], 1)
    beyond = sides.flip(-1).cumsum(-1).flip(-1)
    moment = beyond.flip(-1).cumsum(-1).flip(-1) - beyond / 2
    middles = torch.arange(half, dtype=torch.float64, device=counts.device) + 0.5
    power = (sides.sum(1) * (middles.square() + 1 / 12)).sum(-1)
    moment, beyond, halved = (torch.nn.functional.pad(table, (0, 1)) for table in (moment, beyond, sides / 2))
    return (moment, beyond, halved), power


def by_blocks(evaluate: Callable[[slice, Grids], Tensor], grids: Grids, size: int) -> Tensor:
    """Evaluate(channels, their grids), in blocks of channels and grids so that [C, K, size] stays in memory."""
    channels, many = grids.scale.shape
    columns = max(1, min(many, BLOCK // max(size, 1)))
    rows = max(1, BLOCK // (columns * max(size, 1)))
    found = torch.empty_like(grids.scale)
    for row in range(0, channels, rows):
        for column in range(0, many, columns):
            block = (slice(row, row + rows), slice(column, column + columns))
            part = Grids(grids.scale[block], grids.lowest[block], grids.steps)
            found[block] = evaluate(block[0], part)
    return found
