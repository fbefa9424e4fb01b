"""Which layer gets which width, under one budget: tables of errors and costs in, the column to take in each row out.
What a width costs a layer is measured or predicted elsewhere; channels that share one tensor are bit_allocation.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

BEAM = 2**17  # partial choices that the search carries from layer to layer
ROUND_OFF = 1e-12  # a budget is a product of floats; nobody is refused a bit for its last digit


def choose_widths(
    errors: Tensor | Sequence[Sequence[float]], costs: Tensor | Sequence[Sequence[float]], budget: float
) -> list[int]:
    """Mixed precision: the column to take in each row, so that Σ errors is least while Σ costs <= budget.

    errors, costs: [L, W], what each layer would lose and pay at each candidate width; an error of inf rules one out.
    Exact to rounding (1e-12 of the error): dynamic programming over the undominated sums of layers, bounded below by
    the linear relaxation (the convex hull of each layer's table) and above by the greedy on that hull. Where more than
    BEAM sums survive at a layer, those with the lowest bounds go on, and the result is the best found: never worse than
    the greedy. Raises InputError for tables that don't fit, NaN, and a budget below the cheapest choice.
    """
    error, cost = _checked_tables(errors, costs)
    cheapest = float(cost.min(axis=1).sum())
    if not cheapest <= budget:
        raise InputError(
            f"the budget must be at least {cheapest:g}, the cheapest choice of every layer, got {budget:g}"
        )
    return [int(column) for column in search_widths(error, cost, float(budget))]


def search_widths(error: Array, cost: Array, budget: float) -> Whole:
    """choose_widths without its checks: tables [L, W] of numbers, inf in both where a width is ruled out."""
    return _Search(error, cost, budget).best()


def _checked_tables(errors: object, costs: object) -> tuple[Array, Array]:
    error, cost = (torch.as_tensor(table, dtype=torch.float64).cpu().numpy() for table in (errors, costs))
    if error.ndim != 2 or error.size == 0 or error.shape != cost.shape:
        raise InputError(f"errors and costs must share a shape [L, W], got {list(error.shape)} and {list(cost.shape)}")
    if not np.all((error >= 0) & (cost >= 0)):
        raise InputError("errors and costs must be numbers of 0 or more; a table holds NaN or a negative number")
    cost = np.where(np.isinf(error), np.inf, cost)
    if np.any(np.isinf(cost).all(axis=1)):
        raise InputError(
            f"layer {int(np.argmax(np.isinf(cost).all(axis=1)))} has no width with a finite error and cost"
        )
    return np.where(np.isinf(cost), np.inf, error), cost


class _Search:
    """choose_widths' dynamic programme over checked tables [L, W]; the budget covers each row's cheapest column."""

    def __init__(self, error: Array, cost: Array, budget: float) -> None:
        self.error, self.cost, self.rows = error, cost, np.arange(len(error))
        self.start = np.array([_cheapest(e, c) for e, c in zip(error, cost, strict=True)])
        self.base_cost = cost[self.rows, self.start]
        self.slack = budget - float(self.base_cost.sum())
        steps = sorted((step for row in range(len(error)) for step in self._hull(row)), key=lambda s: (-s[0], s[1]))
        self.row = np.array([step[1] for step in steps], dtype=np.int64)
        self.column = np.array([step[2] for step in steps], dtype=np.int64)
        self.price = np.array([step[3] for step in steps])
        self.gain = np.array([step[4] for step in steps])

    def _hull(self, row: int) -> list[tuple[float, int, int, float, float]]:
        """The steps up the lower convex hull of a row's (cost, error): (gain per cost, row, column, cost, gain)."""
        steps: list[tuple[float, int, int, float, float]] = []
        at = int(self.start[row])
        while True:
            price, gain = self.cost[row] - self.cost[row, at], self.error[row, at] - self.error[row]
            better = np.flatnonzero((gain > 0) & np.isfinite(price))
            if not len(better):
                return steps
            density = gain[better] / price[better]
            steepest = better[density == density.max()]
            to = int(steepest[np.argmax(gain[steepest])])
            steps.append((float(density.max()), row, to, float(price[to]), float(gain[to])))
            at = to

    def best(self) -> Whole:
        """The chosen columns [L]."""
        chosen = self._greedy()
        limit = float(self.error[self.rows, chosen].sum()) * (1 - ROUND_OFF)
        spent, lost = np.zeros(1), np.zeros(1)
        trail: list[tuple[Whole, Whole]] = []
        for row in range(len(self.error)):
            spent, lost, parent, column = self._extend(row, spent, lost, limit)
            trail.append((parent, column))
            if not len(spent):
                return chosen
        return _walk_back(trail, int(np.lexsort((spent, lost))[0]))

    def _greedy(self) -> Whole:
        """Steps of all hulls, steepest first, each taken where it still fits and the row's last one was taken."""
        columns, stuck, left = self.start.copy(), np.zeros(len(self.error), dtype=bool), self.slack
        for row, column, price in zip(self.row, self.column, self.price, strict=True):
            stuck[row] |= price > left
            if not stuck[row]:
                columns[row], left = column, left - price
        return columns

    def _extend(self, row: int, spent: Array, lost: Array, limit: float) -> tuple[Array, Array, Whole, Whole]:
        """Every kept sum with every column of ``row``: those that fit, may yet stay below ``limit``, are undominated.

        spent: cost above the cheapest choice, lost: error, of each sum. Also returned: each one's parent and column.
        """
        columns = np.flatnonzero(np.isfinite(self.cost[row]))
        spent = (spent[:, None] + (self.cost[row, columns] - self.base_cost[row])).ravel()
        lost = (lost[:, None] + self.error[row, columns]).ravel()
        bound = lost + self._least_later(row, self.slack - spent)
        kept = np.flatnonzero((spent <= self.slack) & (bound < limit))
        kept = kept[np.lexsort((lost[kept], spent[kept]))]
        least = np.minimum.accumulate(lost[kept])
        kept = kept[np.concatenate(([True], least[1:] < least[:-1]))[: len(kept)]]
        if len(kept) > BEAM:
            kept = np.sort(kept[np.argsort(bound[kept], kind="stable")[:BEAM]])
        return spent[kept], lost[kept], kept // len(columns), columns[kept % len(columns)]

    def _least_later(self, row: int, left: Array) -> Array:
        """The linear relaxation: no choice for the rows after ``row`` that spends ``left`` has a smaller error."""
        later = self.row > row
        price = np.concatenate(([0.0], np.cumsum(self.price[later])))
        floor = np.where(np.isfinite(self.cost), self.error, np.inf)[row + 1 :].min(axis=1).sum()
        # Summed from the far end: a difference of large sums would lose the small errors of many bits.
        missed = np.concatenate((np.cumsum(self.gain[later][::-1])[::-1], [0.0]))
        return np.interp(left, price, floor + missed)


def _walk_back(trail: list[tuple[Whole, Whole]], at: int) -> Whole:
    columns = []
    for parent, column in reversed(trail):
        columns.append(column[at])
        at = int(parent[at])
    return np.array(columns[::-1], dtype=np.int64)


def _cheapest(error: Array, cost: Array) -> int:
    """The column of least cost, of those the one of least error."""
    return int(np.lexsort((error, cost))[0])
