"""Statistics → clipping range [lo, hi]: observed, analytic and searched, full and half range, each method a line below.
How a range becomes a grid is qparams.py's business, how a search is done range_search.py's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS
from pytorch_quantizer.quantization.divergence import HistogramDivergence
from pytorch_quantizer.quantization.expected_error import DensityValues, HistogramValues, Values
from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.qparams import GridSpec
from pytorch_quantizer.quantization.range_search import Range, grid_error, search_alpha, search_range
from pytorch_quantizer.quantization.statistics import TensorStatistics, check_observed
from pytorch_quantizer.user_warnings import warn_user

Support = Literal["real", "rectified", "nonnegative", "unit"]
EXACT = "exact"
ACROSS_BATCHES = ("max", "mean")
CHANNELS_AT_ONCE = 64  # their tables stay in a core's cache
FEWEST_IN_RANGE = 8  # bins inside a range by percentile, whose ends are off by up to one of them
BINS_A_LEVEL, FEWEST_BINS = 16, 128
LEAST_OF_MEAN = 0.25  # no range is tried whose end is below this share of E|x|: it would clip nearly everything


@dataclass(frozen=True)
class Domain:
    """What is known of a tensor's values before any is seen.

    support: "real", any sign. "rectified", after a ReLU, and the statistics are those of the ReLU's input.
    "nonnegative", no negative value, though not after a ReLU. "unit", in [0, 1] (sigmoid, softmax).
    upper: where the ReLU saturates (6 for ReLU6), None where it doesn't.
    """

    support: Support = "real"
    upper: float | None = None

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """What the statistics' values are cut to before they are the tensor's own: (0, 6) for a ReLU6's output."""
        return (0.0, self.upper) if self.support == "rectified" else (None, None)

    def observed(self, statistics: TensorStatistics, across_batches: str = "max") -> Range:
        """The [min, max] of the tensor itself, each [] or [C]; "mean": each batch's, averaged.

        That average is the tensor's own where the statistics were collected under this domain's ``limits``.
        """
        lo, hi = statistics.min, statistics.max
        if across_batches == "mean":
            lo, hi = statistics.min_mean, statistics.max_mean
        if self.support == "unit":
            return torch.zeros_like(lo), torch.ones_like(hi)
        if self.support != "rectified":
            return lo, hi
        return lo.clamp(0, self.upper), hi.clamp(0, self.upper)

    def histogram(self, statistics: TensorStatistics) -> Histogram:
        """That of the tensor itself."""
        assert statistics.histogram is not None  # choose_range has asked for it
        return statistics.histogram.rectified(self.upper) if self.support == "rectified" else statistics.histogram


ANY_VALUES = Domain()


@dataclass(frozen=True)
class Question:
    """What a method has to answer: the range of one tensor for one grid.

    lo, hi: the range observed, inside which the answer lies, [] or [C]. parameter: the method's number. exact: the
    optimum of the very quantizer that runs instead of the textbook's.
    """

    statistics: TensorStatistics
    grid: GridSpec
    domain: Domain
    lo: Tensor
    hi: Tensor
    parameter: float = 0.0
    exact: bool = False

    @property
    def is_half(self) -> bool:
        """Whether no value is negative."""
        return self.domain.support != "real"

    def inside(self, lo: Tensor, hi: Tensor) -> Range:
        """[lo, hi] cut to what was observed: beyond that there is nothing to represent."""
        return (
            torch.minimum(torch.maximum(lo, self.lo), self.hi),
            torch.maximum(torch.minimum(hi, self.hi), self.lo),
        )

    def flattened(self) -> Question:
        """With lo and hi as columns [C, 1], to compare with many ranges."""
        return replace(self, lo=self.lo.reshape(-1, 1), hi=self.hi.reshape(-1, 1))

    def parts(self) -> Iterator[tuple[Histogram, Range, Range, Tensor]]:
        """A few channels at a time: their histogram, (min, max), (lo, hi) and the mean of their |x|, each [C]."""
        histogram = self.domain.histogram(self.statistics)
        ends = [*self.domain.observed(self.statistics), self.lo, self.hi]
        if histogram.zeros.dim() == 0:
            histogram = Histogram(histogram.counts[None], histogram.zeros[None], histogram.exponent[None])
        least, most, lo, hi = (end.reshape(-1) for end in ends)
        for start in range(0, lo.numel(), CHANNELS_AT_ONCE):
            block = slice(start, start + CHANNELS_AT_ONCE)
            part = histogram.channels(block)
            yield part, (least[block], most[block]), (lo[block], hi[block]), part.mean_magnitude()

    def searched(self, values_of: Callable[[Histogram, Range], Values]) -> Range:
        """The range of least error on values_of(histogram, (min, max))."""
        found = []
        for histogram, observed, (lo, hi), magnitude in self.parts():
            largest = torch.maximum(lo.abs(), hi.abs())
            least = (LEAST_OF_MEAN * magnitude / torch.where(largest > 0, largest, 1.0)).clamp(2.0**-12, 0.5)
            found.append(search_range(values_of(histogram, observed), self.grid, lo, hi, least))
        lo, hi = (torch.cat(ends) for ends in zip(*found, strict=True))
        return lo.reshape(self.lo.shape), hi.reshape(self.lo.shape)


def minmax_range(question: Question) -> Range:
    """All that was observed, nothing clipped."""
    return question.lo, question.hi


def percentile_range(question: Question) -> Range:
    """The middle P % of the values; of a tensor without negative ones all but the highest 100 − P %.

    From the histogram, even inside its bins; zeros count, those of a ReLU too. A warning tells where an outlier has
    made the bins so wide that they don't say where the percentile is.
    """
    histogram, left_out = question.domain.histogram(question.statistics), 1 - question.parameter / 100
    low = question.lo if question.is_half else histogram.quantile(left_out / 2)
    high = histogram.quantile(1 - left_out if question.is_half else 1 - left_out / 2)
    low, high = question.inside(low, high)
    if bool(((high > low) & (high - low < FEWEST_IN_RANGE * histogram.width)).any()):
        warn_user(
            f"the range by percentile spans fewer than {FEWEST_IN_RANGE} of the histogram's {histogram.bins} bins, as "
            "the largest value lies far outside, and is uncertain by one of them: clip by std or laplace there"
        )
    return low, high


def std_range(question: Question) -> Range:
    """μ ± K·σ; after a ReLU [0, max(μ, 0) + K·σ], of what is never negative without one [0, K·√E[x² | x > 0]]."""
    location, scale = _location_and_scale("gaussian", question)
    return question.inside(*_about(location, question.parameter * scale, question))


def mse_range(question: Question) -> Range:
    """The least mean squared error on the histogram, of the very grid that will run; never more than min-max's."""
    return question.searched(lambda histogram, ends: HistogramValues(histogram, *ends))


def lp_range(question: Question) -> Range:
    """The least Σ|x − q(x)|^P on the histogram, of the very grid that will run."""
    return question.searched(lambda histogram, ends: HistogramValues(histogram, *ends, power=question.parameter))


def kl_range(question: Question) -> Range:
    """The least divergence between the histogram and what the grid leaves of it (entropy calibration).

    On 16 bins a level, as published for 8 bits: finer ones of a few values would tell little and take long.
    """
    bins = max(BINS_A_LEVEL * 2**question.grid.bits, FEWEST_BINS)
    return question.searched(lambda histogram, ends: HistogramDivergence(histogram.with_bins(bins)))


def laplace_range(question: Question) -> Range:
    """The optimum for a Laplace density: α = b·W₀(3·4^M) about μ, b = E|x − μ| (half range: M + 1), or the exact."""
    return _analytic_range("laplace", question)


def gaussian_range(question: Question) -> Range:
    """The optimum for a normal density: the root of the error's derivative, times σ, about μ (half range: M + 1)."""
    return _analytic_range("gaussian", question)


def auto_range(question: Question) -> Range:
    """The laplace or the gaussian range, per tensor or channel: the one whose density predicts its own error better.

    Predicted: the expected error of the grid over that range under the density. Measured: the same grid's error on the
    histogram. Better: the ratio of the two nearer to 1. A tie, as of a constant, goes to laplace.
    """
    ranges = {name: _analytic_range(name, question) for name in ("laplace", "gaussian")}
    measured = _measured(list(ranges.values()), question)
    laplace, gaussian = (
        _misfit(name, ranges[name], error, question) for name, error in zip(ranges, measured, strict=True)
    )
    takes_gaussian = gaussian < laplace
    lo, hi = (torch.where(takes_gaussian, *ends) for ends in zip(ranges["gaussian"], ranges["laplace"], strict=True))
    return lo, hi


CLIPPINGS: dict[str, Callable[[Question], Range]] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "std": std_range,
    "mse": mse_range,
    "lp": lp_range,
    "kl": kl_range,
    "laplace": laplace_range,
    "gaussian": gaussian_range,
    "auto": auto_range,
}


class Parameter(NamedTuple):
    """A method's number: what it is called, the value where none is given, and its rule, 0 < value ≤ most."""

    name: str
    default: float
    most: float


PARAMETERS: dict[str, Parameter] = {
    "percentile": Parameter("P", 99.99, 100.0),
    "std": Parameter("K", 3.0, float("inf")),
    "lp": Parameter("P", 2.4, 10.0),
}
WITH_EXACT = ("laplace", "gaussian", "auto")
FROM_HISTOGRAM = ("percentile", "mse", "lp", "kl", "auto")


class Method(NamedTuple):
    """A method's text, read: "lp:2.4" is ("lp", 2.4, False), "laplace:exact" is ("laplace", 0, True)."""

    name: str
    parameter: float
    exact: bool


def check_clipping(method: str) -> str:
    """The method itself. Raises InputError where it is none, or its parameter breaks the rule."""
    _parse(method)
    return method


def needs_histogram(method: str) -> bool:
    """Whether choose_range wants statistics with a histogram for it. Raises InputError where it is no method."""
    return _parse(method).name in FROM_HISTOGRAM


def choose_range(
    statistics: TensorStatistics,
    *,
    method: str,
    grid: GridSpec,
    domain: Domain = ANY_VALUES,
    across_batches: str = "max",
) -> Range:
    """The clipping range [lo, hi] for a grid, float64, each [] or [C] as the statistics are.

    method: a name in CLIPPINGS, with ":parameter" where it has one. across_batches: whether the range observed, inside
    which the answer lies, is that of all batches ("max") or the mean of each one's ("mean"). A constant gets the range
    of that constant, [c, c], from every method. Sigmoid and softmax: [0, 1], from every method.
    Raises InputError for an unknown method, where nothing was observed, for NaN or infinite values, and where the
    method needs a histogram that the statistics don't hold.
    """
    chosen = _parse(method)
    check_across_batches(across_batches)
    check_observed(statistics)
    lo, hi = domain.observed(statistics, across_batches)
    if domain.support == "unit":
        return lo, hi
    if chosen.name in FROM_HISTOGRAM and statistics.histogram is None:
        raise InputError(f"clip={method!r} needs statistics that hold a histogram; collect them with histogram=True")
    return CLIPPINGS[chosen.name](Question(statistics, grid, domain, lo, hi, chosen.parameter, chosen.exact))


def analytic_reach(method: str, bits: int, support: Support) -> tuple[str, float] | None:
    """What a range reaches over about the mean, (spread, factor) as `ops.online_fake_quantize` takes them, or None.

    None: the method reads more than a tensor's nine numbers (a histogram), seeks an exact optimum, or the range is
    known beforehand. Raises InputError where it is no method.
    """
    name, parameter, exact = _parse(method)
    if exact or name in FROM_HISTOGRAM or support == "unit":
        return None
    if name == "minmax":
        return "none", 0.0
    if name == "std":
        return "deviation", parameter
    alpha = DISTRIBUTIONS[name].optimal_alpha(bits + int(support != "real"))
    return "abs_dev" if name == "laplace" else "deviation", alpha


def check_across_batches(text: str) -> str:
    """The text again. Raises InputError unless it is one of ACROSS_BATCHES."""
    if text not in ACROSS_BATCHES:
        raise InputError(f"across_batches must be one of {', '.join(ACROSS_BATCHES)}, got {text!r}")
    return text


def _parse(method: str) -> Method:
    name, colon, text = method.partition(":") if isinstance(method, str) else ("", "", "")
    if name not in CLIPPINGS:
        close = difflib.get_close_matches(name, CLIPPINGS, n=1)
        hint = f" (did you mean {close[0] + colon + text!r}?)" if close else ""
        raise InputError(f"clip must be one of {', '.join(map(usage, CLIPPINGS))}, got {method!r}{hint}")
    default = PARAMETERS[name].default if name in PARAMETERS else 0.0
    if not colon:
        return Method(name, default, False)
    if name in PARAMETERS:
        return Method(name, _number(name, text, method), False)
    if name in WITH_EXACT and text == EXACT:
        return Method(name, default, True)
    rule = f"{name!r} or {f'{name}:{EXACT}'!r}" if name in WITH_EXACT else f"{name!r}, which has no parameter"
    raise InputError(f"clip={method!r}: write {rule}")


def _number(name: str, text: str, method: str) -> float:
    """The parameter, if it keeps its rule."""
    symbol, default, most = PARAMETERS[name]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= most or value == float("inf"):
        rule = f"a number above 0{f' and at most {most:g}' if most < float('inf') else ''}"
        raise InputError(f"clip={method!r}: {symbol} in {name}:{symbol} must be {rule}, as in {name}:{default:g}")
    return value


def usage(name: str) -> str:
    """How a method is written: percentile[:P], laplace[:exact], minmax."""
    if name in PARAMETERS:
        return f"{name}[:{PARAMETERS[name].name}]"
    return f"{name}[:{EXACT}]" if name in WITH_EXACT else name


def _analytic_range(name: str, question: Question) -> Range:
    """The textbook's range or the exact optimum, inside what was observed."""
    location, scale = _location_and_scale(name, question)
    textbook = scale * DISTRIBUTIONS[name].optimal_alpha(question.grid.bits + int(question.is_half))
    if not question.exact:
        return question.inside(*_about(location, textbook, question))
    values = _density(name, question)
    flat = question.flattened()
    centre, alpha = location.reshape(-1, 1), textbook.reshape(-1)
    lo, hi = search_alpha(values, question.grid, lambda a: flat.inside(*_about(centre, a, flat)), alpha)
    return lo.reshape(location.shape), hi.reshape(location.shape)


def _about(location: Tensor, reach: Tensor, question: Question) -> Range:
    """[μ − α, μ + α]; half range: [0, max(μ, 0) + α]."""
    if question.is_half:
        return torch.zeros_like(reach), location.clamp(min=0) + reach
    return location - reach, location + reach


def _location_and_scale(name: str, question: Question) -> Range:
    """(μ, b or σ); of a non-negative tensor without a ReLU, those of the density mirrored about zero."""
    statistics = question.statistics
    if question.domain.support == "nonnegative":
        spread = statistics.positive_mean if name == "laplace" else statistics.positive_mean_square.sqrt()
        return torch.zeros_like(spread), spread
    return statistics.mean, statistics.abs_dev if name == "laplace" else statistics.variance.sqrt()


def _density(name: str, question: Question) -> DensityValues:
    """What the analytic methods take the tensor for; half of a density where no value is negative."""
    location, scale = (values.reshape(-1) for values in _location_and_scale(name, question))
    return DensityValues(DISTRIBUTIONS[name], location, scale, question.is_half)


def _misfit(name: str, chosen: Range, measured: Tensor, question: Question) -> Tensor:
    """|log(predicted / measured)| of the grid over a range, [] or [C]; infinite where one of them is 0."""
    lo, hi = (end.reshape(-1, 1) for end in chosen)
    predicted = grid_error(_density(name, question), question.grid, lo, hi).squeeze(1)
    if question.domain.support == "nonnegative":  # its density is that of the positive values, both halves of it
        statistics = question.statistics
        predicted = 2 * predicted
        measured = measured * (statistics.count / statistics.positive_count.clamp(min=1)).reshape(-1)
    misfit = torch.where((predicted > 0) & (measured > 0), (predicted / measured).log().abs(), torch.inf)
    return misfit.reshape(chosen[0].shape)


def _measured(ranges: list[Range], question: Question) -> tuple[Tensor, ...]:
    """The mean squared error of the grids over each range on the histogram, [C] a range."""
    lo, hi = (torch.stack(ends, -1).reshape(-1, len(ranges)) for ends in zip(*ranges, strict=True))
    errors, start = [], 0
    for histogram, ends, _, _ in question.parts():
        block = slice(start, start + histogram.zeros.numel())
        errors.append(grid_error(HistogramValues(histogram, *ends), question.grid, lo[block], hi[block]))
        start = block.stop
    return torch.cat(errors).unbind(1)
