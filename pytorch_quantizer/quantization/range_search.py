"""The clipping range whose grid errs least on given values: searches over geometric ladders, many channels at once.
What the error is belongs to expected_error.py; which search a method asks for to clipping.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pytorch_quantizer.quantization.distributions import Distribution
from pytorch_quantizer.quantization.expected_error import DensityValues, Grids, Values
from pytorch_quantizer.quantization.qparams import GridSpec

Range = tuple[Tensor, Tensor]

RUNGS = 40  # of the first ladder
FINER = 8  # a later ladder's steps are so many times finer; it spans one step of the last one to either side
EXACT_BITS = 8  # above these the textbook α is as good
EXACT_SPAN = (0.25, 2.5)  # of the textbook α, in which the exact one is sought; it is 0.7 of it at 1 bit


def search_range(values: Values, grid: GridSpec, lo: Tensor, hi: Tensor, least: Tensor) -> Range:
    """The range inside [lo, hi] whose grid has the least error on ``values``, each float64 [C].

    least: the smallest share of [lo, hi] that is tried, [C]. Both ends first shrink together; where the grid is affine
    and zero lies inside, they then move in turn. The first trial is [lo, hi] itself, and a trial replaces another only
    where its error is lower, so the result is never worse. Raises InputError where the grid can't hold the range.
    """
    low_end, high_end = lo.clamp(max=0), hi.clamp(min=0)  # as every grid holds zero

    def error(low: Tensor, high: Tensor) -> Tensor:
        """Of the ranges that take these shares of either end, [C, K]."""
        return grid_error(values, grid, low_end[:, None] * low, high_end[:, None] * high)

    trials = ladder(least, torch.ones_like(least), RUNGS)
    both = least_ratio(lambda ratios: error(ratios, ratios), trials, rounds=2)
    low, high = both, both
    if not grid.symmetric and bool(torch.any((lo < 0) & (hi > 0))):
        for nearby in (False, True):
            high = _moved(partial(error, low[:, None]), high, trials, nearby)
            low = _moved(partial(_swapped, error, high[:, None]), low, trials, nearby)
    low, high = low_end * low, high_end * high
    return torch.where(lo > 0, torch.minimum(lo, high), low), torch.where(hi < 0, torch.maximum(hi, low), high)


def _swapped(error: Callable[[Tensor, Tensor], Tensor], high: Tensor, low: Tensor) -> Tensor:
    return error(low, high)


def search_alpha(values: Values, grid: GridSpec, range_of: Callable[[Tensor], Range], textbook: Tensor) -> Range:
    """The range range_of(α) whose grid has the least error on ``values``, α near the textbook's [C]; each [C].

    range_of takes α [C, K] and returns (lo, hi), each [C, K]. Above 8 bits the textbook α itself: for a density about
    zero no α is better by a share of 1e-6 then. Never worse than the textbook's.
    """
    alpha = textbook
    if grid.bits <= EXACT_BITS:
        least, most = (torch.full_like(textbook, share) for share in EXACT_SPAN)
        trials = torch.cat([torch.ones_like(textbook)[:, None], ladder(least, most, RUNGS)], 1)
        best = least_ratio(
            lambda r: grid_error(values, grid, *range_of(textbook[:, None] * r)), trials, rounds=3, most=most
        )
        alpha = textbook * best
    low, high = range_of(alpha[:, None])
    return low[:, 0], high[:, 0]


def exact_alpha(distribution: Distribution, grid: GridSpec, *, rectified: bool = False) -> float:
    """α at unit scale whose grid over [−α, α] errs least on the density; rectified: over [0, α], on max(x, 0).

    The textbook's for more than EXACT_BITS bits. Raises InputError where the grid can't hold the range.
    """
    one = torch.ones(1, dtype=torch.float64)
    values = DensityValues(distribution, torch.zeros_like(one), one, rectified)
    textbook = distribution.optimal_alpha(grid.bits + int(rectified)) * one
    return search_alpha(values, grid, lambda alpha: (-alpha * (not rectified), alpha), textbook)[1].item()


def grid_error(values: Values, grid: GridSpec, lo: Tensor, hi: Tensor) -> Tensor:
    """The error of the grid over each range [lo, hi], [C, K] each."""
    lo, hi = torch.broadcast_tensors(lo, hi)
    return values.error(Grids.of(grid.over(lo.reshape(-1), hi.reshape(-1), 0), lo.shape[0]))


def ladder(least: Tensor, most: Tensor, rungs: int) -> Tensor:
    """Geometric from most down to least, [C] each → [C, rungs]."""
    share = torch.linspace(0, 1, rungs, dtype=torch.float64, device=least.device)
    return most[:, None] * (least / most)[:, None] ** share


def least_ratio(
    error: Callable[[Tensor], Tensor], trials: Tensor, *, rounds: int, most: Tensor | None = None
) -> Tensor:
    """The ratio [C] of least error: of the trials [C, K], then of ever finer ladders about the best.

    error: ratios [C, K] → errors [C, K]. most: the largest ratio allowed, [C], 1 unless given.
    """
    most = torch.ones_like(trials[:, 0]) if most is None else most
    best = _first_least(error(trials), trials)
    step = trials[:, -2] / trials[:, -1]
    for _ in range(rounds):
        best = _first_least(*_near(error, best, step, most))
        step = step ** (1 / FINER)
    return best


def _near(error: Callable[[Tensor], Tensor], best: Tensor, step: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """(errors, trials) of the best and its neighbours within a step, [C, 2·FINER + 1]."""
    places = torch.arange(-FINER, FINER + 1, dtype=torch.float64, device=best.device)
    places = torch.cat([places.new_zeros(1), places[places != 0]]) / FINER  # the best first: it wins a tie
    trials = torch.minimum(best[:, None] * step[:, None] ** places, most[:, None])
    return error(trials), trials


def _moved(error: Callable[[Tensor], Tensor], now: Tensor, trials: Tensor, nearby: bool) -> Tensor:
    """One end's better share [C], with the other held: over the whole ladder, or within a fraction of its step."""
    if not nearby:
        return least_ratio(error, torch.cat([now[:, None], trials], 1), rounds=2)
    step = (trials[:, -2] / trials[:, -1]) ** (1 / FINER)
    for _ in range(2):
        now = _first_least(*_near(error, now, step, torch.ones_like(now)))
        step = step ** (1 / FINER)
    return now


def _first_least(errors: Tensor, trials: Tensor) -> Tensor:
    """The first trial whose error no other's is below, [C]; the same on every device."""
    places = torch.arange(errors.shape[1], device=errors.device)
    first = torch.where(errors == errors.amin(1, keepdim=True), places, errors.shape[1]).amin(1, keepdim=True)
    return trials.gather(1, first.clamp(max=errors.shape[1] - 1)).squeeze(1)
