"""Laplace and Gaussian: the textbook error of a b-bit uniform quantizer that clips at α and the α that minimises it
(Banner et al. 2019, "Post training 4-bit quantization …"), and the partial moments that expected_error.py builds on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import erfc, lambertw
from torch import Tensor

from pytorch_quantizer.errors import InputError

SMALL_STEP = 0.15  # of σ; the first term left out is about 2e-4·step⁴ of the error
BLOCK = 2**18  # float64 numbers worked on at a time


def rounding_noise(alpha: float, bits: int) -> float:
    """Uniform noise inside cells of width 2α/2^M over [−α, α]: α² / (3·4^M)."""
    return alpha**2 / (3 * 4**bits)


class Distribution(ABC):
    """A symmetric density about zero, at scale 1: b for Laplace, σ for Gaussian."""

    name: ClassVar[str]
    variance: ClassVar[float]

    @abstractmethod
    def mse(self, alpha: float, bits: int) -> float:
        """Expected squared error of values clipped at α and rounded on 2^M levels, by the textbook."""

    @abstractmethod
    def optimal_alpha(self, bits: int) -> float:
        """α that minimises ``mse``. Raises InputError for bits below 1."""

    @abstractmethod
    def excess(self, t: Tensor) -> Tensor:
        """E(X − t)⁺, any shape, float64."""

    @abstractmethod
    def excess_sum(self, first: Tensor, step: Tensor, count: Tensor) -> Tensor:
        """Σ of ``excess`` at count points from ``first``, a step > 0 apart; all three one shape, float64."""

    @abstractmethod
    def excess_square(self, t: Tensor) -> Tensor:
        """E[((X − t)⁺)²], any shape, float64."""

    def minimum_mse(self, bits: int) -> float:
        """The error at ``optimal_alpha``; for 0 bits the variance. Raises InputError for bits below 0."""
        return self.mse(0.0, 0) if bits == 0 else self.mse(self.optimal_alpha(bits), bits)

    def optimal_step(self, levels: int) -> tuple[float, float]:
        """(step, distortion) of the best symmetric uniform quantizer of so many levels (Max 1960).

        An even number of levels has a boundary at zero (mid-rise), an odd one a level. Raises InputError below 2.
        """
        return _optimal_step(self, levels)


@dataclass(frozen=True)
class Laplace(Distribution):
    """Density e^(−|x|/b) / 2b; its scale is b = E|x − μ|."""

    name = "laplace"
    variance = 2.0

    def mse(self, alpha: float, bits: int) -> float:
        """Expected squared error at b = 1: 2e^(−α) + α²/(3·4^M)."""
        return 2 * math.exp(-alpha) + rounding_noise(alpha, bits)

    def optimal_alpha(self, bits: int) -> float:
        """α/b that minimises ``mse``: W₀(3·4^M), Lambert's W. Raises InputError for bits below 1."""
        return _laplace_alpha(_checked(bits))

    def excess(self, t: Tensor) -> Tensor:
        """E(X − t)⁺ at b = 1, any shape, float64: e^(−|t|)/2 + max(−t, 0)."""
        return torch.exp(-t.abs()) / 2 + (-t).clamp(min=0)

    def excess_sum(self, first: Tensor, step: Tensor, count: Tensor) -> Tensor:
        """Σ of ``excess`` at count points from ``first``, a step > 0 apart; all three one shape, float64.

        Two geometric series, one to either side of zero, and an arithmetic one.
        """
        below = torch.minimum(torch.ceil(-first / step).clamp(min=0), count)
        above, start = count - below, first + below * step
        series = torch.exp(-start.abs()) * torch.expm1(-above * step)
        mirrored = torch.exp(-(step - start).abs()) * torch.expm1(-below * step)
        return (series + mirrored) / torch.expm1(-step) / 2 - below * (first + step * (below - 1) / 2)

    def excess_square(self, t: Tensor) -> Tensor:
        """E[((X − t)⁺)²] at b = 1, any shape, float64: e^(−t) for t ≥ 0, else t² + 2 − e^t."""
        tail = torch.exp(-t.abs())
        return torch.where(t >= 0, tail, t.square() + 2 - tail)


@dataclass(frozen=True)
class Gaussian(Distribution):
    """Normal density; its scale is σ, the standard deviation."""

    name = "gaussian"
    variance = 1.0

    def mse(self, alpha: float, bits: int) -> float:
        """Expected squared error at σ = 1: (1 + α²)·erfc(α/√2) − √(2/π)·α·e^(−α²/2) + α²/(3·4^M)."""
        clipped = (1 + alpha**2) * erfc(alpha / math.sqrt(2)) - math.sqrt(2 / math.pi) * alpha * math.exp(
            -(alpha**2) / 2
        )
        return float(clipped) + rounding_noise(alpha, bits)

    def optimal_alpha(self, bits: int) -> float:
        """α/σ that minimises ``mse``, the root of its derivative. Raises InputError for bits below 1."""
        return _gaussian_alpha(_checked(bits))

    def excess(self, t: Tensor) -> Tensor:
        """E(X − t)⁺ at σ = 1, any shape, float64: φ(t) − t·Q(t)."""
        return (_phi(t) - t * torch.special.ndtr(-t)).clamp(min=0)

    def excess_sum(self, first: Tensor, step: Tensor, count: Tensor) -> Tensor:
        """Σ of ``excess`` at count points from ``first``, a step > 0 apart; all three one shape, float64.

        One by one; where steps are small against σ by the Euler-Maclaurin formula of the midpoint rule, which leaves
        out less than 1e-7 of the error that a grid of such steps makes.
        """
        end = first + (count - 0.5) * step
        begin = first - step / 2
        integral = (self.excess_square(begin) - self.excess_square(end)) / 2
        slope = torch.special.ndtr(-begin) - torch.special.ndtr(-end)
        third = begin * _phi(begin) - end * _phi(end)
        found = (integral - step**2 / 24 * slope + 7 * step**4 / 5760 * third) / step
        wide = step > SMALL_STEP
        if bool(wide.any()):
            found[wide] = self._summed(first[wide], step[wide], count[wide])
        return found

    def _summed(self, first: Tensor, step: Tensor, count: Tensor) -> Tensor:
        """One by one: [n] each → [n]."""
        found = torch.zeros_like(first)
        many, most = max(1, BLOCK // max(first.numel(), 1)), int(count.max())
        for start in range(0, most, many):
            j = torch.arange(start, min(start + many, most), dtype=torch.float64, device=first.device)
            terms = self.excess(first[:, None] + j * step[:, None])
            found += torch.where(j < count[:, None], terms, 0.0).sum(1)
        return found

    def excess_square(self, t: Tensor) -> Tensor:
        """E[((X − t)⁺)²] at σ = 1, any shape, float64: (1 + t²)·Q(t) − t·φ(t)."""
        return ((1 + t.square()) * torch.special.ndtr(-t) - t * _phi(t)).clamp(min=0)


DISTRIBUTIONS: dict[str, Distribution] = {"laplace": Laplace(), "gaussian": Gaussian()}


def _checked(bits: int) -> int:
    if bits < 1:
        raise InputError(f"bits must be 1 or more, got {bits}")
    return bits


@cache
def _laplace_alpha(bits: int) -> float:
    return float(lambertw(3.0 * 4.0**bits).real)


@cache
def _gaussian_alpha(bits: int) -> float:
    def derivative(alpha: float) -> float:
        tail = alpha * erfc(alpha / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-(alpha**2) / 2)
        return float(tail + alpha / (3 * 4**bits))

    # The noise term dominates well before α = 2 + 2·bits; below α = 0.5 the clipped tail does, for every bits >= 1.
    return float(brentq(derivative, 0.5, 2.0 + 2.0 * bits, xtol=1e-13))


def _phi(t: Tensor) -> Tensor:
    """The normal density."""
    return torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)


@cache
def _optimal_step(distribution: Distribution, levels: int) -> tuple[float, float]:
    if levels < 2:
        raise InputError(f"levels must be 2 or more, got {levels}")
    widest = 20.0 * math.sqrt(distribution.variance) / levels  # nothing is gained by levels beyond ten deviations

    def distortion(step: float) -> float:
        return _uniform_distortion(distribution, levels, step)

    trials = torch.linspace(widest / 100, widest, 100, dtype=torch.float64).tolist()
    best = min(range(100), key=lambda i: distortion(trials[i]))
    bounds = (trials[max(best - 1, 0)], trials[min(best + 1, 99)])
    found = minimize_scalar(distortion, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return float(found.x), float(found.fun)


def _uniform_distortion(distribution: Distribution, levels: int, step: float) -> float:
    """E(x − q)² for levels a step apart about zero: var + s²/4·[even] − 2s·Σ over boundaries t of E(|x| − t)⁺.

    A boundary t > 0 lowers (x − y)² by 2s(x − t) for every x beyond it; so does its mirror image. An even number's
    boundary at zero counts once, and lowers nothing but s·|x|.
    """
    is_even = levels % 2 == 0
    boundaries = step * (torch.arange((levels - 1) // 2, dtype=torch.float64) + (1.0 if is_even else 0.5))
    gained = 4 * step * distribution.excess(boundaries).sum().item()
    centre = 2 * step * distribution.excess(torch.zeros((), dtype=torch.float64)).item() - step**2 / 4
    return distribution.variance + (-centre if is_even else 0.0) - gained
