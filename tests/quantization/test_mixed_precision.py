"""Mixed precision's search equals exhaustive search and an integer programme, and keeps to its budget."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from pytorch_quantizer import InputError
from pytorch_quantizer.quantization import mixed_precision
from pytorch_quantizer.quantization.mixed_precision import choose_widths


class TestAgainstExhaustiveSearch:
    @settings(max_examples=150, deadline=None)
    @given(data=st.data(), layers=st.integers(1, 5), widths=st.integers(1, 4))
    def test_widths(self, data, layers, widths):
        """Any tables: neither monotone nor convex, with ties, zeros and widths ruled out."""
        error = st.one_of(st.integers(0, 20).map(float), st.floats(0, 100), st.just(math.inf))
        errors = [data.draw(st.lists(error, min_size=widths, max_size=widths)) for _ in range(layers)]
        costs = [data.draw(st.lists(st.integers(0, 30), min_size=widths, max_size=widths)) for _ in range(layers)]
        assume(all(min(row) < math.inf for row in errors))

        def total(table, columns):
            return sum(row[column] for row, column in zip(table, columns, strict=True))

        possible = [c for c in itertools.product(range(widths), repeat=layers) if total(errors, c) < math.inf]
        budget = data.draw(st.integers(min(total(costs, c) for c in possible), 40 * layers))
        best = min(total(errors, c) for c in possible if total(costs, c) <= budget)
        chosen = choose_widths(errors, costs, budget)
        assert total(costs, chosen) <= budget
        assert total(errors, chosen) <= best * (1 + 1e-11)

    def test_a_budget_may_be_spent_to_the_last(self):
        """The steepest first step, 10 for 3, leaves a bit over; 6 + 6 for 2 + 2 is all of it, and better."""
        assert choose_widths([[10, 0], [6, 0], [6, 0]], [[0, 3], [0, 2], [0, 2]], 4) == [0, 1, 1]


class TestLargerInstances:
    """Where exhaustive search can't go, an integer programme and the linear bound can."""

    @staticmethod
    def layers(count, seed):
        g = np.random.default_rng(seed)
        values = g.integers(1, 64, count) * g.integers(1, 64, count) * g.choice([1, 9], count)
        errors = [
            [n * a * a * 4.0**-m for m in range(2, 9)] for n, a in zip(values, g.lognormal(size=count), strict=True)
        ]
        return np.array(errors), values[:, None] * np.arange(2.0, 9.0), values

    @pytest.mark.parametrize("seed", range(4))
    def test_widths_equal_an_integer_programme(self, seed):
        errors, costs, values = self.layers(25, seed)
        errors *= 1e6 / errors.sum()  # the solver's tolerance is absolute
        budget = 3.7 * values.sum()
        one_each = np.kron(np.eye(25), np.ones(7))
        found = milp(
            errors.ravel(),
            integrality=np.ones(errors.size),
            bounds=(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs.reshape(1, -1), ub=budget)],
            options={"mip_rel_gap": 0},
        )
        chosen = choose_widths(torch.from_numpy(errors), torch.from_numpy(costs), budget)
        rows = np.arange(25)
        assert costs[rows, chosen].sum() <= budget
        assert errors[rows, chosen].sum() == pytest.approx(found.fun, rel=1e-6)

    def test_widths_are_never_worse_than_the_greedy_when_sums_are_dropped(self, monkeypatch):
        errors, costs, values = self.layers(60, 7)
        budget, rows = 3.1 * values.sum(), np.arange(60)
        exact = errors[rows, choose_widths(torch.from_numpy(errors), torch.from_numpy(costs), budget)].sum()
        greedy = errors[rows, mixed_precision._Search(errors, costs, budget)._greedy()].sum()
        assert exact < greedy
        monkeypatch.setattr(mixed_precision, "BEAM", 3)
        chosen = choose_widths(torch.from_numpy(errors), torch.from_numpy(costs), budget)
        assert costs[rows, chosen].sum() <= budget
        assert exact <= errors[rows, chosen].sum() <= greedy


@pytest.mark.parametrize(
    ("errors", "costs", "budget", "message"),
    [
        ([[1.0, 0.0]], [[1.0, 2.0]], 0.5, "the budget must be at least 1, the cheapest choice .*, got 0.5"),
        ([[1.0, 0.0]], [[1.0, 2.0]], math.nan, "the budget must be at least 1"),
        ([[1.0, 0.0]], [[1.0]], 3, r"must share a shape \[L, W\], got \[1, 2\] and \[1, 1\]"),
        ([], [], 3, r"must share a shape \[L, W\]"),
        ([[1.0, math.nan]], [[1.0, 2.0]], 3, "holds NaN or a negative number"),
        ([[1.0, 0.0]], [[-1.0, 2.0]], 3, "holds NaN or a negative number"),
        ([[0.0, 1.0], [math.inf, math.inf]], [[1.0, 2.0]] * 2, 9, "layer 1 has no width with a finite error"),
    ],
)
def test_bad_tables(errors, costs, budget, message):
    with pytest.raises(InputError, match=message):
        choose_widths(errors, costs, budget)
