"""histogram against the reference and numpy, count by count."""

import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, assert_same, hard_tensor, hard_values
from op_checks import AXES, check_histograms, raw

from pytorch_quantizer import InputError, ops, reference


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

    def test_more_equal_values_than_a_narrow_counter_holds(self, device, threads):
        threads(1)
        x = torch.ones(2, 700_001, device=device)
        counts = ops.histogram(x, torch.tensor([0, -3], device=device), bins=64, axis=0)
        assert counts[0, 33] == 700_001
        assert counts[1, 40] == 700_001
        assert counts.sum() == x.numel()

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


class TestGrowing:
    """Bins that double in width as values grow: the same counts as of all values at once."""

    @staticmethod
    def empty(x, axis, bins=256):
        shape = [] if axis is None else [x.shape[axis]]
        counts = torch.zeros((*shape, bins + 2), dtype=torch.int64, device=x.device)
        return counts, torch.full(shape, -126, dtype=torch.int64, device=x.device)

    @staticmethod
    def largest(x, axis):
        rows = x.float().reshape(1, -1) if axis is None else x.float().movedim(axis, 0).flatten(1)
        largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
        return largest[0] if axis is None else largest

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_parity(self, device, layout, dtype):
        x = hard_tensor(layout, dtype, device)
        for values in (x, x.nan_to_num(0, 50, -50)):
            for axis in (None, 0, 1, -1):
                largest = self.largest(values, axis)
                state = self.empty(values, axis)
                for factor in (1.0, 5.0, 0.01):
                    keywords = {"largest": largest * factor, "axis": axis}
                    got = ops.growing_histogram(values * factor, *state, **keywords)
                    expected = reference.growing_histogram(values * factor, largest * factor, *state, axis=axis)
                    for one, other in zip(got, expected, strict=True):
                        assert_same(one, other)
                    state = got

    def test_batches_count_as_all_at_once(self, device):
        torch.manual_seed(0)
        batches = [torch.randn(7, 900, device=device) * scale for scale in (1.0, 1e-3, 300.0, 0.0, 2.0)]
        for axis in (None, 0):
            counts, exponent = self.empty(batches[0], axis)
            for batch in batches:
                counts, exponent = ops.growing_histogram(
                    batch, counts, exponent, largest=self.largest(batch, axis), axis=axis
                )
            whole = ops.histogram(torch.cat(batches, 1), exponent, bins=256, axis=axis)
            assert torch.equal(counts, whole)
            assert (counts[..., -1] == 0).all()

    def test_what_is_not_finite_is_not_counted_and_widens_nothing(self, device):
        x = torch.ones(3, 5, device=device)
        x[0, 1], x[2, 3] = float("nan"), float("inf")
        counts, exponent = ops.growing_histogram(x, *self.empty(x, 0), largest=self.largest(x, 0), axis=0)
        assert counts.sum(-1).tolist() == [0, 5, 0]
        assert exponent.tolist() == [-126, -6, -126]  # 1 < 256/2 · 2^−6, but not < 256/2 · 2^−7

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("counts", torch.zeros(66, dtype=torch.int32), r"counts must be torch\.int64 \[66\] .* got torch\.int32"),
            ("counts", torch.zeros(65, dtype=torch.int64), r"bins must be a power of two .* got 63"),
            ("counts", torch.zeros((), dtype=torch.int64), r"counts must be .* got torch\.int64 \[\]"),
            ("exponent", torch.zeros(2, dtype=torch.int64), r"exponent must be torch\.int64 \[\] .* got .*\[2\]"),
            ("largest", torch.tensor(1.0).double(), r"largest must be torch\.float32 \[\] .* got torch\.float64"),
            ("x", torch.zeros(3).double(), r"x must be float32, .* got torch\.float64"),
        ],
    )
    def test_one_clear_error(self, name, value, message):
        given = {
            "x": torch.zeros(3),
            "counts": torch.zeros(66, dtype=torch.int64),
            "exponent": torch.tensor(0),
            "largest": torch.tensor(0.0),
        } | {name: value}
        with pytest.raises(InputError, match=message):
            ops.growing_histogram(**given)
