"""Widths of many tensors under several budgets at once: an integer program, solved by scipy's HiGHS.
One budget that adds up over layers is mixed_precision.py's; what a width costs is measured in calibration/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from pytorch_quantizer.errors import InputError

Array = npt.NDArray[np.float64]
TRIES = 8  # of a program whose solution exceeds a budget by the solver's tolerance
NODES = 2000  # that the solver looks at, where it hasn't proved before that nothing is better: some seconds
STOPPED = 4  # what scipy calls a solution that a limit of nodes ended
LOOSE_GAP, MORE_NODES = 0.01, 10 * NODES  # of a program of which those nodes give no solution at all
TOLERANCE = 2e-6  # of the solver, in units of a budget's largest cost, and a little more


@dataclass(frozen=True)
class Budget:
    """Σ costs <= limit. single: (tensor, cost at each width), pairs: (tensor, other, cost at each pair of widths).

    name: for the error. fixed: what is paid whatever the widths are. whole: what the limit was given as a share of,
    where it was.
    """

    name: str
    limit: float
    single: Sequence[tuple[int, Sequence[float]]] = field(default=())
    pairs: Sequence[tuple[int, int, Array]] = field(default=())
    fixed: float = 0.0
    whole: float | None = None

    def cost(self, chosen: Sequence[int]) -> float:
        """What the chosen columns cost, the fixed part included."""
        paid = sum(costs[chosen[tensor]] for tensor, costs in self.single)
        return self.fixed + paid + sum(float(costs[chosen[a], chosen[b]]) for a, b, costs in self.pairs)

    def short_of(self, least: float, why: str) -> InputError:
        """That the limit is below ``least``, and by what: in the unit it was given in, and of a share the amounts too.

        Who gives the least that is told has enough: it is rounded up.
        """
        whole = self.whole or 1.0
        needed, given = _rounded_up(least / whole), f"{self.limit / whole:.10g}"
        if self.whole is not None:
            needed, given = f"{needed} ({_rounded_up(least)})", f"{given} ({self.limit:.10g})"
        return InputError(f"{self.name} must be at least {needed}, {why}, got {given}")


def solve_widths(errors: Sequence[Sequence[float]], budgets: Sequence[Budget]) -> list[int]:
    """The column to take of each tensor's row, so that Σ errors is least and every budget is kept.

    errors: a row a tensor, inf where a width is ruled out; costs rise with the column, from 0 or more. A pair of
    tensors whose bits multiply has a variable for each pair of widths, whose sums over one are the other's choice:
    exact, and its relaxation is tight. Solved twice, the second time in units of the first solution, whose gap is then
    relative. Where NODES nodes of the search tree prove no optimum, as under bit operations of dozens of layers, the
    best that was found is taken; where they find nothing, the best that MORE_NODES do, looking no further than
    LOOSE_GAP of the optimum, or else the fewest bits.
    Raises InputError where no choice keeps a budget.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in errors]
    if any(np.isnan(row).any() or not np.isfinite(row).any() for row in rows):
        raise InputError("each tensor needs a finite error at one width or more, and none that is NaN")
    _check_feasible(rows, budgets)
    program = _Program(rows, budgets)
    largest = max(float(row[np.isfinite(row)].max()) for row in rows)
    found = [program.fewest(), program.solve(largest or 1.0)]
    least = min(map(program.error, filter(None, found)))
    if 0 < least < largest:
        found.append(program.solve(least))
    return min(filter(None, found), key=program.error)


def _check_feasible(rows: list[Array], budgets: Sequence[Budget]) -> None:
    """Raise InputError where a budget is below what it takes at the least; costs rise with the width."""
    for budget in budgets:
        least = budget.fixed + sum(min(np.asarray(c)[np.isfinite(rows[t])]) for t, c in budget.single)
        least += sum(c[np.ix_(np.isfinite(rows[a]), np.isfinite(rows[b]))].min() for a, b, c in budget.pairs)
        if budget.limit < least:
            raise budget.short_of(least, "what all take with the fewest bits")


def _rounded_up(amount: float) -> str:
    """A number with six digits or more, never less than ``amount``, but for the round-off of its last bits."""
    places = max(0, 5 - math.floor(math.log10(amount))) if amount > 0 else 0
    rounded = math.ceil(round(amount * 10**places, 6)) / 10**places
    return f"{rounded:.{places}f}".rstrip("0").rstrip(".") if places else f"{rounded:.0f}"


class _Program:
    """The variables, in one vector: for each tensor one a width, then for each pair of tensors one a pair of widths."""

    def __init__(self, rows: list[Array], budgets: Sequence[Budget]) -> None:
        self.rows, self.budgets = rows, budgets
        self.start = np.cumsum([0, *(len(row) for row in rows)])
        self.pairs = list(dict.fromkeys((a, b) for budget in budgets for a, b, _ in budget.pairs))
        sizes = [len(rows[a]) * len(rows[b]) for a, b in self.pairs]
        self.pair_start = self.start[-1] + np.cumsum([0, *sizes])
        self.count = int(self.pair_start[-1])

    def error(self, chosen: Sequence[int]) -> float:
        """Σ errors of these columns."""
        return sum(float(row[column]) for row, column in zip(self.rows, chosen, strict=True))

    def fewest(self) -> list[int]:
        """The columns of the fewest bits, which keep the budgets if any do."""
        return [int(np.flatnonzero(np.isfinite(row))[0]) for row in self.rows]

    def solve(self, unit: float) -> list[int] | None:
        """The chosen column of each tensor, errors measured in ``unit``; None where the solver found nothing.

        The solver keeps a budget to its tolerance only: where that is not enough it is asked for a little less.
        """
        slack = np.zeros(len(self.budgets))
        for _ in range(TRIES):
            chosen = self._solve_once(unit, slack)
            if chosen is None:
                return None
            over = np.array([budget.cost(chosen) > budget.limit for budget in self.budgets])
            if not over.any():
                return chosen
            slack = np.where(over, 2 * slack + TOLERANCE, slack)
        return None

    def _solve_once(self, unit: float, slack: Array) -> list[int] | None:
        values = np.concatenate(self.rows)
        allowed = np.isfinite(values)
        objective, upper = np.zeros(self.count), np.ones(self.count)
        objective[: len(values)] = np.where(allowed, values, 0.0) / unit
        upper[: len(values)] = allowed
        problem = {
            "c": objective,
            "integrality": (np.arange(self.count) < len(values)).astype(int),
            "bounds": Bounds(0, upper),
            "constraints": [*self._choices(), *self._costs(slack)],
        }
        result = milp(**problem, options={"mip_rel_gap": 0.0, "node_limit": NODES})
        if result.x is None and result.status == STOPPED:
            result = milp(**problem, options={"mip_rel_gap": LOOSE_GAP, "node_limit": MORE_NODES})
        if result.x is None:
            return None
        return [int(np.argmax(result.x[a:b])) for a, b in zip(self.start[:-1], self.start[1:], strict=True)]

    def _choices(self) -> list[LinearConstraint]:
        """Each tensor takes one width; of a pair's variables those of one width sum to whether that is taken."""
        one = [([*range(a, b)], [1.0] * (b - a)) for a, b in zip(self.start[:-1], self.start[1:], strict=True)]
        constraints = [LinearConstraint(self._matrix(one), 1, 1)]
        ties = []
        for (a, b), first in zip(self.pairs, self.pair_start[:-1], strict=True):
            places = first + np.arange(len(self.rows[a]) * len(self.rows[b])).reshape(len(self.rows[a]), -1)
            ties += [([*places[i], self.start[a] + i], [1.0] * places.shape[1] + [-1.0]) for i in range(len(places))]
            ties += [([*places[:, j], self.start[b] + j], [1.0] * len(places) + [-1.0]) for j in range(places.shape[1])]
        return [*constraints, *([LinearConstraint(self._matrix(ties), 0, 0)] if ties else [])]

    def _costs(self, slack: Array) -> list[LinearConstraint]:
        """The budgets, each in units of its largest cost, less ``slack`` of these."""
        rows, room = [], []
        for budget, less in zip(self.budgets, slack, strict=True):
            places: list[int] = []
            costs: list[float] = []
            for tensor, given in budget.single:
                places += range(self.start[tensor], self.start[tensor + 1])
                costs += given
            for a, b, table in budget.pairs:
                first = int(self.pair_start[self.pairs.index((a, b))])
                places += range(first, first + table.size)
                costs += table.ravel().tolist()
            unit = max(costs, default=0.0) or 1.0
            rows.append((places, [cost / unit for cost in costs]))
            room.append((budget.limit - budget.fixed) / unit - less)
        return [LinearConstraint(self._matrix(rows), -np.inf, room)] if rows else []

    def _matrix(self, rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> coo_array:
        at = np.concatenate([np.full(len(places), index) for index, (places, _) in enumerate(rows)])
        places = np.concatenate([np.asarray(places, dtype=np.int64) for places, _ in rows])
        values = np.concatenate([np.asarray(values, dtype=np.float64) for _, values in rows])
        return coo_array((values, (at, places)), shape=(len(rows), self.count))
