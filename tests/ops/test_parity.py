"""Promise 1 for elementwise ops: the kernels equal the reference to the bit, whatever the device, the instruction
set, the threads and the layout."""

import os

import numpy as np
import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, assert_same, hard_grid, hard_tensor, hard_values
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import (
    AXES,
    INT,
    both,
    check_all,
    check_half_ties,
    check_ties,
)

from pytorch_quantizer import ops, reference


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

    @pytest.mark.parametrize("channels", [1, 3, 64])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_every_half_there_is(self, device, dtype, channels):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        x = x[: 2**16 // channels * channels].reshape(-1, channels).to(device)  # channels innermost, NaNs of all kinds
        scale = torch.linspace(0.03, 0.7, channels, device=device)
        zero_point = torch.arange(channels, dtype=torch.int32, device=device) % 16
        for at in range(3):  # memory off every alignment; rows of 512 begin at any of three
            y = ops.fake_quantize(x[at:], scale, zero_point, 0, 15, axis=1)
            assert_same(y, reference.fake_quantize(x[at:], scale, zero_point, 0, 15, axis=1))

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

    @pytest.mark.parametrize(("zero_point", "code"), [(-3, 0), (0, 0), (9, 9), (15, 15), (20, 15)])
    def test_what_has_no_code_takes_that_of_zero(self, device, zero_point, code):
        x, z = torch.full((37,), float("nan"), device=device), torch.tensor(zero_point, dtype=INT, device=device)
        for values, scale in ((x, 0.5), (torch.ones_like(x), 0.0)):
            codes, expected = both("quantize", values, torch.tensor(scale, device=device), z, 0, 15)
            assert_same(codes, expected)
            assert (codes == code).all()

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
