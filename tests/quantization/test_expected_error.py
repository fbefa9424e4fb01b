"""The closed-form error of a grid against quadrature over its cells, against samples, and against the tensor itself."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from pytorch_quantizer import reference
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS
from pytorch_quantizer.quantization.expected_error import Grids, HistogramValues, expected_mse
from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.qparams import GridSpec

BITS = range(1, 9)
DENSITIES = {
    "laplace": lambda x: math.exp(-abs(x)) / 2,
    "gaussian": lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
}
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


def alpha_grid(distribution, bits, half=False, factor=1.0, **kind):
    alpha = factor * distribution.optimal_alpha(bits + half)
    kind = {"signed": not half, "symmetric": False} | kind
    return GridSpec(bits, **kind).over(0.0 if half else -alpha, alpha)


def quadrature(distribution, grid, location, scale, rectified):
    """∫ (x − q)² p(x) dx cell by cell, and in pieces, at one of whose edges the density has its kink."""
    s, levels = grid.scale.double().item(), np.arange(grid.qmin, grid.qmax + 1) - grid.zero_point.item()
    outputs = s * levels
    lowest = 0.0 if rectified else location - 60 * scale  # a ReLU's zeros cost nothing
    borders = [-math.inf, *(outputs[:-1] + s / 2), location + 60 * scale]

    def error(x, y):
        return (x - y) ** 2 * DENSITIES[distribution.name]((x - location) / scale) / scale

    total, pieces = 0.0, location + scale * np.array([-60, -12, -4, 0, 4, 12])
    for y, low, high in zip(outputs, borders[:-1], borders[1:], strict=True):
        low = max(low, lowest)
        cuts = [low, *(cut for cut in pieces if low < cut < high), max(low, high)]
        total += sum(quad(error, *ends, args=(y,), epsrel=1e-10)[0] for ends in itertools.pairwise(cuts))
    return total


def measured(x, grid, power=2.0):
    y = reference.fake_quantize(x, grid.scale, grid.zero_point, grid.qmin, grid.qmax)
    return (x.double() - y.double()).abs().pow(power).mean().item()


class TestDensities:
    @each_distribution
    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("half", [False, True], ids=["full", "half"])
    def test_equal_to_quadrature_at_the_textbook_alpha(self, distribution, bits, half):
        grid = alpha_grid(distribution, bits, half)
        expected = quadrature(distribution, grid, 0.0, 1.0, half)
        assert expected_mse(distribution, grid, rectified=half).item() == pytest.approx(expected, rel=1e-6)

    @each_distribution
    @pytest.mark.parametrize("bits", [2, 3, 6])
    @pytest.mark.parametrize("kind", [(False, False, False), (True, True, True), (True, True, False)])
    @pytest.mark.parametrize(("location", "scale"), [(0.7, 0.5), (-2.0, 3.0), (5.0, 0.2)])
    @pytest.mark.parametrize("rectified", [False, True])
    def test_equal_to_quadrature_off_centre(self, distribution, bits, kind, location, scale, rectified):
        signed, symmetric, narrow = kind
        grid = GridSpec(bits, signed, symmetric, narrow).over(-1.3, 2.9)
        expected = quadrature(distribution, grid, location, scale, rectified)
        ours = expected_mse(distribution, grid, location, scale, rectified=rectified).item()
        assert ours == pytest.approx(expected, rel=1e-6, abs=1e-12)

    @each_distribution
    def test_small_steps_about_any_place(self, distribution):
        """Where sums over boundaries are replaced by formulas."""
        for bits, location in ((7, 0.31), (8, -1.7), (8, 0.0)):
            grid = GridSpec(bits, signed=False, symmetric=False).over(-4.0, 5.0)
            expected = quadrature(distribution, grid, location, 1.0, False)
            assert expected_mse(distribution, grid, location).item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("name", DISTRIBUTIONS)
    def test_within_two_percent_of_ten_million_samples(self, name):
        generator, n = torch.Generator().manual_seed(0), 10_000_000
        x = torch.randn(n, generator=generator)
        if name == "laplace":
            x = x.exponential_(generator=generator) * (2 * torch.randint(2, (n,), generator=generator) - 1)
        for bits in range(1, 6):
            for half in (False, True):
                grid = alpha_grid(DISTRIBUTIONS[name], bits, half)
                sampled = x.clamp(min=0) if half else x
                error = (
                    (sampled - reference.fake_quantize(sampled, grid.scale, grid.zero_point, grid.qmin, grid.qmax))
                    .square_()
                    .mean(dtype=torch.float64)
                )
                assert expected_mse(DISTRIBUTIONS[name], grid, rectified=half).item() == pytest.approx(
                    error.item(), rel=0.02
                )

    @each_distribution
    def test_the_textbook_predicts_too_little(self, distribution):
        ratios = [
            distribution.minimum_mse(bits) / expected_mse(distribution, alpha_grid(distribution, bits)).item()
            for bits in range(2, 9)
        ]
        assert ratios == sorted(ratios)
        assert ratios[0] < 0.7
        assert 0.99 < ratios[-1] < 1.0

    @each_distribution
    def test_per_channel_is_per_tensor_stacked(self, distribution):
        lo, hi = torch.tensor([-1.0, -3.0, -0.1]), torch.tensor([1.0, 5.0, 9.0])
        location, scale = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 0.1, 3.0]).double()
        kind = GridSpec(4, signed=False, symmetric=False)
        whole = expected_mse(distribution, kind.over(lo, hi, 0), location, scale)
        each = [expected_mse(distribution, kind.over(lo[i], hi[i]), location[i], scale[i]) for i in range(3)]
        torch.testing.assert_close(whole, torch.stack(each), rtol=1e-12, atol=0)

    @each_distribution
    def test_of_a_constant(self, distribution):
        grid = GridSpec(4, signed=False, symmetric=False).over(0.0, 1.5)
        for value in (0.0, 0.17, 1.5, 4.0, -2.0):
            expected = measured(torch.tensor([value], dtype=torch.float64).float(), grid)
            ours = expected_mse(distribution, grid, torch.tensor([value]).double().item(), 0.0).item()
            assert ours == pytest.approx(expected, rel=1e-5, abs=1e-12)


class TestHistograms:
    @staticmethod
    def values(x, power=2.0):
        return HistogramValues(Histogram.from_tensor(x), x.min().double(), x.max().double(), power=power)

    @staticmethod
    def skewed(n=200_000):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(n, generator=generator).exp() - 1.2

    @pytest.mark.parametrize("power", [1.0, 2.0, 2.4, 4.0])
    @pytest.mark.parametrize("bits", [1, 2, 4, 7])
    @pytest.mark.parametrize("ends", [(-1.2, 60.0), (-1.0, 4.0), (-0.2, 0.5), (-9.0, 9.0)])
    def test_are_the_error_of_the_tensor(self, power, bits, ends):
        x = self.skewed()
        for kind in (GridSpec(bits, False, False), GridSpec(bits, True, False)):
            grid = kind.over(*ends)
            ours = self.values(x, power).error(Grids.of(grid, 1)).item()
            assert ours == pytest.approx(measured(x, grid, power), rel=6e-3)

    def test_both_ways_to_add_it_up_agree(self):
        values, kind = self.values(self.skewed()), GridSpec(6, signed=True, symmetric=True)
        alphas = torch.linspace(0.1, 80, 50).double()
        grids = Grids.of(kind.over(-alphas, alphas, 0), 1)
        scaled = Grids(grids.scale / values.width[:, None], grids.lowest, grids.steps)
        by_levels = values._by_levels(slice(0, 1), scaled)
        torch.testing.assert_close(by_levels, values._by_bins(slice(0, 1), scaled), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("bits", [2, 8, 14])
    @pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1e-30, 1e30])
    def test_of_a_constant_are_exact(self, bits, value):
        x = torch.full((50,), value)
        grid = GridSpec(bits, signed=True, symmetric=False).over(-0.9 * abs(value), 0.7 * abs(value))
        ours = self.values(x).error(Grids.of(grid, 1)).item()
        assert ours == pytest.approx(measured(x, grid), rel=1e-5, abs=1e-12 * value**2)

    @pytest.mark.parametrize("above", [9.0, 9e3, 9e5])
    def test_of_a_ceiling_are_exact(self, above):
        """Also where bins are wider than it, so that none begins there."""
        x = torch.full((1000,), above)
        x[0] = -1.0
        values = HistogramValues(Histogram.from_tensor(x).rectified(6.0), torch.tensor(0.0), torch.tensor(6.0))
        for hi in (6.0, 5.0, 3.0):
            grid = GridSpec(3, signed=False, symmetric=False).over(0.0, hi)
            ours = values.error(Grids.of(grid, 1)).item()
            assert ours == pytest.approx(measured(x.clamp(0, 6), grid), rel=1e-6, abs=1e-12)

    def test_zeros_cost_nothing(self):
        x = self.skewed()
        mixed, grid = torch.cat([x, torch.zeros_like(x)]), GridSpec(3, False, False).over(-1.0, 4.0)
        alone, half = (self.values(form).error(Grids.of(grid, 1)).item() for form in (x, mixed))
        assert half == pytest.approx(alone / 2, rel=1e-12)

    def test_of_nothing_but_zeros(self):
        grid = GridSpec(3, False, False).over(0.0, 1.0)
        assert self.values(torch.zeros(5)).error(Grids.of(grid, 1)).item() == 0.0

    def test_per_channel_is_per_tensor_stacked(self):
        x = torch.stack([self.skewed(5000), -2e-5 * self.skewed(5000), torch.zeros(5000), 1e20 * self.skewed(5000)])
        hi = torch.tensor([4.0, 1e-4, 1.0, 3e20]).double()
        kind = GridSpec(4, signed=True, symmetric=False)
        grids = Grids.of(kind.over(-hi / 2, hi, 0), 4)
        whole = HistogramValues(Histogram.from_tensor(x, axis=0), x.amin(1).double(), x.amax(1).double()).error(grids)
        for c in range(4):
            one = self.values(x[c]).error(Grids.of(kind.over(-hi[c] / 2, hi[c]), 1))
            torch.testing.assert_close(whole[c], one[0], rtol=1e-12, atol=0)
