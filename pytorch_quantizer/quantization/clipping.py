"""Statistics → clipping range [lo, hi]: min-max and the analytic optima, full and half range.
How a range becomes a grid is qparams.py's business.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS
from pytorch_quantizer.quantization.statistics import TensorStatistics

Support = Literal["real", "rectified", "nonnegative", "unit"]
Range = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Domain:
    """What is known of a tensor's values before any is seen.

    support: "real", any sign. "rectified", after a ReLU, and the statistics are those of the ReLU's input.
    "nonnegative", no negative value, though not after a ReLU. "unit", in [0, 1] (sigmoid, softmax).
    upper: where the ReLU saturates (6 for ReLU6), None where it doesn't.
    """

    support: Support = "real"
    upper: float | None = None

    def observed(self, statistics: TensorStatistics) -> Range:
        """The [min, max] of the tensor itself, each [] or [C]."""
        if self.support == "unit":
            return torch.zeros_like(statistics.min), torch.ones_like(statistics.max)
        if self.support != "rectified":
            return statistics.min, statistics.max
        return statistics.min.clamp(0, self.upper), statistics.max.clamp(0, self.upper)


ANY_VALUES = Domain()


def minmax_range(statistics: TensorStatistics, bits: int, domain: Domain) -> Range:
    """All that was observed, nothing clipped."""
    return domain.observed(statistics)


def laplace_range(statistics: TensorStatistics, bits: int, domain: Domain) -> Range:
    """The optimum for a Laplace density: α = b·W₀(3·4^M) about μ, b = E|x − μ| (half range: M + 1)."""
    return _analytic_range("laplace", statistics, bits, domain)


def gaussian_range(statistics: TensorStatistics, bits: int, domain: Domain) -> Range:
    """The optimum for a normal density: the root of the error's derivative, times σ, about μ (half range: M + 1)."""
    return _analytic_range("gaussian", statistics, bits, domain)


CLIPPINGS: dict[str, Callable[[TensorStatistics, int, Domain], Range]] = {
    "minmax": minmax_range,
    "laplace": laplace_range,
    "gaussian": gaussian_range,
}


def check_clipping(method: str) -> str:
    """The method itself. Raises InputError that lists the known ones where it is none of them."""
    if not isinstance(method, str) or method not in CLIPPINGS:
        close = difflib.get_close_matches(str(method), CLIPPINGS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"clip must be one of {', '.join(CLIPPINGS)}, got {method!r}{hint}")
    return method


def choose_range(statistics: TensorStatistics, *, method: str, bits: int, domain: Domain = ANY_VALUES) -> Range:
    """The clipping range [lo, hi], float64, each [] or [C] as the statistics are.

    Raises InputError for an unknown method, where nothing was observed, and for NaN or infinite values.
    """
    chosen = CLIPPINGS[check_clipping(method)]
    if bool(torch.any(statistics.count == 0)):
        raise InputError("no value was observed; the calibration set or the tensor is empty")
    if not bool(torch.all(torch.isfinite(statistics.min) & torch.isfinite(statistics.max))):
        raise InputError("it holds NaN or infinite values")
    return chosen(statistics, bits, domain)


def _analytic_range(name: str, statistics: TensorStatistics, bits: int, domain: Domain) -> Range:
    """The analytic range, intersected with what was observed: beyond that there is nothing to represent."""
    if domain.support == "unit":
        return domain.observed(statistics)
    centre, scale = _location_and_scale(name, statistics, domain)
    half = domain.support != "real"
    alpha = scale * DISTRIBUTIONS[name].optimal_alpha(bits + int(half))
    lo = torch.zeros_like(centre) if half else centre - alpha
    hi = (centre.clamp(min=0) if half else centre) + alpha
    observed_lo, observed_hi = domain.observed(statistics)
    return torch.maximum(lo, observed_lo), torch.minimum(hi, observed_hi)


def _location_and_scale(name: str, statistics: TensorStatistics, domain: Domain) -> tuple[Tensor, Tensor]:
    """(μ, b or σ); of a non-negative tensor without a ReLU, those of the density mirrored about zero."""
    if domain.support == "nonnegative":
        spread = statistics.positive_mean if name == "laplace" else statistics.positive_mean_square.sqrt()
        return torch.zeros_like(spread), spread
    return statistics.mean, statistics.abs_dev if name == "laplace" else statistics.variance.sqrt()
