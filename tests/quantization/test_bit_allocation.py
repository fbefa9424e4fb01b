"""Allocations equal exhaustive search, meet their quotas, obey the laws of symmetry, and beat rounding."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_quantizer import InputError
from pytorch_quantizer.quantization.bit_allocation import (
    allocate_bits,
    continuous_bits,
    midtread_levels,
    predicted_error,
    rounded_bits,
)
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS

VARIANCE = {"laplace": 2.0, "gaussian": 1.0}
BUDGETS = {"bits": lambda bits: sum(bits), "bins": lambda bits: sum(2**b for b in bits)}
distributions = st.sampled_from(sorted(DISTRIBUTIONS))
scale_values = st.one_of(
    st.sampled_from([0.0, 1.0, 1.0, 2.0, 0.5]), st.floats(1e-6, 1e6), st.floats(1e-3, 10.0), st.floats(1e-3, 10.0)
)


def unit_error(distribution, bits):
    density = DISTRIBUTIONS[distribution]
    return VARIANCE[distribution] if bits == 0 else density.mse(density.optimal_alpha(bits), bits)


def error_of(scales, bits, distribution):
    return sum(a * a * unit_error(distribution, b) for a, b in zip(scales, bits, strict=True))


@st.composite
def problems(draw, largest=5):
    """(scales, target, minimum, maximum) with at most ``largest`` channels and a quota that whole bits can meet."""
    scales = draw(st.lists(scale_values, min_size=1, max_size=largest))
    minimum = draw(st.integers(0, 3))
    maximum = draw(st.integers(minimum, minimum + 4))
    total = draw(st.integers(len(scales) * minimum, len(scales) * maximum))
    return scales, total / len(scales), minimum, maximum


class TestAgainstExhaustiveSearch:
    @pytest.mark.parametrize("quota", ["bits", "bins"])
    @settings(max_examples=120, deadline=None)
    @given(problem=problems(), distribution=distributions)
    def test_channels(self, quota, problem, distribution):
        scales, target, minimum, maximum = problem
        limit = len(scales) * (target if quota == "bits" else 2**target)
        candidates = [
            bits
            for bits in itertools.product(range(minimum, maximum + 1), repeat=len(scales))
            if (abs(sum(bits) - limit) < 1e-6 if quota == "bits" else BUDGETS[quota](bits) <= limit + 1e-6)
        ]
        bits = allocate_bits(
            torch.tensor(scales, dtype=torch.float64),
            target,
            distribution=distribution,
            quota=quota,
            minimum=minimum,
            maximum=maximum,
        )
        assert tuple(bits.tolist()) in candidates
        best = min(error_of(scales, candidate, distribution) for candidate in candidates)
        assert error_of(scales, bits.tolist(), distribution) <= best * (1 + 1e-12)

    @settings(max_examples=80, deadline=None)
    @given(
        data=st.data(),
        scales=st.lists(scale_values, min_size=1, max_size=5),
        target=st.floats(0.5, 4),
        distribution=distributions,
    )
    def test_layers_with_costs(self, data, scales, target, distribution):
        costs = data.draw(st.lists(st.integers(1, 50), min_size=len(scales), max_size=len(scales)))
        bits = allocate_bits(
            torch.tensor(scales, dtype=torch.float64),
            target,
            distribution=distribution,
            maximum=4,
            costs=torch.tensor(costs),
        ).tolist()
        budget = target * sum(costs) * (1 + 1e-12)

        def spent(bits):
            return sum(n * b for n, b in zip(costs, bits, strict=True))

        def lost(bits):
            return sum(n * a * a * unit_error(distribution, b) for n, a, b in zip(costs, scales, bits, strict=True))

        best = min(lost(c) for c in itertools.product(range(5), repeat=len(scales)) if spent(c) <= budget)
        assert spent(bits) <= budget
        assert lost(bits) <= best * (1 + 1e-9)

    @pytest.mark.parametrize("odd", [True, False])
    @settings(max_examples=100, deadline=None)
    @given(scales=st.lists(scale_values, min_size=1, max_size=4), target=st.floats(0, 3), maximum=st.integers(1, 12))
    def test_midtread_levels(self, odd, scales, target, maximum):
        step, budget = 1 + odd, len(scales) * 2**target
        levels = midtread_levels(torch.tensor(scales, dtype=torch.float64), target, odd=odd, maximum=maximum).tolist()

        def lost(levels):
            return sum(a * a / b**2 for a, b in zip(scales, levels, strict=True))

        candidates = itertools.product(range(1, maximum + 1, step), repeat=len(scales))
        best = min(lost(c) for c in candidates if sum(c) <= budget * (1 + 1e-12))
        assert sum(levels) <= budget * (1 + 1e-12)
        assert all(1 <= b <= maximum and (b - 1) % step == 0 for b in levels)
        assert lost(levels) <= best * (1 + 1e-12)


class TestLargerInstances:
    """Where exhaustive search can't go, an integer programme and the linear bound can."""

    @pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
    def test_errors_are_convex_in_the_bits(self, distribution):
        """What the greedy's optimality rests on, 0 bits included."""
        gains = -np.diff([unit_error(distribution, bits) for bits in range(17)])
        assert (gains > 0).all()
        assert (np.diff(gains) < 0).all()


class TestLaws:
    @pytest.mark.parametrize("quota", ["bits", "bins"])
    @settings(max_examples=100, deadline=None)
    @given(problem=problems(largest=40), distribution=distributions)
    def test_quota_is_met_and_rounding_is_beaten(self, quota, problem, distribution):
        scales, target, minimum, maximum = problem
        limits = {"minimum": minimum, "maximum": maximum}
        scales = torch.tensor(scales, dtype=torch.float64)
        bits = allocate_bits(scales, target, distribution=distribution, quota=quota, **limits)
        baseline = rounded_bits(scales, target, quota, **limits)
        for each in (bits, baseline):
            assert each.dtype == torch.int64
            assert ((each >= minimum) & (each <= maximum)).all()
            if quota == "bits":
                assert each.sum().item() == round(len(scales) * target)
            else:
                assert (2**each).sum().item() <= len(scales) * 2**target * (1 + 1e-9)
        ours, theirs = (predicted_error(scales, each, distribution) for each in (bits, baseline))
        assert ours <= theirs * (1 + 1e-12)

    @pytest.mark.parametrize("quota", ["bits", "bins"])
    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), scales=st.lists(st.integers(1, 1000), min_size=2, max_size=20, unique=True))
    def test_permuted_channels_get_permuted_bits(self, quota, data, scales):
        order = torch.tensor(data.draw(st.permutations(range(len(scales)))))
        scales = torch.tensor(scales, dtype=torch.float64)
        bits = allocate_bits(scales, 3, quota=quota)
        permuted = allocate_bits(scales[order], 3, quota=quota)
        assert torch.equal(permuted, bits[order])
        assert torch.equal(midtread_levels(scales[order], 3), midtread_levels(scales, 3)[order])

    @pytest.mark.parametrize("quota", ["bits", "bins"])
    @settings(max_examples=60, deadline=None)
    @given(problem=problems(largest=20), exponent=st.integers(-900, 900), factor=st.floats(1e-3, 1e3))
    def test_the_unit_of_the_scales_does_not_matter(self, quota, problem, exponent, factor):
        scales, target, minimum, maximum = problem
        scales = torch.tensor(scales, dtype=torch.float64)
        limits = {"quota": quota, "minimum": minimum, "maximum": maximum}
        bits = allocate_bits(scales, target, **limits)
        assert torch.equal(allocate_bits(scales * 2.0**exponent, target, **limits), bits)
        scaled = allocate_bits(scales * factor, target, **limits)  # its products round: what tied may part
        assert predicted_error(scales, scaled) == pytest.approx(predicted_error(scales, bits), rel=1e-12)

    def test_ties_go_to_the_lower_bit_then_the_lower_index(self):
        assert allocate_bits(torch.ones(4), 1.5).tolist() == [2, 2, 1, 1]
        assert allocate_bits(torch.zeros(4), 0.5).tolist() == [1, 1, 0, 0]
        assert allocate_bits(torch.ones(4), math.log2(12 / 4), quota="bins").tolist() == [2, 2, 1, 1]
        assert midtread_levels(torch.ones(4), math.log2(16 / 4)).tolist() == [5, 5, 3, 3]
        assert rounded_bits(torch.ones(4), 1.25).tolist() == [2, 1, 1, 1]

    def test_a_zero_scale_gets_what_is_left_over(self):
        assert allocate_bits(torch.tensor([0.0, 1.0, 1.0]), 4, maximum=6).tolist() == [0, 6, 6]
        assert allocate_bits(torch.tensor([0.0, 1.0, 1.0]), 5, maximum=6).tolist() == [3, 6, 6]
        assert allocate_bits(torch.tensor([0.0, 1.0]), 5, quota="bins", maximum=16).tolist() == [0, 5]
        assert midtread_levels(torch.tensor([0.0, 1.0]), 3).tolist() == [1, 15]

    def test_four_times_the_scale_is_two_bits_more(self):
        """Where the error falls fourfold a bit, D's ratio near 4, the whole bits are the continuous ones."""
        assert allocate_bits(torch.tensor([1.0, 4.0, 16.0]), 10, distribution="gaussian", maximum=16).tolist() == [
            8,
            10,
            12,
        ]

    def test_weights_weigh(self):
        scales = torch.ones(2)
        assert allocate_bits(scales, 4).tolist() == [4, 4]
        assert allocate_bits(scales, 4, weights=torch.tensor([1.0, 64.0])).tolist() == [2, 6]
        costs = torch.tensor([100, 100])
        assert allocate_bits(scales, 4, costs=costs).tolist() == [4, 4]
        assert allocate_bits(scales, 4, costs=costs, weights=torch.tensor([64.0, 1.0])).tolist() == [6, 2]
        assert predicted_error(scales, torch.tensor([0, 0]), weights=torch.tensor([3.0, 4.0])) == 14


class TestContinuousForms:
    def test_bits(self):
        bits = continuous_bits(torch.tensor([1.0, 2.0, 8.0, 1.0]), 4)
        assert bits.tolist() == [3, 4, 6, 3]
        assert bits.dtype == torch.float64

    def test_bins_is_equation_11(self):
        scales = torch.tensor([1.0, 8.0, 27.0])
        expected = [math.log2(3 * 2**4 * share / (1 + 4 + 9)) for share in (1, 4, 9)]
        bits = continuous_bits(scales, 4, "bins")
        assert bits.tolist() == pytest.approx(expected, rel=1e-12)
        assert bits.mean() < 4
        assert bits.exp2().sum().item() == pytest.approx(3 * 2**4)

    @settings(max_examples=50, deadline=None)
    @given(scales=st.lists(st.floats(1e-150, 1e150), min_size=1, max_size=9), target=st.floats(0, 16))
    def test_spend_their_quota(self, scales, target):
        scales = torch.tensor(scales, dtype=torch.float64)
        assert continuous_bits(scales, target).mean().item() == pytest.approx(target, abs=1e-9)
        assert continuous_bits(scales, target, "bins").exp2().mean().item() == pytest.approx(2**target)

    def test_predicted_error(self):
        scales, bits = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 2, 1])
        for distribution in DISTRIBUTIONS:
            expected = error_of(scales.tolist(), bits.tolist(), distribution)
            assert predicted_error(scales, bits, distribution) == pytest.approx(expected, rel=1e-12)

    def test_rounding_as_such(self):
        assert rounded_bits(torch.tensor([1.0, 2.0, 8.0, 1.0]), 4).tolist() == [3, 4, 6, 3]
        assert rounded_bits(torch.tensor([1.0, 4.0, 0.0]), 4, maximum=6).tolist() == [6, 6, 0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scales": torch.tensor([])}, r"scales must be \[C\].*got shape \[0\]"),
            ({"scales": torch.ones(2, 2)}, r"scales must be \[C\].*got shape \[2, 2\]"),
            ({"scales": torch.tensor([1.0, -2.0])}, "scales must be finite and 0 or more, got -2 for channel 1"),
            ({"scales": torch.tensor([math.nan, 1.0])}, "got nan for channel 0"),
            ({"scales": torch.tensor([1.0, math.inf])}, "got inf for channel 1"),
            ({"target": 9}, "a quota of 9 bits per channel can't be met by channels of 0 to 8 bits"),
            ({"target": 1, "minimum": 2}, "a quota of 1 bits per channel can't be met by channels of 2 to 8 bits"),
            ({"target": math.nan}, "can't be met"),
            ({"target": 3.3}, r"needs a whole number of bits, not 6.6; 3.5 is the nearest target"),
            ({"quota": "levels"}, "quota must be one of bits, bins, got 'levels'"),
            ({"maximum": 17}, "0 <= minimum <= maximum <= 16 must hold, got 0 and 17"),
            ({"minimum": 5, "maximum": 4}, "got 5 and 4"),
            ({"minimum": -1}, "got -1 and 8"),
            ({"minimum": 1.5}, "minimum must be a whole number of bits, got 1.5"),
            ({"maximum": "8"}, "maximum must be a whole number of bits, got '8'"),
            ({"target": "4"}, "target must be a number of bits per value, got '4'"),
            ({"distribution": "cauchy"}, "distribution must be one of laplace, gaussian, got 'cauchy'"),
            ({"costs": torch.ones(3)}, r"costs must have the scales' shape \[2\], got \[3\]"),
            ({"costs": torch.tensor([1.0, 0.0])}, "costs must be finite and above 0, got 0"),
            ({"costs": torch.ones(2), "quota": "bins"}, "costs go with quota='bits'"),
            ({"weights": torch.tensor([1.0, -1.0])}, "weights must be finite and 0 or more, got -1"),
        ],
    )
    def test_allocate_bits(self, changes, message):
        arguments = {"scales": torch.tensor([1.0, 2.0]), "target": 4, **changes}
        with pytest.raises(InputError, match=message):
            allocate_bits(arguments.pop("scales"), arguments.pop("target"), **arguments)

    def test_costs_lift_the_whole_number(self):
        assert allocate_bits(torch.ones(2), 3.3, costs=torch.ones(2)).tolist() in ([3, 3], [4, 2])

    def test_the_others(self):
        with pytest.raises(InputError, match="the continuous form needs positive scales, got 0 for channel 1"):
            continuous_bits(torch.tensor([1.0, 0.0]), 4)
        with pytest.raises(InputError, match="can't be met"):
            rounded_bits(torch.ones(2), 9)
        with pytest.raises(InputError, match="can't be met by channels of 0 to 16 bits"):
            midtread_levels(torch.ones(2), 17)
        with pytest.raises(InputError, match="maximum must be between 1 and 65536 levels, got 0"):
            midtread_levels(torch.ones(2), 4, maximum=0)
        with pytest.raises(InputError, match="bits must be one number from 0 to 16 for each of 2 scales"):
            predicted_error(torch.ones(2), torch.tensor([1, 17]))


def test_results_lie_where_the_scales_do(device):
    scales = torch.tensor([1.0, 2.0, 5.0], device=device)
    for result in (
        allocate_bits(scales, 4),
        rounded_bits(scales, 4),
        continuous_bits(scales, 4),
        midtread_levels(scales, 4),
    ):
        assert result.device == scales.device
