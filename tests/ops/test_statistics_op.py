"""tensor_statistics against the reference and numpy."""

import ctypes
import mmap
import sys

import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, assert_same, cut_tensors
from op_checks import AXES, both, check_statistics

from pytorch_quantizer import ops

inf, nan = float("inf"), float("nan")


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

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_channels_cut_in_every_way(self, device, threads, count):
        threads(count)
        for x, axis in cut_tensors():
            check_statistics(x.to(device), axis)

    def test_many_channels(self, device):
        check_statistics(torch.randn(5, 5001, generator=torch.Generator().manual_seed(0)).to(device), 1)
        check_statistics(torch.randn(5001, 5, generator=torch.Generator().manual_seed(0)).to(device), 0)

    def test_one_dimension_of_channels(self, device):
        x = torch.tensor([-1.0, 0.0, 2.0], device=device)
        assert_same(*both("tensor_statistics", x, axis=0))
        assert_same(*both("histogram", x, torch.zeros(3, dtype=torch.int64, device=device), bins=8, axis=0))

    def test_empty(self, device):
        for x, axis in ((torch.zeros(0), None), (torch.zeros(2, 0), 0), (torch.zeros(0, 2), 1)):
            got = ops.tensor_statistics(x.to(device), axis=axis).reshape(9, -1)[:, 0]
            assert got.tolist() == [0, inf, -inf, 0, 0, 0, 0, 0, 0]
        assert ops.tensor_statistics(torch.zeros(2, 0, device=device), axis=1).shape == (9, 0)

    @pytest.mark.parametrize("value", [nan, inf, -inf])
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

    @pytest.mark.parametrize("channel", [0, 15, 21, 32, 36])
    def test_what_is_not_finite_shows_in_its_channel_alone(self, device, channel):
        x = torch.randn(2, 37, 5, 7, generator=torch.Generator().manual_seed(0)).to(device)
        x[1, channel, 2, 3], x[0, channel - 1, 2, 3], x[1, channel - 1, 1, 1] = torch.tensor([nan, inf, -inf])
        ends = ops.tensor_statistics(x.contiguous(memory_format=torch.channels_last), axis=1)[1:3]
        assert ends.isnan().nonzero().tolist() == [[0, channel], [1, channel]]
        assert ends[:, channel - 1].tolist() == [-inf, inf]
        assert ends.isfinite().sum() == 2 * 35

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


class TestOneRead:
    """Large tensors: the mean's neighbours are kept, all else is settled in one read, whatever the sample promised."""

    N = 2**22 + 77

    def normal(self):
        return torch.randn(self.N, generator=torch.Generator().manual_seed(0))

    def known_middle(self, tail):
        """2²² elements whose middle is [−3/16, 3/16], many of them its ends, then a tail that no sample takes.

        Whichever runs of 16 the sample takes, their sums are those of their blocks of 2048: 64, −64, 0, 0 in turns.
        """
        above = torch.tensor([4.0] * 14 + [3 / 16, 8 - 3 / 16])
        between = torch.tensor([4.0, -4.0]).repeat(8)
        blocks = torch.stack([above, -above, between, between])[:, None].expand(4, 128, 16)
        return torch.cat([blocks.flatten().repeat(2**22 // blocks.numel()), torch.tensor(tail)])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_matches_float64(self, device, dtype):
        check_statistics((self.normal() + 0.2).to(device, dtype), None)

    def test_zeros_of_a_relu(self, device):
        check_statistics(self.normal().relu().to(device), None)

    def test_any_number_of_threads_and_instruction_set_gives_the_same_bits(self, threads, isa, monkeypatch):
        x = self.normal()
        expected = ops.tensor_statistics(x)
        for count in (1, 2, 3):
            threads(count)
            assert_same(ops.tensor_statistics(x), expected)
        monkeypatch.setenv("PQ_CPU_CAPABILITY", "baseline")
        assert_same(ops.tensor_statistics(x), expected)

    @pytest.mark.parametrize("value", [1e5, -1e5])
    def test_mean_outside_the_middle(self, device, value):
        x = self.normal()
        x[20001:20015] = value
        check_statistics(x.to(device), None)

    @pytest.mark.parametrize("every", [2, 30])  # more than is worth keeping, and what is kept
    def test_zeros_beside_the_mean(self, device, every):
        x = self.normal() - 0.003
        x[::every] = 0.0
        check_statistics(x.to(device), None)

    def test_chunks_full_of_the_means_neighbours(self, device):
        x = self.normal()
        x[100_000:120_000] *= 0.003
        check_statistics(x.to(device), None)

    @pytest.mark.parametrize("tail", [0, 1, 77])  # the last: a word of 64, a step of 8 and five elements
    def test_ends_of_the_middle(self, device, tail):
        last = [3 / 16, 1 / 8, 4.0, -3 / 16, 3 / 16] * 16
        check_statistics(self.known_middle(last[:tail]).to(device), None)

    def test_first_rows_have_the_bits_of_two_reads(self, isa):
        """The others differ in their last bits, or it was no single read and these tests test nothing."""
        x = self.normal()
        once, twice = ops.tensor_statistics(x), ops.tensor_statistics(torch.stack([x, x], 1)[:, 0])
        first = [0, 1, 2, 3, 6, 7, 8]
        assert_same(once[first], twice[first])
        torch.testing.assert_close(once, twice, rtol=1e-13, atol=0)
        assert not torch.equal(once, twice)

    def test_channels_take_two_reads(self, device):
        x = torch.stack([self.normal(), self.normal() * 2 + 0.1]).to(device)
        expected = torch.stack([ops.tensor_statistics(row) for row in x], 1)
        for channels, axis in ((x, 0), (x.T.contiguous(), 1)):
            torch.testing.assert_close(ops.tensor_statistics(channels, axis=axis), expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
    def test_reads_nothing_beyond_the_tensor(self):
        size = 2**24  # bytes, and as many behind them that nobody may read
        x = torch.frombuffer(mmap.mmap(-1, 2 * size), dtype=torch.float32, count=size // 4)
        x.copy_(self.normal()[: size // 4])
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(x.data_ptr() + size), ctypes.c_size_t(size), 0) == 0
        check_statistics(x, None)
        assert ops.tensor_statistics(x[-1:].expand(x.shape))[3] == x[-1]

    def test_mean_far_from_zero(self, device):
        x = self.normal() + 100
        got, expected = both("tensor_statistics", x.to(device))
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)

    def test_sample_that_exaggerates_the_variance(self, device):
        """The first element is in the sample: 7000 there look like a hundred times the variance that they make."""
        x = 280 + torch.sign(self.normal()) + 0.01 * self.normal()
        x[0] = 7000
        got, expected = both("tensor_statistics", x.to(device))
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)

    @pytest.mark.parametrize("place", [0, 20001])  # in the sample, and between its runs
    def test_what_is_not_finite_shows(self, device, place):
        x = self.normal().to(device)
        x[place] = inf
        assert ops.tensor_statistics(x)[2:4].tolist() == [inf, inf]
        x[place] = nan
        assert ops.tensor_statistics(x)[1:6].isnan().all()
