"""Histogram: every value in its bin by exact arithmetic, merging that loses nothing, and what files may hold."""

import json
from collections import Counter
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_quantizer import InputError
from pytorch_quantizer.quantization.histogram import BINS, Histogram

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
tensors = st.lists(float32 | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 3.4e38]), max_size=30)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    names = ("counts", "zeros", "exponent")
    assert all(getattr(a, name).dtype == getattr(b, name).dtype == torch.int64 for name in names)
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def expected_counts(values, exponent, bins):
    """By rational arithmetic, zeros left out."""
    width = Fraction(2) ** exponent
    found = Counter(floor(Fraction(value) / width) + bins // 2 for value in values if value != 0)
    return [found.pop(i, 0) for i in range(bins)], found


class TestBins:
    @settings(deadline=None, max_examples=300)
    @given(tensors)
    def test_hold_what_exact_arithmetic_says(self, values):
        x = torch.tensor(values, dtype=torch.float32)
        h = Histogram.from_tensor(x, bins=64)
        counts, outside = expected_counts(x.tolist(), h.exponent.item(), 64)
        assert not outside
        assert h.counts.tolist() == counts
        assert h.zeros.item() == values.count(0.0)
        assert h.total.item() == len(values)

    @settings(deadline=None, max_examples=200)
    @given(st.floats(2.0**-110, 2.0**127, width=32))
    def test_are_as_narrow_as_a_power_of_two_can_be(self, largest):
        for values in ([largest], [-largest], [largest, -largest, 0.0]):
            h = Histogram.from_tensor(torch.tensor(values, dtype=torch.float32))
            half = h.width.item() * h.bins / 2
            assert half / 2 <= largest <= half

    @pytest.mark.parametrize("power", [-125, -30, -1, 0, 1, 12, 40, 117])
    def test_edges_belong_to_the_bin_above(self, power):
        width = 2.0**power
        edges = width * torch.arange(-511, 512).float()
        below = torch.nextafter(edges, torch.tensor(-torch.inf))
        h = Histogram.from_tensor(torch.cat([edges, below]), bins=1024)
        assert h.width.item() == width
        assert (h.zeros.item(), h.counts[0].item(), h.counts[512].item(), h.counts[-1].item()) == (1, 1, 1, 1)
        assert h.counts[1:512].eq(2).all()
        assert h.counts[513:-1].eq(2).all()

    @pytest.mark.parametrize("small", [-1e-30, -1e-42, -(2.0**-149)])
    def test_a_negative_value_lost_beside_large_ones_is_below_zero(self, small):
        h = Histogram.from_tensor(torch.tensor([1e30, small, -small]))
        half = h.bins // 2
        assert (h.counts[half - 1].item(), h.counts[half].item(), h.zeros.item()) == (1, 1, 0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_count_as_float32(self, dtype):
        x = randn(1000).to(dtype)
        assert same(Histogram.from_tensor(x), Histogram.from_tensor(x.float()))

    def test_any_layout(self):
        x = randn(6, 5, 4, 3)
        for form in (x.to(memory_format=torch.channels_last), x.transpose(0, 3).contiguous().transpose(0, 3)):
            for axis in (None, 0, 1, -1):
                assert same(Histogram.from_tensor(form, axis=axis), Histogram.from_tensor(x, axis=axis))

    def test_large_tensors_are_counted_in_pieces(self):
        x = randn(3, 300_001)
        whole, rows = Histogram.from_tensor(x), Histogram.from_tensor(x, axis=0)
        assert whole.counts.tolist() == expected_counts(x.flatten().tolist(), whole.exponent.item(), BINS)[0]
        assert rows.counts.sum(1).tolist() == [300_001] * 3

    def test_per_channel_is_per_tensor_stacked(self):
        x = randn(300, 7, 50) * torch.tensor([1.0, 1e-40, 0.0, 1e30, 3.0, -2.0, 1e-5]).view(7, 1)
        whole = Histogram.from_tensor(x, axis=1)
        assert whole.bins == BINS
        for c in range(7):
            one = Histogram.from_tensor(x[:, c])
            assert same(one, Histogram(whole.counts[c], whole.zeros[c], whole.exponent[c]))

    def test_many_channels_of_few_values(self):
        x = randn(1000, 3)
        whole = Histogram.from_tensor(x, axis=0)
        assert whole.counts.sum(1).eq(3).all()
        one = Histogram.from_tensor(x[777])
        assert torch.equal(one.counts, whole.counts[777])

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_empties_its_channel(self, value):
        x = torch.tensor([[1.0, value, 0.0], [1.0, 2.0, 0.0]])
        assert Histogram.from_tensor(x, axis=0).total.tolist() == [0, 3]
        assert Histogram.from_tensor(x).total.item() == 0

    def test_edges_and_centres(self):
        h = Histogram.from_tensor(torch.tensor([0.75, -0.5]), bins=8)
        assert h.edges().tolist() == [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]
        assert h.centres().tolist() == [-0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875]
        assert h.counts.tolist() == [0, 0, 1, 0, 0, 0, 0, 1]


class TestMerge:
    @settings(deadline=None, max_examples=200)
    @given(tensors, tensors, tensors)
    def test_is_the_histogram_of_all_in_any_order(self, a, b, c):
        parts = [torch.tensor(values, dtype=torch.float32) for values in (a, b, c)]
        x, y, z = (Histogram.from_tensor(part, bins=16) for part in parts)
        whole = Histogram.from_tensor(torch.cat(parts), bins=16)
        assert same(x.merge(y).merge(z), whole)
        assert same(z.merge(x.merge(y)), whole)
        assert same(y.merge(z.merge(x)), whole)

    def test_per_channel(self):
        scales = torch.tensor([1.0, 100.0, 0.0, 1e-9])
        a, b = randn(9, 4, seed=1) * scales, randn(5, 4, seed=2) * scales.flip(0)
        merged = Histogram.from_tensor(a, axis=1).merge(Histogram.from_tensor(b, axis=1))
        assert same(merged, Histogram.from_tensor(torch.cat([a, b]), axis=1))

    def test_of_other_shapes_is_refused(self):
        with pytest.raises(InputError, match=r"same channels and bins, got \[2048\] and \[3, 2048\]"):
            Histogram.from_tensor(randn(3)).merge(Histogram.from_tensor(randn(3, 2), axis=0))


class TestRectified:
    @settings(deadline=None, max_examples=200)
    @given(tensors)
    def test_is_that_of_the_rectified_tensor(self, values):
        x = torch.tensor(values, dtype=torch.float32)
        h = Histogram.from_tensor(x, bins=64)
        ours, direct = h.rectified(), Histogram.from_tensor(x.relu(), bins=64)
        assert ours.zeros.item() == direct.zeros.item() == (x <= 0).sum().item()
        assert torch.equal(ours.counts, direct._coarsened(h.exponent))

    @pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 100.0, 400.0])
    @pytest.mark.parametrize("axis", [None, 1])
    def test_what_lies_above_the_ceiling_falls_in_the_bin_that_begins_there(self, scale, axis):
        x = randn(1000, 4) * scale
        h, clamped = Histogram.from_tensor(x, axis=axis), Histogram.from_tensor(x.clamp(0, 6), axis=axis)
        ours = h.rectified(6.0)
        assert torch.equal(ours.counts, clamped._coarsened(h.exponent))
        assert torch.equal(ours.zeros, clamped.zeros)

    def test_where_no_bin_begins_there_it_falls_in_the_next(self):
        h = Histogram.from_tensor(torch.tensor([-3.0, 1.0, 7.0, 9.0, 40.0, 5000.0])).rectified(6.0)
        half = h.bins // 2
        assert h.width == 8
        assert h.zeros == 1
        assert h.counts[half:].tolist() == [2, 3, *[0] * (half - 2)]

    def test_leaves_the_original_alone(self):
        h = Histogram.from_tensor(randn(100))
        before = h.counts.clone(), h.zeros.clone()
        h.rectified(0.5)
        assert torch.equal(h.counts, before[0])
        assert torch.equal(h.zeros, before[1])


class TestConclusions:
    def test_fewer_bins_are_those_of_the_tensor(self):
        x = randn(3, 500) * torch.tensor([[1.0], [1e-9], [0.0]])
        fine = Histogram.from_tensor(x, axis=0, bins=512)
        coarse, direct = fine.with_bins(32), Histogram.from_tensor(x, axis=0, bins=32)
        assert torch.equal(coarse.counts[:2], direct.counts[:2])
        assert torch.equal(coarse.exponent[:2], direct.exponent[:2])
        assert coarse.total.tolist() == [500] * 3
        assert fine.with_bins(1024) is fine

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
    def test_quantiles_are_within_a_bin(self, share):
        x = torch.cat([randn(997), torch.zeros(300), randn(50) * 20])
        h = Histogram.from_tensor(x)
        low, high = (x.double().quantile(share, interpolation=way).item() for way in ("lower", "higher"))
        if share:
            assert low - h.width <= h.quantile(share) <= high + h.width
        both = Histogram.from_tensor(torch.stack([x, -x, x * 1e6]), axis=0).quantile(share)
        assert both[0] == h.quantile(share)
        assert both.shape == (3,)

    def test_a_quantile_among_zeros_is_zero(self):
        h = Histogram.from_tensor(torch.tensor([-1.0, *[0.0] * 8, 1.0]))
        assert [h.quantile(share).item() for share in (0.2, 0.5, 0.9)] == [0, 0, 0]

    def test_mean_magnitude(self):
        x = randn(1000)
        h = Histogram.from_tensor(torch.cat([x, torch.zeros(77)]))
        assert h.mean_magnitude().item() == pytest.approx(x.abs().mean().item(), rel=1e-3)
        assert Histogram.from_tensor(torch.zeros(3)).mean_magnitude() == 0


class TestFiles:
    @pytest.mark.parametrize("axis", [None, 0, 1])
    @pytest.mark.parametrize("scale", [0.0, 1e-40, 1.0, 5e37])
    def test_come_back_as_they_were(self, axis, scale):
        h = Histogram.from_tensor(randn(5, 9) * scale, axis=axis)
        assert same(Histogram.from_dict(json.loads(json.dumps(h.to_dict(), allow_nan=False))), h)

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
    def test_of_nothing(self, shape):
        h = Histogram.from_tensor(torch.zeros(shape), axis=0 if len(shape) == 2 else None)
        assert same(Histogram.from_dict(h.to_dict()), h)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"bins": 100}, "histogram.bins must be a power of two, got 100"),
            ({"bins": 2.0}, "histogram.bins must be a whole number"),
            ({"zeros": -1}, "histogram.zeros must be a whole number from 0 to .*, got -1"),
            ({"zeros": True}, "histogram.zeros must be a whole number"),
            ({"exponent": 500}, "histogram.exponent must be a whole number from -126 to 127, got 500"),
            ({"first": 2047}, "histogram.counts must fit 2048 bins"),
            ({"counts": [1, -2]}, "histogram.counts must be a whole number from 0 .*, got -2"),
            ({"counts": "12"}, "histogram.counts must be a list of whole numbers, got '12'"),
            ({"exponent": [1]}, "histogram.exponent, zeros, first and counts must be lists of one entry a channel"),
            ({"colour": 1}, "histogram must hold bins, exponent, zeros, first, counts; got .*colour"),
        ],
    )
    def test_that_do_not_fit(self, change, message):
        with pytest.raises(InputError, match=message):
            Histogram.from_dict(Histogram.from_tensor(randn(50)).to_dict() | change)

    def test_that_are_no_mapping(self):
        with pytest.raises(InputError, match="histogram must hold"):
            Histogram.from_dict([1, 2])


def test_moves_to_a_device():
    moved = Histogram.from_tensor(randn(3)).to("meta")
    assert {moved.counts.device.type, moved.zeros.device.type, moved.exponent.device.type} == {"meta"}
