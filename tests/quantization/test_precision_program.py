"""The integer program against every choice there is, and budgets that can't be kept."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_quantizer import InputError
from pytorch_quantizer.quantization import precision_program
from pytorch_quantizer.quantization.precision_program import Budget, solve_widths

WIDTHS = np.array([2, 3, 4, 6, 8])


def exhaustive(errors, budgets):
    """The least error of all choices that keep the budgets."""
    choices = product(range(len(WIDTHS)), repeat=len(errors))
    fitting = [c for c in choices if all(budget.cost(c) <= budget.limit for budget in budgets)]
    return min(total(errors, choice) for choice in fitting)


def total(errors, choice):
    return sum(row[column] for row, column in zip(errors, choice, strict=True))


def problem(seed, tensors=5, share=0.4):
    """Errors over six orders of magnitude; bytes of all, and products of neighbours' bits."""
    draw = np.random.default_rng(seed)
    errors = [(10.0 ** draw.uniform(-3, 2) * 4.0 ** -WIDTHS.astype(float)).tolist() for _ in range(tensors)]
    sizes = draw.integers(1, 50, tensors)
    single = [(place, (size * WIDTHS).astype(float).tolist()) for place, size in enumerate(sizes)]
    counts = draw.integers(1, 9, tensors - 1)
    pairs = [(place, place + 1, count * np.outer(WIDTHS, WIDTHS)) for place, count in enumerate(counts)]
    limits = [share * 8 * sizes.sum(), share * 64 * counts.sum()]
    return errors, [Budget("bytes", limits[0] + 70.0, single, fixed=70.0), Budget("operations", limits[1], pairs=pairs)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.26, 0.9), used=st.sampled_from([(0,), (1,), (0, 1)]))
def test_is_the_best_of_all_choices(seed, share, used):
    errors, budgets = problem(seed, share=share)
    budgets = [budgets[index] for index in used]
    chosen = solve_widths(errors, budgets)
    assert all(budget.cost(chosen) <= budget.limit for budget in budgets)
    assert total(errors, chosen) == pytest.approx(exhaustive(errors, budgets), rel=1e-5)


def test_errors_far_below_the_largest_still_count():
    """The 8-bit errors are a millionth of the 2-bit ones: the solver's absolute gap must not swallow them."""
    errors = [[1e3, 1e-9, 9e-10], [1e3, 2e-9, 5e-10]]
    single = [(0, [1.0, 2.0, 3.0]), (1, [1.0, 2.0, 3.0])]
    assert solve_widths(errors, [Budget("bytes", 5.0, single)]) == [1, 2]


@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_a_budget_met_exactly_is_met_and_one_unit_less_is_not(kind):
    large = 10.0**9
    if kind == "single":
        budget = Budget("bytes", 8 * large, [(0, [2 * large, 4 * large]), (1, [2 * large, 4 * large])])
    else:
        budget = Budget("operations", 16 * large, pairs=[(0, 1, large * np.outer([2, 4], [2, 4]))])
    errors = [[2.0, 1.0], [2.0, 1.0]]
    assert solve_widths(errors, [budget]) == [1, 1]
    less = Budget(budget.name, budget.limit - 1, budget.single, budget.pairs)
    assert sorted(solve_widths(errors, [less])) == [0, 1]


def test_what_is_ruled_out_is_not_taken():
    errors = [[math.inf, 1.0], [1.0, math.inf]]
    assert solve_widths(errors, [Budget("bytes", 3.0, [(0, [1.0, 2.0]), (1, [1.0, 2.0])])]) == [1, 0]


def test_no_budget_takes_the_least_errors():
    assert solve_widths([[3.0, 1.0, 2.0], [1.0, 5.0, 0.0]], []) == [1, 2]


class TestWithoutAProof:
    """A limit of nodes ends the search: what is given keeps the budgets all the same."""

    @pytest.fixture
    def ends(self, monkeypatch):
        """How each search ended: (status, whether anything was found)."""
        seen, real = [], precision_program.milp

        def asked(**program):
            result = real(**program)
            seen.append((result.status, result.x is not None))
            return result

        monkeypatch.setattr(precision_program, "milp", asked)
        return seen

    def test_the_best_that_was_found_is_taken(self, monkeypatch, ends):
        stopped = 0
        for seed in range(4):
            errors, [_, operations] = problem(seed, tensors=20)
            best = total(errors, solve_widths(errors, [operations]))
            ends.clear()
            with monkeypatch.context() as patch:
                patch.setattr(precision_program, "NODES", 1)
                found = solve_widths(errors, [operations])
            stopped += (precision_program.STOPPED, True) in ends
            assert operations.cost(found) <= operations.limit
            assert total(errors, found) <= 1.1 * best
        assert stopped

    def test_where_nothing_was_found_a_looser_search_is_asked(self, monkeypatch, ends):
        errors, budgets = problem(3, tensors=12)
        best = total(errors, solve_widths(errors, budgets))
        ends.clear()
        monkeypatch.setattr(precision_program, "NODES", 0)
        found = solve_widths(errors, budgets)
        assert ends[0] == (precision_program.STOPPED, False)
        assert all(budget.cost(found) <= budget.limit for budget in budgets)
        assert total(errors, found) <= 1.1 * best

    def test_where_that_finds_nothing_either_all_have_the_fewest_bits(self, monkeypatch):
        errors, budgets = problem(3)
        monkeypatch.setattr(precision_program, "NODES", 0)
        monkeypatch.setattr(precision_program, "MORE_NODES", 0)
        assert solve_widths(errors, budgets) == [0] * 5

    def test_of_two_searches_the_better_is_taken(self, monkeypatch):
        """The second, whose unit is the first's solution, is made to find something worse."""
        errors, budgets = problem(3)
        best = solve_widths(errors, budgets)
        found = iter([best, [0] * 5])
        monkeypatch.setattr(precision_program._Program, "solve", lambda *_: next(found))
        assert solve_widths(errors, budgets) == best


class TestErrors:
    def test_a_budget_below_the_fewest_bits(self):
        errors, [size, operations] = problem(0)
        least = size.cost([0] * 5)
        short = Budget("mixed_precision_size", least - 1, size.single, fixed=size.fixed)
        said = rf"mixed_precision_size must be at least {least:.6g}, .* got {least - 1:.6g}"
        with pytest.raises(InputError, match=said):
            solve_widths(errors, [short, operations])

    @pytest.mark.parametrize(
        ("limit", "least", "whole", "said"),
        [
            (1000.5, 1012.25, None, "1012.25, .* got 1000.5"),
            (1.2e6, 1234567.0, None, "1234567, .* got 1200000"),
            (0.02, 0.0312345671, None, "0.0312346, .* got 0.02"),  # rounded up
            (14.0, 30.0, 100.0, r"0.3 \(30\), .* got 0.14 \(14\)"),
            (0.14 * 6656, 1012.0, 6656.0, r"0.152044 \(1012\), .* got 0.14 \(931.84\)"),
        ],
    )
    def test_the_amounts_are_in_the_unit_of_who_gave_the_limit(self, limit, least, whole, said):
        budget = Budget("bytes", limit, [(0, [least])], whole=whole)
        with pytest.raises(InputError, match=f"bytes must be at least {said}$"):
            solve_widths([[1.0]], [budget])

    def test_what_is_fixed_counts(self):
        with pytest.raises(InputError, match="bytes must be at least 12, "):
            solve_widths([[1.0]], [Budget("bytes", 11, [(0, [2.0])], fixed=10)])

    @pytest.mark.parametrize("row", [[math.nan, 1.0], [math.inf, math.inf]])
    def test_errors_that_are_none(self, row):
        with pytest.raises(InputError, match="a finite error"):
            solve_widths([row], [])
