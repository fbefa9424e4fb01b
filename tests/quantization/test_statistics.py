"""TensorStatistics: merging batches equals measuring all of them, and repeats to the bit."""

import json

import pytest
import torch

from pytorch_quantizer import InputError, TensorStatistics
from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.statistics import MOMENTS as NAMES


def batches(seed=0, sizes=(100, 1, 37, 1000, 3), shape=(4, 6), offset=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator) * (i + 1) + offset for i, size in enumerate(sizes)]


def merged(parts, axis=None, **kwargs):
    return TensorStatistics.merged(TensorStatistics.from_tensor(part, axis=axis, **kwargs) for part in parts)


@pytest.mark.parametrize("axis", [None, 1, -1])
class TestMerge:
    def test_exact_where_it_can_be(self, axis):
        whole, ours = TensorStatistics.from_tensor(torch.cat(batches()), axis=axis), merged(batches(), axis)
        for name in ("count", "min", "max", "positive_count"):
            assert torch.equal(getattr(ours, name), getattr(whole, name)), name

    @pytest.mark.parametrize("offset", [0.0, 2.0, 1000.0])
    def test_moments_to_rounding(self, axis, offset):
        parts = batches(offset=offset)
        whole, ours = TensorStatistics.from_tensor(torch.cat(parts), axis=axis), merged(parts, axis)
        for name in ("mean", "variance", "positive_mean", "positive_mean_square"):
            torch.testing.assert_close(getattr(ours, name), getattr(whole, name), rtol=1e-12, atol=1e-12, msg=name)

    def test_abs_dev_is_each_batch_about_its_own_mean_by_count(self, axis):
        parts = [part.double() for part in batches()]
        reduced = [d for d in range(3) if axis is None or d != axis % 3]
        each = [(part - part.mean(reduced, keepdim=True)).abs().sum(reduced) for part in parts]
        expected = sum(each) / sum(part.numel() / each[0].numel() for part in parts)
        torch.testing.assert_close(merged(batches(), axis).abs_dev, expected, rtol=1e-12, atol=1e-12)

    def test_repeats_to_the_bit(self, axis):
        first, again = merged(batches(), axis), merged(batches(), axis)
        assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in NAMES)

    def test_merges_in_the_order_given(self, axis):
        a, b, c = (TensorStatistics.from_tensor(part, axis=axis) for part in batches(sizes=(5, 7, 3)))
        left = a.merge(b).merge(c)
        assert all(
            torch.equal(getattr(TensorStatistics.merged([a, b, c]), name), getattr(left, name)) for name in NAMES
        )

    def test_one_batch_is_itself(self, axis):
        one = TensorStatistics.from_tensor(batches()[0], axis=axis)
        assert all(torch.equal(getattr(TensorStatistics.merged([one]), name), getattr(one, name)) for name in NAMES)

    def test_an_empty_batch_changes_nothing(self, axis):
        one = TensorStatistics.from_tensor(batches()[0], axis=axis)
        empty = TensorStatistics.from_tensor(torch.zeros(0, 4, 6), axis=axis)
        for both in (one.merge(empty), empty.merge(one)):
            assert all(torch.equal(getattr(both, name), getattr(one, name)) for name in NAMES)


class TestRecords:
    def test_empty_with_empty(self):
        empty = TensorStatistics.from_tensor(torch.zeros(0))
        both = empty.merge(empty)
        assert (both.count.item(), both.min.item(), both.max.item()) == (0, float("inf"), -float("inf"))
        assert both.mean.item() == both.variance.item() == both.positive_mean.item() == 0

    def test_no_positive_value(self):
        both = merged([-torch.ones(3), torch.tensor([2.0, 4.0]), -torch.ones(3)])
        assert (both.positive_count.item(), both.positive_mean.item(), both.positive_mean_square.item()) == (2, 3, 10)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_nan_is_never_lost(self, order):
        parts = [torch.tensor([1.0, 2.0]), torch.tensor([float("nan"), 3.0])]
        both = merged([parts[i] for i in order])
        assert all(getattr(both, name).isnan() for name in ("min", "max", "mean", "variance"))

    def test_nothing_to_merge(self):
        with pytest.raises(InputError, match="calibration set is empty"):
            TensorStatistics.merged([])

    def test_moves_to_a_device(self):
        moved = TensorStatistics.from_tensor(torch.ones(3)).to("meta")
        assert all(getattr(moved, name).device.type == "meta" for name in NAMES)


class TestBatches:
    @pytest.mark.parametrize("axis", [None, 1, -1])
    def test_means_of_their_extremes(self, axis):
        parts = batches()
        reduced = [d for d in range(3) if axis is None or d != axis % 3]
        ours = merged([*parts, torch.zeros(0, 4, 6)], axis)
        for name, extreme in (("min_mean", torch.amin), ("max_mean", torch.amax)):
            expected = torch.stack([extreme(part.double(), reduced) for part in parts]).mean(0)
            torch.testing.assert_close(getattr(ours, name), expected, rtol=1e-12, atol=0)
        assert ours.batches.eq(len(parts)).all()

    def test_count_one_by_one_however_they_are_grouped(self):
        a, b, c = (TensorStatistics.from_tensor(part) for part in batches(sizes=(5, 70, 3)))
        left, right = a.merge(b).merge(c), a.merge(b.merge(c))
        assert left.batches == right.batches == 3
        assert left.min_mean.item() == pytest.approx(right.min_mean.item(), rel=1e-12)

    def test_none(self):
        empty = TensorStatistics.from_tensor(torch.zeros(0))
        assert (empty.batches.item(), empty.min_mean.item(), empty.max_mean.item()) == (0, 0, 0)


class TestHistograms:
    @pytest.mark.parametrize("axis", [None, 1, -1])
    def test_merge_to_that_of_all(self, axis):
        parts = batches()
        ours, whole = merged(parts, axis, histogram=True).histogram, Histogram.from_tensor(torch.cat(parts), axis=axis)
        assert torch.equal(ours.counts, whole.counts)
        assert torch.equal(ours.exponent, whole.exponent)

    def test_only_where_asked_for_and_whole(self):
        x = torch.ones(3)
        without, with_one = TensorStatistics.from_tensor(x), TensorStatistics.from_tensor(x, histogram=True)
        assert without.histogram is None
        assert with_one.histogram.total == 3
        assert without.merge(with_one).histogram is with_one.merge(without).histogram is None

    def test_changes_nothing_else(self):
        x = batches()[0]
        without, with_one = TensorStatistics.from_tensor(x), TensorStatistics.from_tensor(x, histogram=True)
        assert all(torch.equal(getattr(without, name), getattr(with_one, name)) for name in NAMES)

    def test_move_to_a_device(self):
        assert TensorStatistics.from_tensor(torch.ones(3), histogram=True).to("meta").histogram.counts.is_meta


class TestFiles:
    @pytest.mark.parametrize("histogram", [False, True])
    @pytest.mark.parametrize("axis", [None, 1])
    def test_come_back_as_they_were(self, axis, histogram):
        one = merged([part / 3 for part in batches()], axis, histogram=histogram)
        again = TensorStatistics.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False)))
        assert all(torch.equal(getattr(again, name), getattr(one, name)) for name in NAMES)
        assert all(getattr(again, name).dtype == torch.float64 for name in NAMES)
        assert (again.histogram is None) == (not histogram)
        if again.histogram:
            assert torch.equal(again.histogram.counts, one.histogram.counts)

    @pytest.mark.parametrize("values", [[], [float("nan"), 1.0], [float("inf")], [-0.1, 3e38]])
    def test_of_hard_tensors(self, values):
        one = TensorStatistics.from_tensor(torch.tensor(values), histogram=True)
        again = TensorStatistics.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False)))
        for name in NAMES:
            torch.testing.assert_close(getattr(again, name), getattr(one, name), rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"mean": "big"}, "mean must be a number, or a list of numbers a channel, got 'big'"),
            ({"mean": None}, "mean must be a number, .*, got None"),
            ({"mean": True}, "mean must be a number, .*, got True"),
            ({"mean": [[1.0]]}, r"mean must be a number, .*, got \[1.0\]"),
            ({"mean": 10**400}, "mean must be a number that float64 holds"),
            ({"mean": [1.0, 2.0]}, r"mean must have the shape of count, \[\], got \[2\]"),
            ({"count": -1}, "count must not be negative, got -1"),
            ({"variance": [0.0]}, "variance must have the shape of count"),
            ({"abs_dev": -0.5}, "abs_dev must not be negative, got -0.5"),
            ({"histogram": {"bins": 3}}, "histogram must hold bins"),
            ({"colour": 1}, "tensor statistics must hold .*missing: none; unknown: colour"),
        ],
    )
    def test_that_do_not_fit(self, change, message):
        values = TensorStatistics.from_tensor(batches()[0], histogram=True).to_dict() | change
        with pytest.raises(InputError, match=message):
            TensorStatistics.from_dict(values)

    def test_that_lack_a_field(self):
        values = TensorStatistics.from_tensor(torch.ones(3)).to_dict()
        del values["max"]
        with pytest.raises(InputError, match="missing: max; unknown: none"):
            TensorStatistics.from_dict(values)

    def test_whose_histogram_has_other_channels(self):
        values = TensorStatistics.from_tensor(batches()[0], axis=1).to_dict()
        values["histogram"] = TensorStatistics.from_tensor(batches()[0], histogram=True).to_dict()["histogram"]
        with pytest.raises(InputError, match=r"histogram must have the shape of count, \[4\], got \[\]"):
            TensorStatistics.from_dict(values)

    @pytest.mark.parametrize("values", [None, [], 3])
    def test_that_are_no_mapping(self, values):
        with pytest.raises(InputError, match="tensor statistics must hold"):
            TensorStatistics.from_dict(values)


class TestExtremes:
    def test_each_batch_keeps_its_own_in_order(self):
        records = [TensorStatistics.from_tensor(part, axis=1).with_extremes() for part in batches()]
        expected = torch.tensor([[part.min().item(), part.max().item()] for part in batches()], dtype=torch.float64)
        assert torch.equal(TensorStatistics.merged(records).extremes, expected)

    def test_one_record_without_them_and_there_are_none(self):
        first, second = (TensorStatistics.from_tensor(part) for part in batches(sizes=(5, 7)))
        assert first.with_extremes().merge(second).extremes is None

    def test_no_file_keeps_them(self):
        record = TensorStatistics.from_tensor(batches()[0]).with_extremes()
        assert "extremes" not in record.to_dict()
        assert TensorStatistics.from_dict(record.to_dict()).extremes is None
