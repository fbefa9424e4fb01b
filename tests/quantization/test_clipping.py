"""From statistics to a range: which moments a domain uses, which alpha, and what was observed as the outer limit."""

import itertools
import math
import re

import numpy as np
import pytest
import torch

from pytorch_quantizer import InputError, TensorStatistics, reference
from pytorch_quantizer.quantization.clipping import CLIPPINGS, Domain, check_clipping, choose_range, needs_histogram
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS, Gaussian, Laplace
from pytorch_quantizer.quantization.divergence import SMOOTHING, HistogramDivergence
from pytorch_quantizer.quantization.expected_error import Grids, expected_mse
from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.qparams import GridSpec

REAL, RECTIFIED, NONNEGATIVE, UNIT = (Domain(kind) for kind in ("real", "rectified", "nonnegative", "unit"))
ANALYTIC = ("laplace", "gaussian")


def affine(bits):
    return GridSpec(bits, signed=False, symmetric=False)


def measured(x, axis=None):
    return TensorStatistics.from_tensor(x, axis=axis, histogram=True)


def statistics(**moments):
    """Statistics with the moments given, those of a wide tensor about zero elsewhere."""
    wide = {"count": 1e6, "min": -1e3, "max": 1e3, "mean": 0.0, "abs_dev": 1.0, "variance": 1.0}
    wide |= {"positive_count": 5e5, "positive_mean": 1.0, "positive_mean_square": 1.0}
    wide |= {"batches": 1.0, "min_mean": moments.get("min", -1e3), "max_mean": moments.get("max", 1e3)}
    moments = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in (wide | moments).items()}
    return TensorStatistics(**moments)


def chosen(method, bits, domain, **moments):
    lo, hi = choose_range(statistics(**moments), method=method, grid=affine(bits), domain=domain)
    return lo.item(), hi.item()


class TestMinmax:
    def test_is_what_was_observed(self):
        assert chosen("minmax", 4, REAL, min=-3.0, max=7.0) == (-3.0, 7.0)
        assert chosen("minmax", 4, NONNEGATIVE, min=0.5, max=7.0) == (0.5, 7.0)

    def test_of_a_relu_is_its_input_rectified(self):
        assert chosen("minmax", 4, RECTIFIED, min=-3.0, max=7.0) == (0.0, 7.0)
        assert chosen("minmax", 4, RECTIFIED, min=-3.0, max=-1.0) == (0.0, 0.0)
        assert chosen("minmax", 4, RECTIFIED, min=2.0, max=7.0) == (2.0, 7.0)

    def test_ends_at_the_ceiling(self):
        assert chosen("minmax", 4, Domain("rectified", 6.0), min=-3.0, max=7.0) == (0.0, 6.0)
        assert chosen("minmax", 4, Domain("rectified", 6.0), min=-3.0, max=5.0) == (0.0, 5.0)
        assert chosen("minmax", 4, Domain("rectified", 6.0), min=7.0, max=9.0) == (6.0, 6.0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
class TestAnalytic:
    """Observed limits lie far outside here."""

    def test_real_is_alpha_about_the_mean(self, bits):
        alpha = 0.5 * Laplace().optimal_alpha(bits)
        assert chosen("laplace", bits, REAL, mean=3.0, abs_dev=0.5) == pytest.approx((3 - alpha, 3 + alpha))
        alpha = 0.7 * Gaussian().optimal_alpha(bits)
        assert chosen("gaussian", bits, REAL, mean=3.0, variance=0.49) == pytest.approx((3 - alpha, 3 + alpha))

    @pytest.mark.parametrize(("mean", "base"), [(0.4, 0.4), (-0.4, 0.0)])
    def test_rectified_is_half_a_range_with_a_bit_more(self, bits, mean, base):
        alpha = 0.5 * Laplace().optimal_alpha(bits + 1)
        assert chosen("laplace", bits, RECTIFIED, mean=mean, abs_dev=0.5) == pytest.approx((0, base + alpha))
        alpha = 0.7 * Gaussian().optimal_alpha(bits + 1)
        assert chosen("gaussian", bits, RECTIFIED, mean=mean, variance=0.49) == pytest.approx((0, base + alpha))

    def test_nonnegative_takes_the_positive_part(self, bits):
        moments = {"min": 0.0, "mean": 9.0, "abs_dev": 9.0, "variance": 9.0}
        moments |= {"positive_mean": 0.5, "positive_mean_square": 0.49}
        laplace, gaussian = (chosen(method, bits, NONNEGATIVE, **moments) for method in ANALYTIC)
        assert laplace == pytest.approx((0, 0.5 * Laplace().optimal_alpha(bits + 1)))
        assert gaussian == pytest.approx((0, 0.7 * Gaussian().optimal_alpha(bits + 1)))

    @pytest.mark.parametrize("method", CLIPPINGS)
    def test_unit_is_zero_to_one(self, bits, method):
        assert chosen(method, bits, UNIT, min=0.2, max=0.3) == (0.0, 1.0)

    @pytest.mark.parametrize("method", ANALYTIC)
    def test_never_beyond_what_was_observed(self, bits, method):
        observed = {"min": -0.1, "max": 0.2, "mean": 0.05}
        assert chosen(method, bits, REAL, **observed) == (-0.1, 0.2)
        assert chosen(method, bits, RECTIFIED, **observed) == (0.0, 0.2)
        assert chosen(method, bits, NONNEGATIVE, **observed | {"min": 0.1}) == (0.1, 0.2)
        assert chosen(method, bits, Domain("rectified", 0.15), **observed) == (0.0, 0.15)


class TestTensors:
    @pytest.mark.parametrize("method", CLIPPINGS)
    @pytest.mark.parametrize("domain", [REAL, RECTIFIED, NONNEGATIVE])
    def test_per_channel_is_per_tensor_stacked(self, method, domain):
        x = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.0]).view(3, 1)
        x = x.abs() if domain is NONNEGATIVE else x
        whole = choose_range(measured(x, axis=1), method=method, grid=affine(4), domain=domain)
        each = [measured(x[:, c]) for c in range(3)]
        parts = [choose_range(one, method=method, grid=affine(4), domain=domain) for one in each]
        for bound, part in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(bound, torch.stack(part), rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("method", CLIPPINGS)
    @pytest.mark.parametrize("value", [0.0, 0.1, -0.3, 1e30])
    def test_a_constant_is_its_own_range(self, method, value):
        records = [measured(torch.full((size,), value)) for size in (1, 7, 100_003)]
        lo, hi = choose_range(TensorStatistics.merged(records), method=method, grid=affine(4))
        assert lo.item() == hi.item() == torch.tensor(value).item()

    @pytest.mark.parametrize("method", ANALYTIC)
    def test_clips_samples_about_as_well_as_any_range(self, method):
        """The end of the chain: no symmetric range is much better on a sample of the density it assumes."""
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(200_000, generator=generator, dtype=torch.float64)
        laplace = torch.where(uniform < 0.5, (2 * uniform).log(), -(2 - 2 * uniform).log()).float()
        x = laplace if method == "laplace" else torch.randn(200_000, generator=generator)
        lo, hi = choose_range(measured(x), method=method, grid=affine(4))
        alpha = DISTRIBUTIONS[method].optimal_alpha(4)
        errors = [float((x - x.clamp(-a, a)).square().mean()) + a**2 / (3 * 4**4) for a in (alpha * 0.8, alpha * 1.25)]
        ours = float((x - x.clamp(lo.float(), hi.float())).square().mean()) + ((hi - lo) / 2).item() ** 2 / (3 * 4**4)
        assert ours < min(errors)


def error(x, ends, grid, power=2.0):
    """What the grid over a range really does to a tensor."""
    q = grid.over(*(end.item() for end in ends))
    y = reference.fake_quantize(x, q.scale, q.zero_point, q.qmin, q.qmax)
    return (x.double() - y.double()).abs().pow(power).mean().item()


def laplace_samples(generator, *shape):
    return torch.empty(*shape).exponential_(generator=generator) * (
        2 * torch.randint(2, shape, generator=generator) - 1
    )


def samples(kind, n=50_000):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, generator=generator)
    return {
        "gaussian": lambda: x + 0.3,
        "laplace": lambda: laplace_samples(generator, n),
        "skewed": lambda: x.exp() - 1.2,
        "silu": lambda: torch.nn.functional.silu(3 * x),
        "outliers": lambda: torch.cat([x, torch.tensor([100.0, -30.0])]),
    }[kind]()


KINDS = ("gaussian", "laplace", "skewed", "silu", "outliers")
SYMMETRIC = GridSpec(4, signed=True, symmetric=True, narrow=True)


class TestPercentile:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("percent", [50.0, 99.0, 99.99, 100.0])
    def test_keeps_the_middle(self, kind, percent):
        x = samples(kind)
        statistics = measured(x)
        lo, hi = choose_range(statistics, method=f"percentile:{percent}", grid=affine(4))
        width = statistics.histogram.width.item()
        left_out = (1 - percent / 100) / 2
        for end, share in ((lo, left_out), (hi, 1 - left_out)):
            low, high = (np.quantile(x.double(), share, method=method) for method in ("lower", "higher"))
            assert low - width <= end.item() <= high + width

    def test_of_a_half_range_is_the_upper_end_and_counts_the_zeros(self):
        x = samples("gaussian")
        statistics, width = measured(x), 2 * measured(x).histogram.width.item()
        for domain, values in ((RECTIFIED, x.relu()), (Domain("rectified", 0.5), x.clamp(0, 0.5))):
            for percent in (60.0, 90.0, 99.0):
                lo, hi = choose_range(statistics, method=f"percentile:{percent}", grid=affine(4), domain=domain)
                assert lo == 0
                assert hi.item() == pytest.approx(np.quantile(values.double(), percent / 100), abs=width)

    def test_within_zeros_is_zero(self):
        x = torch.cat([torch.zeros(900), torch.rand(100)])
        lo, hi = choose_range(measured(x), method="percentile:80", grid=affine(4), domain=NONNEGATIVE)
        assert lo == hi == 0

    @pytest.mark.parametrize("outlier", [1e4, -1e6])
    def test_a_histogram_that_cannot_tell_says_so(self, outlier):
        x = torch.cat([samples("gaussian"), torch.tensor([outlier])])
        with pytest.warns(UserWarning, match="spans fewer than 8 of the histogram's 2048 bins"):
            choose_range(measured(x), method="percentile:99.9", grid=affine(4))

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("kind", KINDS)
    def test_and_nothing_where_it_can(self, kind):
        choose_range(measured(samples(kind)), method="percentile:99", grid=affine(4))

    def test_has_a_default(self):
        x = measured(samples("laplace"))
        assert choose_range(x, method="percentile", grid=affine(4)) == choose_range(
            x, method="percentile:99.99", grid=affine(4)
        )


class TestStd:
    def test_is_so_many_deviations_about_the_mean(self):
        assert chosen("std:2", 4, REAL, mean=1.0, variance=9.0) == pytest.approx((-5, 7))
        assert chosen("std", 4, REAL, mean=1.0, variance=9.0) == pytest.approx((-8, 10))
        assert chosen("std:2", 4, RECTIFIED, mean=1.0, variance=9.0) == pytest.approx((0, 7))
        assert chosen("std:2", 4, RECTIFIED, mean=-1.0, variance=9.0) == pytest.approx((0, 6))
        assert chosen("std:2", 4, NONNEGATIVE, min=0.0, positive_mean_square=4.0) == pytest.approx((0, 4))
        assert chosen("std:2", 4, REAL, min=-1.0, max=3.0, variance=9.0) == (-1, 3)


class TestSearch:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
    def test_mse_is_never_worse_than_minmax(self, kind, bits):
        x = samples(kind)
        grids = [affine(bits), GridSpec(bits, signed=True, symmetric=False)]
        grids += [GridSpec(bits, True, True, narrow) for narrow in (False, True)] if bits > 1 else []
        for grid in grids:
            statistics = measured(x)
            ours, widest = (choose_range(statistics, method=method, grid=grid) for method in ("mse", "minmax"))
            assert error(x, ours, grid) <= error(x, widest, grid) * (1 + 1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_mse_is_near_the_best_of_all_pairs(self, kind, bits):
        x, grid = samples(kind, 5000), affine(bits)
        ours = error(x, choose_range(measured(x), method="mse", grid=grid), grid)
        shares = torch.cat([torch.zeros(1), torch.logspace(-2.5, 0, 25)]).double()
        lows, highs = shares * x.min().double(), shares[1:] * x.max().double()
        assert ours <= 1.02 * min(error(x, (lo, hi), grid) for lo in lows for hi in highs)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_each_end_is_sought_for_itself(self, sign):
        """One end has outliers, the other must not be clipped: no common factor is good."""
        x = sign * torch.cat(
            [10 * torch.rand(50_000, generator=torch.Generator().manual_seed(0)), torch.full((5,), -50.0)]
        )
        ends = choose_range(measured(x), method="mse", grid=affine(4))
        best = sorted((torch.tensor(0.0), torch.tensor(10.0 * sign)))
        assert error(x, ends, affine(4)) <= 1.02 * error(x, best, affine(4))

    @pytest.mark.parametrize("power", [1.0, 2.0, 2.4, 4.0])
    @pytest.mark.parametrize("kind", ["gaussian", "laplace", "outliers"])
    def test_lp_and_symmetric_are_near_the_best_alpha(self, power, kind):
        x = samples(kind, 5000)
        ours = choose_range(measured(x), method=f"lp:{power}", grid=SYMMETRIC)
        alphas = x.abs().max().double() * torch.logspace(-3, 0, 400).double()
        best = min(error(x, (-alpha, alpha), SYMMETRIC, power) for alpha in alphas)
        assert error(x, ours, SYMMETRIC, power) <= 1.01 * best

    def test_lp_of_two_is_mse(self):
        x = measured(samples("skewed"))
        for grid in (SYMMETRIC, affine(4)):
            both = (choose_range(x, method=method, grid=grid) for method in ("mse", "lp:2"))
            for a, b in zip(*both, strict=True):
                assert a.item() == pytest.approx(b.item(), rel=1e-9)

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    @pytest.mark.parametrize("upper", [None, 6.0, 1.0])
    def test_mse_after_a_relu(self, bits, upper):
        x, domain = 2 * samples("gaussian"), Domain("rectified", upper)
        lo, hi = choose_range(measured(x), method="mse", grid=affine(bits), domain=domain)
        values = x.clamp(0, upper)
        alphas = values.max().double() * torch.linspace(0.05, 1, 200).double()
        zero = torch.zeros(())
        best = min(error(values, (zero, alpha), affine(bits)) for alpha in alphas)
        assert lo == 0
        assert hi <= values.max()
        assert error(values, (lo, hi), affine(bits)) <= 1.01 * best

    @pytest.mark.parametrize("method", ["mse", "lp", "kl"])
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_of_one_sign_stays_inside(self, method, sign):
        x = sign * (samples("laplace").abs() + 0.5)
        lo, hi = choose_range(measured(x), method=method, grid=affine(4))
        assert x.min() <= lo <= hi <= x.max()

    @pytest.mark.parametrize("method", ["percentile", "mse", "lp", "kl", "auto", "laplace:exact", "gaussian:exact"])
    @pytest.mark.parametrize("power", [-60, 3, 60])
    def test_scales_with_the_tensor(self, method, power):
        x = samples("skewed", 5000)
        once, scaled = (choose_range(measured(form), method=method, grid=affine(4)) for form in (x, x * 2.0**power))
        for a, b in zip(once, scaled, strict=True):
            assert b.item() == pytest.approx(a.item() * 2.0**power, rel=1e-9)

    @pytest.mark.parametrize("method", CLIPPINGS)
    def test_channels_of_all_kinds_side_by_side(self, method):
        x = torch.stack([samples(kind, 5000)[:5000] for kind in KINDS] + [torch.zeros(5000), torch.full((5000,), -2.0)])
        x = torch.cat([x, -x, 3 + x, -30 - x.abs()]).repeat(3, 1)
        lo, hi = choose_range(measured(x, axis=0), method=method, grid=affine(4))
        assert lo.shape == hi.shape == (84,)
        assert (x.amin(1) <= lo).all()
        assert (lo <= hi).all()
        assert (hi <= x.amax(1)).all()
        for c in (3, 27, 83):
            for end, one in zip((lo, hi), choose_range(measured(x[c]), method=method, grid=affine(4)), strict=True):
                assert end[c].item() == pytest.approx(one.item(), rel=1e-9, abs=1e-12)


class TestEntropy:
    def plain(self, counts, edges, scale, lowest, steps):
        """Migacz's divergence by loops, of the histogram [bins] without zeros."""
        levels = [min(max(round((a + b) / 2 / scale), lowest), lowest + steps) for a, b in itertools.pairwise(edges)]
        low, high = (lowest - 0.5) * scale, (lowest + steps + 0.5) * scale
        inside = [i for i, (a, b) in enumerate(itertools.pairwise(edges)) if b >= low and a <= high]
        p, kept = [0.0] * len(counts), [0.0] * len(counts)
        for i in inside:
            p[i] = kept[i] = counts[i]
        p[inside[0]] += sum(counts[: inside[0]])
        p[inside[-1]] += sum(counts[inside[-1] + 1 :])
        q = [0.0] * len(counts)
        for level in set(levels):
            cell = [i for i in inside if levels[i] == level and p[i] > 0]
            for i in cell:
                q[i] = sum(kept[j] for j in cell) / len(cell)
        filled = [i for i in inside if p[i] > 0]
        q = [(1 - SMOOTHING) * value / sum(q) + SMOOTHING / len(filled) for value in q]
        return sum(p[i] / sum(p) * math.log(p[i] / sum(p) / q[i]) for i in filled)

    @pytest.mark.parametrize("grid", [GridSpec(2, False, False), GridSpec(3, True, True, True)])
    def test_is_the_published_divergence(self, grid):
        x = samples("gaussian", 3000)
        histogram = Histogram.from_tensor(x, bins=64)
        for lo, hi in ((-2.2, 2.9), (-4.0, 4.0), (-2.0, 5.0)):
            grids = Grids.of(grid.over(lo, hi), 1)
            ours = HistogramDivergence(histogram).error(grids).item()
            step, lowest = grids.scale.item(), grids.lowest.item()
            expected = self.plain(histogram.counts.tolist(), histogram.edges().tolist(), step, lowest, grids.steps)
            assert ours == pytest.approx(expected, rel=1e-9)

    def test_more_than_a_hundredth_is_never_clipped(self):
        histogram = Histogram.from_tensor(samples("gaussian"))
        assert HistogramDivergence(histogram).error(Grids.of(affine(4).over(-1.0, 1.0), 1)).isinf()
        for kind in KINDS:
            x = samples(kind)
            lo, hi = choose_range(measured(x), method="kl", grid=affine(3))
            q = affine(3).over(lo, hi)
            low, high = (end.item() for end in q.range())
            slack = q.scale.item() / 2 + 16 * measured(x).histogram.width.item()  # entropy takes 128 bins of these 2048
            assert ((x < low - slack) | (x > high + slack)).double().mean() <= 0.01

    @pytest.mark.parametrize("domain", [REAL, RECTIFIED])
    def test_gives_up_outliers_for_resolution(self, domain):
        lo, hi = choose_range(measured(samples("outliers")), method="kl", grid=affine(8), domain=domain)
        assert 3 < hi < 60
        assert lo == 0 if domain is RECTIFIED else -25 < lo < -3

    def test_needs_no_clipping_where_levels_are_plenty(self):
        x = samples("outliers")
        assert choose_range(measured(x), method="kl", grid=affine(14)) == (x.min(), x.max())


class TestExact:
    BITS = range(1, 9)

    @pytest.mark.parametrize("name", ANALYTIC)
    @pytest.mark.parametrize("bits", BITS)
    @pytest.mark.parametrize("domain", [REAL, RECTIFIED, NONNEGATIVE], ids=lambda domain: domain.support)
    def test_is_the_least_expected_error_and_never_above_the_textbook(self, name, bits, domain):
        half = domain is not REAL
        for grid in (
            affine(bits),
            GridSpec(bits, True, False),
            *([GridSpec(bits, True, True, True)] if bits > 1 else []),
        ):
            if half and grid.signed:
                continue

            def expected(lo, hi, grid=grid):
                return expected_mse(DISTRIBUTIONS[name], grid.over(lo, hi, 0 if lo.dim() else None), rectified=half)

            exact, textbook = (
                expected(*choose_range(statistics(min=0.0 if half else -1e3), method=method, grid=grid, domain=domain))
                for method in (f"{name}:exact", name)
            )
            alphas = DISTRIBUTIONS[name].optimal_alpha(bits + half) * torch.linspace(0.3, 2.0, 1701).double()
            assert exact <= textbook
            assert exact <= expected(-alphas * (not half), alphas).min() * (1 + 1e-6)

    @pytest.mark.parametrize("name", ANALYTIC)
    @pytest.mark.parametrize("mean", [-1.5, 0.4, 2.0])
    @pytest.mark.parametrize("domain", [REAL, RECTIFIED], ids=lambda domain: domain.support)
    def test_off_centre(self, name, mean, domain):
        half, distribution = domain is RECTIFIED, DISTRIBUTIONS[name]
        moments = {"mean": mean, "abs_dev": 0.5, "variance": 0.25}
        for bits in self.BITS:
            grid = affine(bits)

            def expected(lo, hi, grid=grid):
                lo, hi = torch.broadcast_tensors(lo, hi)
                return expected_mse(distribution, grid.over(lo, hi, 0 if lo.dim() else None), mean, 0.5, rectified=half)

            exact, textbook = (
                expected(*choose_range(statistics(**moments), method=method, grid=grid, domain=domain))
                for method in (f"{name}:exact", name)
            )
            alphas = 0.5 * distribution.optimal_alpha(bits + half) * torch.linspace(0.3, 2.0, 1701).double()
            ends = (torch.zeros(()).double(), max(mean, 0) + alphas) if half else (mean - alphas, mean + alphas)
            assert exact <= textbook
            assert exact <= expected(*ends).min() * 1.01  # zero points jump: many small valleys

    @pytest.mark.parametrize("name", ANALYTIC)
    @pytest.mark.parametrize("domain", [REAL, RECTIFIED], ids=lambda domain: domain.support)
    @pytest.mark.parametrize("bits", [9, 10, 12])
    def test_above_eight_bits_the_textbook_is_as_good(self, name, domain, bits):
        half = domain is RECTIFIED
        alpha = DISTRIBUTIONS[name].optimal_alpha(bits + half)
        shares = torch.cat([torch.ones(1), torch.linspace(0.98, 1.02, 401), torch.linspace(0.5, 2.0, 100)]).double()
        grid = affine(bits).over(-alpha * shares * (not half), alpha * shares, 0)
        errors = expected_mse(DISTRIBUTIONS[name], grid, rectified=half)
        assert errors[0] <= errors.min() * (1 + 2e-6)
        both = (choose_range(statistics(), method=method, grid=affine(bits)) for method in (name, f"{name}:exact"))
        assert next(both) == next(both)

    @pytest.mark.parametrize("name", ANALYTIC)
    def test_gains_at_few_bits(self, name):
        gains = {}
        for bits in (2, 3):
            ends = (choose_range(statistics(), method=m, grid=affine(bits)) for m in (f"{name}:exact", name))
            exact, textbook = (expected_mse(DISTRIBUTIONS[name], affine(bits).over(*each)).item() for each in ends)
            gains[bits] = 1 - exact / textbook
        assert 0.01 < gains[2] < 0.03
        assert 0.001 < gains[3] < 0.01

    @pytest.mark.parametrize("name", ANALYTIC)
    def test_per_channel_is_per_tensor_stacked(self, name):
        x = torch.stack([samples(kind, 3000)[:3000] * (i + 1) for i, kind in enumerate(KINDS)])
        whole = choose_range(measured(x, axis=0), method=f"{name}:exact", grid=affine(3))
        for c in range(5):
            one = choose_range(measured(x[c]), method=f"{name}:exact", grid=affine(3))
            assert [end[c].item() for end in whole] == pytest.approx([end.item() for end in one], rel=1e-9)


class TestAuto:
    @pytest.mark.parametrize("suffix", ["", ":exact"])
    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    @pytest.mark.parametrize("domain", [REAL, RECTIFIED, NONNEGATIVE], ids=lambda domain: domain.support)
    def test_takes_the_distribution_that_fits(self, suffix, bits, domain):
        generator = torch.Generator().manual_seed(1)
        x = torch.stack([torch.randn(100_000, generator=generator), laplace_samples(generator, 100_000)])
        x = x.abs() if domain is NONNEGATIVE else x
        every = {
            name: choose_range(measured(x, axis=0), method=name + suffix, grid=affine(bits), domain=domain)
            for name in ("auto", *ANALYTIC)
        }
        for end in (0, 1):
            assert every["auto"][end][0] == every["gaussian"][end][0]
            assert every["auto"][end][1] == every["laplace"][end][1]


class TestAcrossBatches:
    def test_means_of_each_batchs_extremes_or_the_extremes_of_all(self):
        x = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 6.0])]
        both = TensorStatistics.merged([measured(batch) for batch in x])
        ends = {
            across: choose_range(both, method="minmax", grid=affine(4), across_batches=across)
            for across in ("max", "mean")
        }
        assert ends == {"max": (-3, 6), "mean": (-2, 4)}
        lo, hi = choose_range(both, method="minmax", grid=affine(4), across_batches="mean", domain=RECTIFIED)
        assert (lo, hi) == (0, 4)

    @pytest.mark.parametrize(("upper", "expected"), [(None, (0.25, 26.5)), (6, (0.25, 3.0))])
    def test_of_a_relus_output_they_are_means_of_its_own_extremes(self, upper, expected):
        """Four batches of a ReLU's input; two never reach it, one saturates a ReLU6."""
        domain = Domain("rectified", upper)
        x = [torch.tensor(ends) for ends in ([-5.0, -1.0], [-9.0, -2.0], [-3.0, 6.0], [1.0, 100.0])]
        records = [TensorStatistics.from_tensor(batch, limits=domain.limits, histogram=True) for batch in x]
        both = TensorStatistics.merged(records)
        lo, hi = choose_range(both, method="minmax", grid=affine(4), across_batches="mean", domain=domain)
        assert (lo, hi) == expected
        assert choose_range(both, method="minmax", grid=affine(4), domain=domain) == (0, upper or 100)

    @pytest.mark.parametrize("method", ["mse", "lp", "lp:1", "kl", "percentile:99", "auto:exact"])
    @pytest.mark.parametrize("largest", [1e3, 5e3, 1e5])
    def test_a_ceiling_is_no_less_where_bins_are_wider_than_it(self, method, largest):
        """Half of a ReLU6's outputs are 6, though its inputs' histogram has no such bin."""
        x = samples("gaussian") / samples("gaussian").abs().max() * largest
        lo, hi = choose_range(measured(x), method=method, grid=affine(4), domain=Domain("rectified", 6.0))
        assert lo == 0
        assert 5.99 <= hi <= 6

    @pytest.mark.parametrize("method", CLIPPINGS)
    @pytest.mark.parametrize("domain", [REAL, RECTIFIED])
    def test_every_method_stays_inside_the_means(self, method, domain):
        batches = samples("laplace").split(1000)
        both = TensorStatistics.merged([measured(batch) for batch in batches])
        lo, hi = choose_range(both, method=method, grid=affine(4), across_batches="mean", domain=domain)
        assert both.min_mean * (domain is REAL) <= lo <= hi <= both.max_mean

    def test_unknown(self):
        with pytest.raises(InputError, match="across_batches must be one of max, mean, got 'median'"):
            choose_range(statistics(), method="minmax", grid=affine(4), across_batches="median")


class TestRefusals:
    @pytest.mark.parametrize(
        ("method", "message"),
        [
            (
                "percentile:0",
                "clip='percentile:0': P in percentile:P must be a number above 0 and at most 100, as in perc",
            ),
            ("percentile:101", "at most 100"),
            ("percentile:", "P in percentile:P must be"),
            ("percentile:nan", "P in percentile:P must be"),
            ("percentile:high", "P in percentile:P must be"),
            ("std:-1", "clip='std:-1': K in std:K must be a number above 0, as in std:3"),
            ("std:inf", "K in std:K must be"),
            ("lp:0", "P in lp:P must be a number above 0"),
            ("minmax:3", "clip='minmax:3': write 'minmax', which has no parameter"),
            ("mse:2", "write 'mse', which has no parameter"),
            ("laplace:exakt", "clip='laplace:exakt': write 'laplace' or 'laplace:exact'"),
            ("auto:", "write 'auto' or 'auto:exact'"),
            ("percentil:99", "did you mean 'percentile:99'"),
            ("MSE", "clip must be one of"),
            ("", "clip must be one of"),
        ],
    )
    def test_parameters(self, method, message):
        for check in (check_clipping, needs_histogram):
            with pytest.raises(InputError, match=re.escape(message)):
                check(method)

    def test_all_that_are_known_pass(self):
        for method in (
            *CLIPPINGS,
            "percentile:99.9",
            "std:2.5",
            "lp:3",
            "laplace:exact",
            "gaussian:exact",
            "auto:exact",
        ):
            assert check_clipping(method) == method
            assert needs_histogram(method) == (method.partition(":")[0] in ("percentile", "mse", "lp", "kl", "auto"))

    @pytest.mark.parametrize("method", [method for method in CLIPPINGS if needs_histogram(method)])
    def test_no_histogram(self, method):
        with pytest.raises(InputError, match=f"clip='{method}' needs statistics that hold a histogram"):
            choose_range(statistics(), method=method, grid=affine(4))

    def test_unknown_method_gets_a_hint(self):
        with pytest.raises(
            InputError,
            match=r"clip must be one of minmax, percentile\[:P\], .*auto\[:exact\], got 'laplce' .*'laplace'",
        ):
            check_clipping("laplce")

    @pytest.mark.parametrize("method", [5, None, True, ["minmax"]])
    def test_a_method_that_is_no_name(self, method):
        with pytest.raises(InputError, match=r"clip must be one of minmax"):
            check_clipping(method)

    @pytest.mark.parametrize("method", CLIPPINGS)
    def test_nothing_observed(self, method):
        with pytest.raises(InputError, match=r"no value was observed.*empty"):
            choose_range(measured(torch.zeros(0)), method=method, grid=affine(4))

    @pytest.mark.parametrize("method", CLIPPINGS)
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_values_that_are_not_finite(self, method, value):
        for domain in (REAL, RECTIFIED, UNIT):
            with pytest.raises(InputError, match=r"holds NaN or infinite values"):
                choose_range(measured(torch.tensor([0.0, value])), method=method, grid=affine(4), domain=domain)
