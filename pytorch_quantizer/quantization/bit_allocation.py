"""Which channel gets how many bits, under a quota that all of a tensor share. Numbers in, whole bits out.
What a channel does with its bits is qtypes/allocated_quantizer.py's business; layers, mixed_precision.py's.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS
from pytorch_quantizer.quantization.mixed_precision import ROUND_OFF, Array, Whole, search_widths
from pytorch_quantizer.quantization.qparams import MAX_BITS

Quota = Literal["bits", "bins"]

QUOTAS = ("bits", "bins")
MAX_LEVELS = 2**MAX_BITS


def allocate_bits(
    scales: Tensor,
    target: float,
    *,
    distribution: str = "laplace",
    quota: Quota = "bits",
    minimum: int = 0,
    maximum: int = 8,
    costs: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The whole bits M_i, int64 [C], that meet the quota and minimise Σ w_i·a_i²·D(M_i) (``predicted_error``).

    scales: a_i >= 0, [C], b or σ of each channel. target: t, bits per value; minimum <= M_i <= maximum <= 16.
    quota "bits": ΣM_i = C·t exactly, by the largest error reductions; of equal ones the lower bit comes first, then the
    lower index. "bins": Σ2^M_i <= C·2^t, by pairing off reductions whose prices are powers of two. Both are optimal,
    because D is convex in M (0 bits included: D(0) is the variance). With bins, a scale of 0 buys nothing.
    costs: n_i > 0, [C], values that take M_i bits each (bits per layer): then Σn_i·M_i <= t·Σn_i, by choose_widths.
    weights: w_i >= 0, [C]; 1 where left out, or n_i where there are costs, so that the error is that of all values.
    Raises InputError for scales that are no scales, and for a quota that can't be met.
    """
    scale = _checked_scales(scales)
    _check_limits(target, quota, minimum, maximum)
    cost = _positive("costs", costs, scale)
    weight = cost if weights is None else _positive("weights", weights, scale, strict=False)
    errors = _errors(scale, _unit_errors(distribution, maximum), weight)[:, minimum:]
    if costs is not None:
        bits = minimum + _allocate_costly(errors, cost, target, quota, minimum)
    elif quota == "bins":
        bits = minimum + _allocate_bins(-np.diff(errors), target, minimum)
    else:
        bits = minimum + _allocate_sum(-np.diff(errors), _whole_total(len(scale), target) - len(scale) * minimum)
    return torch.from_numpy(bits).to(scales.device)


def predicted_error(
    scales: Tensor, bits: Tensor, distribution: str = "laplace", *, weights: Tensor | None = None
) -> float:
    """Σ w_i·a_i²·D(M_i), D the textbook error at its optimal α, D(0) the variance. scales, bits, weights: [C]."""
    scale = _checked_scales(scales)
    chosen = bits.detach().cpu().numpy().astype(np.int64)
    if chosen.shape != scale.shape or chosen.min() < 0 or chosen.max() > MAX_BITS:
        raise InputError(f"bits must be one number from 0 to {MAX_BITS} for each of {len(scale)} scales, got {bits}")
    unit = _unit_errors(distribution, int(chosen.max()))
    return float(np.sum(_positive("weights", weights, scale, strict=False) * np.square(scale) * unit[chosen]))


def continuous_bits(scales: Tensor, target: float, quota: Quota = "bits") -> Tensor:
    """The optimum over real numbers, float64 [C], where nothing is clamped.

    "bits": t + log2 a_i − mean log2 a. "bins": log2(C·2^t·a_i^(2/3)/Σa^(2/3)), Banner et al. (2019), eq. 11; its mean
    comes out below t. Raises InputError for a scale of 0, whose logarithm there is none.
    """
    scale = _checked_scales(scales)
    _check_limits(target, quota, 0, MAX_BITS)
    if not scale.all():
        raise InputError(f"the continuous form needs positive scales, got 0 for channel {int(np.argmin(scale))}")
    return torch.from_numpy(_continuous(scale, target, quota)).to(scales.device)


def rounded_bits(scales: Tensor, target: float, quota: Quota = "bits", *, minimum: int = 0, maximum: int = 8) -> Tensor:
    """The baseline to beat, int64 [C]: round the continuous form, clamp, then repair the quota a bit at a time.

    Bits are given to (quota "bits") or taken from the channels that rounding treated worst (best), lower index first.
    """
    scale = _checked_scales(scales)
    _check_limits(target, quota, minimum, maximum)
    positive = np.maximum(scale, max(float(scale.max()), 1.0) * 2.0**-100)  # a logarithm for the zeros, far below
    wanted = _continuous(positive, target, quota)
    bits = np.clip(np.rint(wanted), minimum, maximum).astype(np.int64)
    limit = _whole_total(len(scale), target) if quota == "bits" else _whole_bins(len(scale), target)
    while (spent := int(bits.sum() if quota == "bits" else np.exp2(bits).sum())) > limit:
        bits[np.argmax(np.where(bits > minimum, bits - wanted, -np.inf))] -= 1
    for _ in range(limit - spent if quota == "bits" else 0):
        bits[np.argmax(np.where(bits < maximum, wanted - bits, -np.inf))] += 1
    return torch.from_numpy(bits).to(scales.device)


def midtread_levels(scales: Tensor, target: float, *, odd: bool = True, maximum: int = MAX_LEVELS - 1) -> Tensor:
    """How many levels each channel's mid-tread quantizer gets, int64 [C]: ΣB_i <= C·2^t, minimising Σa_i²/B_i².

    Its continuous form is C·2^t·a_i^(2/3)/Σa^(2/3); B need not be a power of two. odd: zero and as many levels on
    either side of it; otherwise any whole number (zero at one end, after a ReLU). 1 <= B_i <= maximum; a scale of 0
    gets one level. Of equal reductions the lower index comes first. The quota is met to within one step of one channel.
    Raises InputError for scales that are no scales, and a target outside 0 to 16.
    """
    scale = _checked_scales(scales)
    _check_limits(target, "bins", 0, MAX_BITS)
    if maximum < 1 or maximum > MAX_LEVELS:
        raise InputError(f"maximum must be between 1 and {MAX_LEVELS} levels, got {maximum}")
    step, budget = 1 + int(odd), _whole_bins(len(scale), target)
    power = np.square(_normalised(scale))
    wanted = _continuous_levels(np.cbrt(power), budget, maximum)
    levels = 1 + step * np.floor((wanted - 1) / step).astype(np.int64)
    return torch.from_numpy(_settle(power, levels, step, budget, maximum)).to(scales.device)


# --- checks ---------------------------------------------------------------------------------------------------------


def _checked_scales(scales: Tensor) -> Array:
    if scales.dim() != 1 or scales.numel() == 0:
        raise InputError(f"scales must be [C], one for each of one channel or more, got shape {list(scales.shape)}")
    values = scales.detach().cpu().numpy().astype(np.float64)
    bad = np.flatnonzero(~((values >= 0) & np.isfinite(values)))
    if len(bad):
        raise InputError(f"scales must be finite and 0 or more, got {values[bad[0]]:g} for channel {bad[0]}")
    return values


def _positive(name: str, given: Tensor | None, scale: Array, *, strict: bool = True) -> Array:
    """Costs or weights as an array [C]; ones where none are given."""
    if given is None:
        return np.ones_like(scale)
    values = given.detach().cpu().numpy().astype(np.float64)
    if values.shape != scale.shape:
        raise InputError(f"{name} must have the scales' shape {list(scale.shape)}, got {list(values.shape)}")
    if not np.all(np.isfinite(values) & ((values > 0) if strict else (values >= 0))):
        raise InputError(f"{name} must be finite and {'above 0' if strict else '0 or more'}, got {values.min():g}")
    return values


def _check_limits(target: float, quota: str, minimum: int, maximum: int) -> None:
    if quota not in QUOTAS:
        raise InputError(f"quota must be one of {', '.join(QUOTAS)}, got {quota!r}")
    for name, value in (("minimum", minimum), ("maximum", maximum)):
        if not isinstance(value, Integral):
            raise InputError(f"{name} must be a whole number of bits, got {value!r}")
    if not isinstance(target, Real):
        raise InputError(f"target must be a number of bits per value, got {target!r}")
    if not 0 <= minimum <= maximum <= MAX_BITS:
        raise InputError(f"0 <= minimum <= maximum <= {MAX_BITS} must hold, got {minimum} and {maximum}")
    if not minimum <= target <= maximum:
        raise InputError(
            f"a quota of {target:g} bits per channel can't be met by channels of {minimum} to {maximum} bits"
        )


def _whole_total(channels: int, target: float) -> int:
    """C·t. Raises InputError where that is no whole number: no whole bits would add up to it."""
    total = round(channels * target)
    if not math.isclose(total, channels * target, rel_tol=ROUND_OFF * 1000, abs_tol=1e-9):
        raise InputError(
            f"{channels} channels can't have {target:g} bits on average: the quota needs a whole number of bits, "
            f"not {channels * target:g}; {total / channels:g} is the nearest target"
        )
    return total


def _whole_bins(channels: int, target: float) -> int:
    """⌊C·2^t⌋."""
    return math.floor(channels * 2.0**target * (1 + ROUND_OFF))


# --- what bits are worth --------------------------------------------------------------------------------------------


def _unit_errors(distribution: str, maximum: int) -> Array:
    """D(0) … D(maximum) at scale 1."""
    if distribution not in DISTRIBUTIONS:
        raise InputError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    return np.array([DISTRIBUTIONS[distribution].minimum_mse(bits) for bits in range(maximum + 1)])


def _errors(scale: Array, unit: Array, weight: Array) -> Array:
    """[C, M + 1], up to a common power of two, so that no scale is too small or too large to square."""
    return (_normalised(weight) * np.square(_normalised(scale)))[:, None] * unit


def _normalised(scale: Array) -> Array:
    """Divided by a power of two, exactly, so that the largest is in [0.5, 1)."""
    return np.ldexp(scale, -np.frexp(scale.max())[1])


def _continuous(scale: Array, target: float, quota: str) -> Array:
    logarithm = np.log2(scale)
    if quota == "bits":
        return target + (logarithm - logarithm.mean())
    share = 2 / 3 * (logarithm - logarithm.max())
    return target + math.log2(len(scale)) + share - math.log2(np.exp2(share).sum())


# --- channels: equal prices -----------------------------------------------------------------------------------------


def _allocate_sum(gains: Array, total: int) -> Whole:
    """The ``total`` largest gains, bit by bit: [C, M] → how many of each channel. Gains fall along a row."""
    channels = gains.shape[0]
    chosen = np.argsort(-gains.T.ravel(), kind="stable")[:total]
    return np.bincount(chosen % channels, minlength=channels)


def _allocate_bins(gains: Array, target: float, minimum: int) -> Whole:
    """The gains of greatest sum whose prices 2^minimum, 2^(minimum+1), … fit in ⌊C·2^t⌋ − C·2^minimum.

    A knapsack whose prices divide one another: where the budget is odd in the price at hand, one item of that price is
    free to take; all others are as good as items of the next price, two by two in falling order. Gains fall along a
    row, so what is taken of a row is its beginning, or as good as that.
    """
    channels, widths = gains.shape
    budget = (_whole_bins(channels, target) - channels * 2**minimum) // 2**minimum
    bits = np.zeros(channels, dtype=np.int64)
    channel, owner, worth = (
        bits[:0],
        bits[:0],
        np.zeros(0),
    )  # of each untaken gain its channel and bundle; of each bundle
    for width in range(widths):
        fresh = np.flatnonzero(gains[:, width] > 0)
        channel, owner = np.concatenate((fresh, channel)), np.concatenate((np.arange(len(fresh)), owner + len(fresh)))
        worth = np.concatenate((gains[fresh, width], worth))
        order = np.argsort(-worth, kind="stable")
        taken = min(budget if width == widths - 1 else budget % 2, len(order))
        rank = np.argsort(order)[owner] - taken
        bits += np.bincount(channel[rank < 0], minlength=channels)
        channel, owner = channel[rank >= 0], rank[rank >= 0] // 2
        worth = np.add.reduceat(np.append(worth[order[taken:]], 0.0), np.arange(0, len(order) - taken, 2))
        budget //= 2
    return bits


def _continuous_levels(share: Array, budget: int, maximum: int) -> Array:
    """λ·share, clamped to [1, maximum], with the λ >= 1 that spends the budget, where one does."""

    def overspent(log_multiplier: float) -> float:
        return float(np.clip(np.exp2(log_multiplier) * share, 1, maximum).sum()) - budget

    largest = math.log2(maximum / share[share > 0].min()) if share.any() else 0.0
    if overspent(largest) > 0 > overspent(0.0):
        largest = float(brentq(overspent, 0.0, largest))
    return np.clip(np.exp2(largest) * share, 1, maximum)


def _settle(power: Array, levels: Whole, step: int, budget: int, maximum: int) -> Whole:
    """Move ``levels`` a step at a time to the least Σ a²/B². It is convex: once no exchange gains, nothing does."""

    def worth(lower: Whole) -> Array:
        return power / np.square(lower, dtype=np.float64) - power / np.square(lower + step, dtype=np.float64)

    while True:
        gain = np.where(levels + step <= maximum, worth(levels), 0.0)
        loss = np.where(levels > 1, worth(np.maximum(levels - step, 1)), np.inf)
        up, down = int(np.argmax(gain)), len(loss) - 1 - int(np.argmin(loss[::-1]))
        room = budget - int(levels.sum())
        if room >= step and gain[up] > 0:
            levels[up] += step
        elif room < 0 or gain[up] > loss[down]:
            levels[down] -= step
        else:
            return levels


def _allocate_costly(errors: Array, costs: Array, target: float, quota: str, minimum: int) -> Whole:
    if quota != "bits":
        raise InputError(f"costs go with quota='bits', got quota={quota!r}")
    widths = np.arange(minimum, minimum + errors.shape[1])
    budget = target * float(costs.sum()) * (1 + ROUND_OFF)
    return search_widths(errors, costs[:, None] * widths, budget)
