"""Promises 1, 2 and 7 for the ops: the kernels equal the reference to the bit, whatever the device, the instruction
set, the threads and the layout; the forms, the gradient, the checks, opcheck and torch.compile.
"""

import os

import numpy as np
import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, assert_same, hard_grid, hard_tensor, hard_values
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_quantizer import InputError, ops, reference
from pytorch_quantizer.backend import module_path

INT = torch.int32
AXES = (None, 0, 1, 2, -1)
RANDOM = {"seed": 2**40 + 7, "offset": 2**33 - 100}  # an offset whose counters cross a 32-bit word
raw = torch.ops.pytorch_quantizer


def both(name, x, *args, **keywords):
    """The op's result and the reference's."""
    return getattr(ops, name)(x, *args, **keywords), getattr(reference, name)(x, *args, **keywords)


def gradients(x, grad, grid, axis, rounding):
    leaf = x.detach().requires_grad_()
    y = ops.fake_quantize(leaf, *grid, axis=axis, rounding=rounding, **RANDOM)
    (dx,) = torch.autograd.grad(y, leaf, grad)
    keywords = {"axis": axis, "rounding": rounding} | RANDOM
    return dx, reference.fake_quantize_backward(grad, leaf, *grid, **keywords)


def check_all(x, axis, rounding, qmin=0, qmax=15):
    """Every elementwise op on x equals the reference to the bit."""
    grid = (*hard_grid(x, axis, qmin, qmax), qmin, qmax)
    assert_same(*both("fake_quantize", x, *grid, axis=axis, rounding=rounding, **RANDOM))
    codes, expected = both("quantize", x, *grid, axis=axis, rounding=rounding, **RANDOM)
    assert_same(codes, expected)
    assert_same(*both("dequantize", codes, *grid[:2], axis=axis, dtype=x.dtype))
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    assert_same(*gradients(x, grad, grid, axis, rounding))


def check_ties(device):
    """Ties, the numbers next to them, and odd numbers so large that adding a half would round them."""
    ties = torch.arange(-300, 300) + 0.5
    up, down = torch.tensor(1e9), torch.tensor(-1e9)
    x = torch.cat([ties, torch.nextafter(ties, up), torch.nextafter(ties, down), torch.arange(-9.0, 9.0) + 2.0**23])
    unit = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device)
    for rounding in ops.ROUNDINGS:
        assert_same(*both("quantize", x.to(device), *unit, -(2**24), 2**24, rounding=rounding))


def check_half_ties(device):
    """Results halfway between two float16 or bfloat16 numbers, subnormal ones and the step to infinity included."""
    codes = torch.arange(-128, 128, dtype=torch.int16, device=device)
    for scale in (
        1 + 2.0**-11,
        1 + 3 * 2.0**-11,
        1 + 2.0**-8,
        1 + 3 * 2.0**-8,
        2.0**-25,
        3 * 2.0**-25,
        65520.0,
        65519.0,
    ):
        grid = torch.tensor(scale, device=device), torch.tensor(0, dtype=INT, device=device)
        exact = reference.dequantize(codes, *grid)
        for dtype in (torch.float16, torch.bfloat16):
            assert_same(ops.dequantize(codes, *grid, dtype=dtype), exact.to(dtype))


class TestParity:
    """Kernel = reference, bit for bit, on hard inputs."""

    @pytest.mark.parametrize("rounding", ops.ROUNDINGS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_and_axes(self, device, layout, dtype, rounding):
        x = hard_tensor(layout, dtype, device)
        for axis in AXES:
            check_all(x, axis, rounding)

    def test_ties_and_their_neighbours(self, device):
        check_ties(device)
        check_half_ties(device)

    def test_ties_on_each_instruction_set(self, isa):
        check_ties("cpu")
        check_half_ties("cpu")

    @pytest.mark.parametrize("rounding", ops.ROUNDINGS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_instruction_sets(self, isa, dtype, rounding):
        for layout in ("contiguous", "channels_last", "strided"):
            for axis in AXES:
                check_all(hard_tensor(layout, dtype), axis, rounding)

    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("bits", range(1, 17))
    def test_bit_widths(self, device, bits, signed):
        qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        x = hard_values(5000, dtype=torch.float32).to(device)
        for scale in (0.75, 20.0 / 2**bits):
            grid = (*hard_grid(x, None, qmin, qmax, scale), qmin, qmax)
            assert_same(*both("fake_quantize", x, *grid))
            codes, expected = both("quantize", x, *grid)
            assert_same(codes, expected)
            assert codes.dtype == reference.smallest_dtype(qmin, qmax)
            assert_same(*both("dequantize", codes, *grid[:2]))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
    def test_code_dtypes(self, device, dtype):
        x = hard_values(3000).to(device)
        for qmin, qmax in ((0, 127), (0, 1)):
            codes, expected = both("quantize", x, *hard_grid(x, None, qmin, qmax), qmin, qmax, dtype=dtype)
            assert_same(codes, expected)
            for out in DTYPES:
                assert_same(*both("dequantize", codes, *hard_grid(x, None), dtype=out))

    def test_sizes_off_every_vector_width(self, device):
        sizes = [*range(70), 2047, 2048, 2049, 32768 + 5, 2 * 32768 + 31]
        for n in sizes:
            x = hard_values(n, seed=n).to(device)
            check_all(x, None, "half_even")
            check_all(x.view(1, n), 1, "half_away")
        for channels in (2, 3, 7, 31, 2047, 2049, 5000):
            check_all(hard_values(3 * channels, seed=channels).view(3, channels).to(device), 1, "half_even")

    def test_empty_and_scalar(self, device):
        for shape in ((0,), (0, 3), (3, 0), ()):
            check_all(torch.full(shape, 1.7, device=device), None, "stochastic")
        check_all(torch.zeros(0, 3, device=device), 1, "half_even")
        check_all(torch.zeros(3, 0, device=device), 0, "half_even")

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), 1e-45, 2.0**-126, 3.4028235e38])
    def test_scales_at_and_beyond_the_edge(self, device, scale):
        x = hard_values(500).to(device)
        grid = torch.tensor(scale, device=device), torch.tensor(3, dtype=INT, device=device), 0, 15
        y, expected = both("fake_quantize", x, *grid)
        assert_same(y, expected)
        assert y.isnan().all() == (not 0 < scale < float("inf"))

    def test_parameters_need_not_be_contiguous(self, device):
        x = hard_tensor("contiguous", device=device)
        scale, zero_point = hard_grid(x, 1)
        wide = torch.stack([scale, scale + 1], 1)[:, 0], torch.stack([zero_point, zero_point], 1)[:, 0]
        assert wide[0].stride() == (2,)
        assert_same(
            ops.fake_quantize(x, *wide, 0, 15, axis=1), reference.fake_quantize(x, scale, zero_point, 0, 15, axis=1)
        )

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_random_shapes_and_orders(self, data):
        shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
        order = data.draw(st.permutations(range(len(shape))))
        step = data.draw(st.lists(st.integers(1, 2), min_size=len(shape), max_size=len(shape)))
        x = hard_values(int(np.prod(shape)), seed=len(shape)).view(shape).permute(order)
        x = x[tuple(slice(None, None, s) for s in step)]
        axis = data.draw(st.none() | st.integers(-x.dim(), x.dim() - 1))
        check_all(x, axis, data.draw(st.sampled_from(ops.ROUNDINGS)))

    @pytest.mark.large
    @pytest.mark.skipif(not os.environ.get("PQ_LARGE"), reason="opt-in by PQ_LARGE=1: needs 16 GiB")
    def test_more_than_2_31_elements(self, device):
        n = 2**31 + 4099
        x = torch.zeros(n, dtype=torch.bfloat16, device=device)
        x[-5000:] = hard_values(5000, dtype=torch.bfloat16).to(device)
        grid = (*hard_grid(x, None), 0, 15)
        for rounding in ops.ROUNDINGS:
            keywords = {"rounding": rounding, "seed": 3}
            tail = ops.fake_quantize(x, *grid, offset=0, **keywords)[-5000:].clone()
            assert_same(tail, reference.fake_quantize(x[-5000:], *grid, offset=n - 5000, **keywords))
        statistics = ops.tensor_statistics(x)
        assert statistics[0] == n
        assert statistics[6] == (x[-5000:] > 0).sum()


class TestThreads:
    def test_any_number_of_threads_gives_the_same_bits(self, threads):
        x = hard_tensor("contiguous").repeat(40, 1, 1, 1)
        grid = (*hard_grid(x, 1), 0, 15)
        results = []
        for count in (1, 2, 3, 7):
            threads(count)
            y = ops.fake_quantize(x, *grid, axis=1, rounding="stochastic", seed=5)
            last = torch.randn(5000, 37, generator=torch.Generator().manual_seed(0))
            statistics = [
                ops.tensor_statistics(x),
                ops.tensor_statistics(x.abs(), axis=1),
                ops.tensor_statistics(last, axis=1),
            ]
            results.append((y, *statistics))
        for result in results[1:]:
            for one, other in zip(results[0], result, strict=True):
                assert_same(one, other)


class TestStochastic:
    def test_depends_on_the_logical_index_alone(self, device):
        x = torch.randn(6, 8, 5, 7, generator=torch.Generator().manual_seed(0)).to(device)
        grid = (*hard_grid(x, None), -8, 7)
        y = ops.fake_quantize(x, *grid, rounding="stochastic", seed=9)
        layouts = [
            x.contiguous(memory_format=torch.channels_last),
            x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        ]
        for other in layouts:
            assert other.stride() != x.stride()
            assert torch.equal(ops.fake_quantize(other, *grid, rounding="stochastic", seed=9), y)

    def test_offset_continues_the_sequence(self, device):
        x = hard_values(3000).nan_to_num().to(device)
        grid = (*hard_grid(x, None), -8, 7)
        whole = ops.quantize(x, *grid, rounding="stochastic", seed=1)
        rest = ops.quantize(x[1234:], *grid, rounding="stochastic", seed=1, offset=1234)
        assert torch.equal(whole[1234:], rest)
        assert not torch.equal(whole, ops.quantize(x, *grid, rounding="stochastic", seed=2))

    def test_values_on_the_grid_never_move(self, device):
        codes = torch.arange(-128, 128, device=device).repeat(200).to(torch.int16)
        scale, zero_point = torch.tensor(0.125, device=device), torch.tensor(3, dtype=INT, device=device)
        x = ops.dequantize(codes, scale, zero_point)
        for seed in range(5):
            moved = ops.quantize(x, scale, zero_point, -128, 127, rounding="stochastic", seed=seed, dtype=torch.int16)
            assert torch.equal(moved, codes)

    def test_goes_up_only_where_u_is_less_than_the_fraction(self, device):
        u = reference.uniform24(torch.Size([5000]), 7, 3, device)
        unit = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device), 0, 15
        keywords = {"rounding": "stochastic", "seed": 7, "offset": 3}
        assert (ops.quantize(u, *unit, **keywords) == 0).all()
        assert (ops.quantize(u + 2.0**-24, *unit, **keywords) == 1).all()

    @pytest.mark.parametrize("fraction", [0.03125, 0.25, 0.5, 0.9375])
    def test_unbiased(self, device, fraction):
        # n draws of a Bernoulli(f): the mean is within 5·√(f(1 − f)/n) of f but for 6 in 10⁷ seeds; this one is fixed.
        n = 400_000
        x = torch.full((n,), 3 + fraction, device=device)
        grid = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device), 0, 15
        y = ops.fake_quantize(x, *grid, rounding="stochastic", seed=11).double()
        assert set(y.unique().tolist()) == {3.0, 4.0}
        assert abs(y.mean().item() - 3 - fraction) <= 5 * (fraction * (1 - fraction) / n) ** 0.5


class TestGradient:
    """Straight-through: dx = g inside the grid, 0 outside; by the closed form, not by finite differences."""

    def test_closed_form(self, device):
        x = torch.tensor(
            [-1.3, -1.2, 0.0, 5.0, 6.2, 6.3, float("inf"), float("nan")], device=device, requires_grad=True
        )
        scale, zero_point = torch.tensor(0.5, device=device), torch.tensor(2, dtype=INT, device=device)
        g = torch.arange(1.0, 9.0, device=device)
        ops.fake_quantize(x, scale, zero_point, 0, 14).backward(g)
        # round(−1.3/0.5) + 2 = −1 is outside, round(−1.2/0.5) + 2 = 0 inside; 6.2 → 14 inside, 6.3 → 15 outside.
        assert x.grad.tolist() == [0, 2, 3, 4, 5, 0, 0, 0]

    def test_infinite_gradient_outside_the_grid_is_zero(self, device):
        x = torch.tensor([100.0, 1.0], device=device, requires_grad=True)
        grid = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device), 0, 15
        ops.fake_quantize(x, *grid).backward(torch.tensor([float("inf")] * 2, device=device))
        assert x.grad.tolist() == [0, float("inf")]

    def test_parameters_get_none_and_a_scale_that_needs_one_is_refused(self, device):
        x = torch.ones(3, device=device, requires_grad=True)
        zero_point = torch.tensor(0, dtype=INT, device=device)
        with pytest.raises(InputError, match=r"scale must not need a gradient"):
            ops.fake_quantize(x, torch.tensor(1.0, device=device, requires_grad=True), zero_point, 0, 15)

    def test_second_derivative_is_refused(self, device):
        x = torch.ones(3, device=device, requires_grad=True)
        grid = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device), 0, 15
        (dx,) = torch.autograd.grad((ops.fake_quantize(x, *grid) ** 2).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()


class TestForms:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_out_of_any_layout(self, device, layout):
        x = hard_tensor(layout, device=device)
        grid = (*hard_grid(x, 1), 0, 15)
        expected = reference.fake_quantize(x, *grid, axis=1, rounding="stochastic", seed=4)
        for out in (torch.empty(x.shape, device=device), torch.empty(x.shape[::-1], device=device).permute(3, 2, 1, 0)):
            got = ops.fake_quantize(x, *grid, axis=1, rounding="stochastic", seed=4, out=out)
            assert got is out
            assert_same(out.contiguous(), expected.contiguous())

    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
    def test_in_place(self, device, layout):
        for dtype in DTYPES:
            x = hard_tensor(layout, dtype, device)
            grid = (*hard_grid(x, 1), 0, 15)
            expected = reference.fake_quantize(x, *grid, axis=1)
            assert ops.fake_quantize(x, *grid, axis=1, out=torch.empty_like(x)) is not x
            assert ops.fake_quantize_(x, *grid, axis=1) is x
            assert_same(x.contiguous(), expected.contiguous())

    def test_strided_in_place_leaves_the_rest_alone(self, device):
        wide = torch.full((100, 10), 0.3, device=device)
        ops.fake_quantize_(wide[:, ::2], *hard_grid(wide, None), 0, 15)
        assert (wide[:, 1::2] == 0.3).all()
        assert (wide[:, ::2] != 0.3).all()

    def test_no_gradient_is_lost_in_silence(self, device):
        x = torch.ones(3, device=device, requires_grad=True)
        grid = (*hard_grid(x, None), 0, 15)
        with pytest.raises(InputError, match=r"fake_quantize_ has no gradient .* torch\.no_grad"):
            ops.fake_quantize_(x, *grid)
        with pytest.raises(InputError, match=r"out= has no gradient"):
            ops.fake_quantize(x, *grid, out=torch.empty(3, device=device))
        with torch.no_grad():
            ops.fake_quantize_(x, *grid)

    def test_autograd_notices_that_a_saved_tensor_was_overwritten(self, device):
        for write in (ops.fake_quantize_, lambda y, *grid: ops.fake_quantize(y.clone(), *grid, out=y)):
            x = torch.ones(3, device=device, requires_grad=True)
            y = x.exp()  # saves its result
            with torch.no_grad():
                write(y.detach(), *hard_grid(y, None), 0, 15)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_out_that_shares_memory_is_refused(self, device):
        x = torch.zeros(100, device=device)
        grid = (*hard_grid(x, None), 0, 15)
        with pytest.raises(RuntimeError, match="not overlap"):
            ops.fake_quantize(x[:90], *grid, out=x[10:])
        with pytest.raises(RuntimeError, match="expanded"):
            ops.fake_quantize(x, *grid, out=torch.zeros(1, device=device).expand(100))


class TestStatistics:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_matches_float64(self, device, layout, dtype):
        x = LAYOUTS[layout](torch.randn(3, 19, 5, 23, generator=torch.Generator().manual_seed(0)).to(device, dtype))
        for axis in AXES:
            check_statistics(x, axis)

    def test_instruction_sets_agree_to_the_bit(self, isa, monkeypatch):
        for x in (torch.randn(70, 333, 3), torch.randn(70, 333, 3).half()):
            for axis in (None, 0, 1, 2):
                here = ops.tensor_statistics(x, axis=axis)
                monkeypatch.setenv("PQ_CPU_CAPABILITY", "baseline")
                assert_same(here, ops.tensor_statistics(x, axis=axis))
                monkeypatch.setenv("PQ_CPU_CAPABILITY", isa)

    def test_sizes_around_the_chunks(self, device):
        for n in (1, 3, 4, 5, 255, 256, 257, 2047, 2048, 2049, 16383, 16384, 16385, 70001):
            x = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(device)
            check_statistics(x, None)
            check_statistics(torch.stack([x, x + 1, x * 2], 1), 1)
            check_statistics(torch.stack([x, x + 1, x * 2]), 0)

    def test_many_channels(self, device):
        check_statistics(torch.randn(5, 5001, generator=torch.Generator().manual_seed(0)).to(device), 1)
        check_statistics(torch.randn(5001, 5, generator=torch.Generator().manual_seed(0)).to(device), 0)

    def test_empty(self, device):
        inf = float("inf")
        for x, axis in ((torch.zeros(0), None), (torch.zeros(2, 0), 0), (torch.zeros(0, 2), 1)):
            got = ops.tensor_statistics(x.to(device), axis=axis).reshape(9, -1)[:, 0]
            assert got.tolist() == [0, inf, -inf, 0, 0, 0, 0, 0, 0]
        assert ops.tensor_statistics(torch.zeros(2, 0, device=device), axis=1).shape == (9, 0)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("place", [0, 37, 2047, 4998, 4999])
    def test_what_is_not_finite_shows(self, device, value, place):
        x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
        x[place] = value
        got, expected = both("tensor_statistics", x.to(device))
        assert torch.equal(got.isfinite(), expected.isfinite())
        exact = [0, 1, 2, 6]
        assert_same(got[exact], expected[exact])
        wide = torch.stack([x, torch.ones(5000)], 1).to(device)
        assert ops.tensor_statistics(wide, axis=1)[:, 1].isfinite().all()

    def test_signed_zeros_do_not_depend_on_the_order(self, device):
        x = torch.tensor([-0.0, 0.0] * 50, device=device)
        for values in (x, -x):
            assert not torch.signbit(ops.tensor_statistics(values)[1:3]).any()

    def test_huge_values_do_not_overflow(self, device):
        statistics = ops.tensor_statistics(torch.full((1000,), 3.4e38, device=device))
        assert statistics.isfinite().all()

    def test_repeats_to_the_bit(self, device):
        x = torch.randn(3, 70001, device=device)
        for axis in (None, 0):
            assert_same(ops.tensor_statistics(x, axis=axis), ops.tensor_statistics(x, axis=axis))


class TestHistogram:
    EXPONENTS = (-126, -60, -12, -8, -1, 0, 1, 30, 127)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_matches_the_reference(self, device, layout, dtype):
        x = hard_tensor(layout, dtype, device)
        for axis in AXES:
            check_histograms(x, axis, (-8, 1))

    @pytest.mark.parametrize("bins", [2, 64, 2048, 4096, 8192, 2**15])
    def test_every_number_of_bins_and_width(self, device, bins):
        edges = torch.arange(-1030, 1030) * torch.tensor([2.0**-8, 2.0**-126, 2.0**117])[:, None]
        around = [edges, torch.nextafter(edges, torch.tensor(3e38)), torch.nextafter(edges, torch.tensor(-3e38))]
        x = torch.cat([*map(torch.flatten, around), hard_values(5000)]).to(device)
        check_histograms(x, None, self.EXPONENTS, bins)

    def test_instruction_sets_agree(self, isa, monkeypatch):
        x, exponent = hard_values(70_000).view(7, 10_000), torch.arange(-3, 4)
        here = ops.histogram(x, exponent, bins=2048, axis=0)
        monkeypatch.setenv("PQ_CPU_CAPABILITY", "baseline")
        assert_same(here, ops.histogram(x, exponent, bins=2048, axis=0))

    def test_sizes_around_the_chunks(self, device):
        for n in (0, 1, 3, 4, 5, 2047, 2048, 2049, 16383, 16385, 70_001):
            x = hard_values(n).to(device)
            check_histograms(x, None, (-3,))
            check_histograms(torch.stack([x, x + 1, x * 2], 1), 1, (-3,))
            check_histograms(torch.stack([x, x + 1, x * 2]), 0, (-3,), 64)

    def test_any_number_of_threads_counts_the_same(self, threads):
        x, exponent = torch.randn(3, 200_001, generator=torch.Generator().manual_seed(0)), torch.tensor([-8, -7, -3])
        found = []
        for count in (1, 2, 3, 7):
            threads(count)
            found.append(ops.histogram(x, exponent, bins=2048, axis=0))
        assert all(torch.equal(found[0], other) for other in found[1:])
        assert found[0].sum(1).tolist() == [200_001] * 3

    def test_refusals(self):
        x, exponent = torch.ones(2, 3), torch.zeros(3, dtype=torch.int64)
        for bins in (0, 1, 3, 2**25):
            with pytest.raises(InputError, match=rf"bins must be a power of two from 2 to 16777216, got {bins}"):
                ops.histogram(x, exponent, bins=bins, axis=1)
        for wrong, axis in ((exponent, None), (exponent, 0), (exponent.int(), 1), (exponent.to("meta"), 1)):
            with pytest.raises(InputError, match=r"exponent must be int64 \[.*\] on x's device cpu, got"):
                ops.histogram(x, wrong, bins=2, axis=axis)
        with pytest.raises(RuntimeError, match="exponent must have one element a channel"):
            raw.histogram(x, exponent, 2, 0)
        with pytest.raises(RuntimeError, match="bins must be a power of two"):
            raw.histogram(x, exponent, 3, 1)


def check_histograms(x, axis, exponents, bins=2048):
    """Counts equal the reference's, every value counted once."""
    shape = [] if axis is None else [x.shape[axis]]
    for exponent in exponents:
        each = torch.full(shape, exponent, device=x.device)
        if axis is not None and exponent < 120:
            each += torch.arange(shape[0], device=x.device) % 3
        got, expected = both("histogram", x, each, bins=bins, axis=axis)
        assert_same(got, expected)
        assert got.sum() == x.numel()


def check_statistics(x, axis):
    """Counts, min and max exactly; sums within 1e-12 of Σ|terms| of a float64 sum over the same elements."""
    rows = x.double().cpu().numpy()
    rows = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0).reshape(x.shape[axis], -1)
    got = ops.tensor_statistics(x, axis=axis).cpu().numpy().reshape(9, -1)
    n = rows.shape[1]
    positive = np.where(rows > 0, rows, 0)
    count = (rows > 0).sum(1)
    centred = rows - rows.mean(1, keepdims=True)
    assert (got[0] == n).all()
    assert (got[1] == rows.min(1)).all()
    assert (got[2] == rows.max(1)).all()
    assert (got[6] == count).all()
    sums = {3: (rows, n), 4: (np.abs(centred), n), 5: (centred**2, n), 7: (positive, count), 8: (positive**2, count)}
    for row, (terms, divisor) in sums.items():
        # |x − mean| inherits the mean's own error, hence the magnitudes of x among the terms of rows 4 and 5.
        magnitude = np.abs(terms).sum(1) + (np.abs(rows).sum(1) if row in (4, 5) else 0)
        error = np.abs(got[row] * divisor - terms.sum(1))
        assert (error <= 1e-12 * magnitude).all(), ops.STATISTICS[row]


class TestChecks:
    """Every mistake ends in one InputError that names the argument, the rule and the value."""

    x = torch.zeros(2, 3)
    good = (torch.tensor(1.0), torch.tensor(0, dtype=INT), 0, 15)
    channels = (torch.ones(3), torch.zeros(3, dtype=INT))

    @pytest.mark.parametrize(
        ("arguments", "keywords", "message"),
        [
            ((torch.zeros(2, dtype=torch.float64), *good), {}, r"x must be float32, .* got torch\.float64"),
            ((x, torch.tensor(1), *good[1:]), {}, r"scale must be float32 .* got torch\.int64"),
            ((x, good[0], torch.tensor(0.0), 0, 15), {}, r"zero_point int32, got .*torch\.float32"),
            ((x, *channels, 0, 15), {}, r"shape \[\] with axis=None .* got \[3\] and \[3\]"),
            ((x, *channels, 0, 15), {"axis": 0}, r"shape \[2\] with axis=0"),
            ((x, channels[0], good[1], 0, 15), {"axis": 1}, r"got \[3\] and \[\]"),
            ((x, *channels, 0, 15), {"axis": 2}, r"axis must name one of the 2 dimensions .* got 2"),
            ((x, *channels, 0, 15), {"axis": -3}, r"got -3"),
            ((torch.zeros(()), *good), {"axis": 0}, r"axis must name one of the 0 dimensions"),
            ((x, *good[:2], 15, 15), {}, r"qmin < qmax must hold, .* got qmin=15, qmax=15"),
            ((x, *good[:2], 0, 2**25), {}, r"within ±2\*\*24, got .*qmax=33554432"),
            ((x, *good), {"rounding": "nearest"}, r"rounding must be one of half_even, .* got 'nearest'"),
            (
                (x, *good),
                {"rounding": "stochastic", "seed": 2**63},
                r"seed must fit in 64 bits, got 9223372036854775808",
            ),
            ((x, *good), {"rounding": "stochastic", "offset": -1}, r"offset must be between 0 .* got -1"),
            ((x, *good), {"out": torch.zeros(3, 2)}, r"out must be like x .* got \[3, 2\]"),
            ((x, *good), {"out": torch.zeros(2, 3).half()}, r"out must be like x .* got \[2, 3\], torch\.float16"),
        ],
    )
    def test_fake_quantize(self, arguments, keywords, message):
        with pytest.raises(InputError, match=message):
            ops.fake_quantize(*arguments, **keywords)

    def test_quantize_and_dequantize(self):
        with pytest.raises(InputError, match=r"dtype must hold \[qmin, qmax\] = \[0, 255\], got torch\.int8"):
            ops.quantize(self.x, *self.good[:2], 0, 255, dtype=torch.int8)
        with pytest.raises(InputError, match=r"dtype must be int8, .* got torch\.int64"):
            ops.quantize(self.x, *self.good, dtype=torch.int64)
        with pytest.raises(InputError, match=r"codes must be int8, .* got torch\.float32"):
            ops.dequantize(self.x, *self.good[:2])
        with pytest.raises(InputError, match=r"dtype must be float32, .* got torch\.float64"):
            ops.dequantize(self.x.to(torch.int8), *self.good[:2], dtype=torch.float64)

    def test_statistics(self):
        with pytest.raises(InputError, match=r"x must be float32, .* got torch\.int32"):
            ops.tensor_statistics(self.x.to(INT))
        with pytest.raises(InputError, match=r"axis must name one of the 2 dimensions of the tensor, got 5"):
            ops.tensor_statistics(self.x, axis=5)

    def test_devices_must_match(self):
        scale, zero_point = torch.tensor(1.0, device="meta"), torch.tensor(0, dtype=INT, device="meta")
        with pytest.raises(InputError, match=r"on the tensor's device cpu, got meta, meta"):
            ops.fake_quantize(self.x, scale, zero_point, 0, 15)


def raw_calls(device):
    """One call of each raw op per tensor and per channel: what opcheck examines."""
    x = hard_tensor("channels_last", device=device)[:, :, :2, :3].nan_to_num(0, 0, 0)
    for axis in (None, 1):
        scale, zero_point = torch.full_like(hard_grid(x, axis)[0], 0.5), hard_grid(x, axis)[1]
        grid = (scale, zero_point, 0, 15, -1 if axis is None else axis, 2, 1, 2)
        yield raw.fake_quantize, (x, *grid)
        yield raw.fake_quantize_, (x.clone(), *grid)
        yield raw.fake_quantize_out, (x, *grid, torch.empty_like(x))
        yield raw.fake_quantize_backward, (torch.randn_like(x), x, *grid)
        yield raw.quantize, (x, *grid, torch.uint8)
        yield (
            raw.dequantize,
            (ops.quantize(x, scale, zero_point, 0, 15, axis=axis), scale, zero_point, grid[4], torch.half),
        )
        yield raw.tensor_statistics, (x, grid[4])
        yield raw.histogram, (x, torch.zeros_like(scale, dtype=torch.int64), 64, grid[4])


class TestPyTorch:
    """opcheck, torch.compile, streams and devices."""

    def test_opcheck(self, device):
        for op, arguments in raw_calls(device):
            torch.library.opcheck(op.default, arguments)

    def test_compile_fullgraph(self, device):
        x = torch.randn(4, 6, device=device, requires_grad=True)
        scale, zero_point = torch.rand(6, device=device) + 0.1, torch.zeros(6, dtype=INT, device=device)

        def layer(x):
            return ops.fake_quantize(x * 2, scale, zero_point, -8, 7, axis=-1, rounding="stochastic", seed=3).sin()

        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_same(compiled(x), layer(x))
        grads = [torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, layer)]
        assert_same(*grads)

    def test_compile_the_other_forms(self, device):
        x = torch.randn(4, 6, device=device)
        grid = (*hard_grid(x, None), 0, 15)

        def forms(x, buffer):
            ops.fake_quantize(x, *grid, out=buffer)
            y = ops.fake_quantize_(x.clone(), *grid)
            codes = ops.quantize(x, *grid)
            statistics = ops.tensor_statistics(x, axis=0)
            counts = ops.histogram(x, torch.tensor(-3, device=device), bins=64)
            return y, codes, ops.dequantize(codes, *grid[:2]), statistics, counts, buffer + 1

        buffers = [torch.zeros_like(x) for _ in range(2)]
        compiled = torch.compile(forms, fullgraph=True, backend="aot_eager")
        for got, expected in zip(compiled(x, buffers[0]), forms(x, buffers[1]), strict=True):
            assert_same(got, expected)
        assert_same(*buffers)

    def test_a_changing_offset_does_not_recompile_for_ever(self):
        x = torch.randn(100)
        grid = (*hard_grid(x, None), 0, 15)
        compiled = torch.compile(
            lambda x, n: ops.quantize(x, *grid, rounding="stochastic", offset=n), fullgraph=True, backend="eager"
        )
        torch._dynamo.reset()
        with torch._dynamo.config.patch(error_on_recompile=False, recompile_limit=3):
            for n in range(0, 1000, 100):
                assert_same(compiled(x, n), reference.quantize(x, *grid, rounding="stochastic", offset=n))

    @pytest.mark.slow
    def test_compile_inductor(self, device):
        x = torch.randn(4, 6, device=device, requires_grad=True)
        grid = (*hard_grid(x, None), 0, 15)
        layer = lambda x: ops.fake_quantize(x * 2, *grid) + 1  # noqa: E731
        compiled = torch.compile(layer, fullgraph=True)
        assert_same(compiled(x), layer(x))
        assert_same(*[torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, layer)])

    def test_meta_tensors_keep_shape_dtype_and_layout(self):
        for layout in LAYOUTS:
            x = hard_tensor(layout)
            meta = torch.empty_strided(x.shape, x.stride(), device="meta")
            grid = torch.tensor(1.0, device="meta"), torch.tensor(0, dtype=INT, device="meta")
            for name in ("fake_quantize", "quantize"):
                real = getattr(ops, name)(x, torch.tensor(1.0), torch.tensor(0, dtype=INT), 0, 255)
                fake = getattr(ops, name)(meta, *grid, 0, 255)
                assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())

    @pytest.mark.cuda
    def test_another_stream(self, device):
        if device != "cuda":
            pytest.skip("streams are CUDA's")
        x = torch.randn(1 << 24, device=device)
        grid = (*hard_grid(x, None), 0, 15)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # what runs on the wrong stream reads x before it is written
            x.mul_(3)
            y, statistics = ops.fake_quantize(x, *grid), ops.tensor_statistics(x)
        torch.cuda.synchronize()
        assert_same(y, reference.fake_quantize(x, *grid))
        assert statistics[2] == x.max()

    @pytest.mark.cuda
    def test_second_device(self, second_device):
        x = hard_tensor("contiguous", device=second_device)
        check_all(x, 1, "half_even")
        check_statistics(torch.randn(100, 100, device=second_device), 1)
        assert torch.cuda.current_device() == 0

    @pytest.mark.cuda
    def test_nothing_waits_for_the_device(self, device):
        if device != "cuda":
            pytest.skip("the CPU has nothing to wait for")
        x = torch.randn(64, 64, device=device)
        grid = (*hard_grid(x, 1), 0, 15)
        torch.cuda.set_sync_debug_mode("error")
        try:
            ops.dequantize(ops.quantize(x, *grid, axis=1), *grid[:2], axis=1)
            ops.fake_quantize(x, *grid, axis=1)
            ops.tensor_statistics(x, axis=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
