"""TensorStatistics: merging batches equals measuring all of them, and repeats to the bit."""

from dataclasses import fields

import pytest
import torch

from pytorch_quantizer import InputError, TensorStatistics

NAMES = [field.name for field in fields(TensorStatistics)]


def batches(seed=0, sizes=(100, 1, 37, 1000, 3), shape=(4, 6), offset=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator) * (i + 1) + offset for i, size in enumerate(sizes)]


def merged(parts, axis=None):
    return TensorStatistics.merged(TensorStatistics.from_tensor(part, axis=axis) for part in parts)


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
