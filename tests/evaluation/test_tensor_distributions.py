"""How values lie over a grid: every value is counted, ranges and levels are the quantizer's own, bins stay few."""

import pytest
import torch

from pytorch_quantizer.evaluation.distributions import ALL_BINS, MOST_LEVELS, bins_of_each, distribution
from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.qtypes import IntQuantizer, KMeansQuantizer, MXFP4Quantizer


@pytest.fixture
def weight():
    return torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)[:, None, None, None]


def counted(found):
    return int(Histogram.from_dict(found["histogram"]).total)


class TestUniformGrids:
    def test_per_tensor_in_values(self, weight):
        quantizer = IntQuantizer(4, narrow=True).fit(weight)
        found = distribution("w", "weight", quantizer, weight)
        step = float(quantizer.scale)
        assert (found["unit"], found["type"], found["step"]) == ("value", "int4", step)
        assert (found["low"], found["high"]) == pytest.approx((-7 * step, 7 * step))
        assert found["levels"] == pytest.approx([code * step for code in range(-7, 8)])
        assert counted(found) == weight.numel()

    def test_per_channel_in_codes(self, weight):
        quantizer = IntQuantizer(4, narrow=True, axis=0).fit(weight)
        found = distribution("w", "weight", quantizer, weight)
        assert (found["unit"], found["low"], found["high"], found["step"]) == ("code", -7, 7, 1)
        assert found["levels"] == list(range(-7, 8))
        edges = Histogram.from_dict(found["histogram"]).edges()
        filled = Histogram.from_dict(found["histogram"]).counts > 0
        assert edges[:-1][filled].min() >= -8  # each channel's largest value is its own outermost code
        assert edges[1:][filled].max() <= 8
        assert counted(found) == weight.numel()

    def test_affine_channels_stand_on_their_zero_points(self, weight):
        x = weight.abs() - 2
        quantizer = IntQuantizer(4, signed=False, symmetric=False, axis=0).fit(x)
        found = distribution("a", "activation", quantizer, x)
        codes = quantizer.quantize(x).double()
        histogram = Histogram.from_dict(found["histogram"])
        mean = float((histogram.counts * histogram.centres()).sum() / histogram.total)
        assert mean == pytest.approx(float(codes.mean()), abs=0.3)

    def test_many_levels_are_not_listed(self, weight):
        assert MOST_LEVELS < 2**8
        found = distribution("w", "weight", IntQuantizer(8).fit(weight), weight)
        assert found["levels"] is None
        assert found["step"] > 0

    def test_asking_for_levels_draws_nothing(self, weight):
        quantizer = IntQuantizer(4, rounding="stochastic").fit(weight)
        distribution("w", "weight", quantizer, weight)
        assert quantizer.drawn == 0


class TestOtherTypes:
    def test_a_codebook_is_its_levels(self, weight):
        quantizer = KMeansQuantizer(3).fit(weight)
        found = distribution("w", "weight", quantizer, weight)
        assert found["levels"] == pytest.approx(quantizer.codebook.tolist())
        assert found["step"] is None

    def test_codebooks_of_channels_have_no_common_levels(self, weight):
        found = distribution("w", "weight", KMeansQuantizer(3, axis=0).fit(weight), weight)
        assert (found["levels"], found["unit"]) == (None, "value")

    def test_blocks_have_no_common_levels(self, weight):
        quantizer = MXFP4Quantizer(axis=0).fit(weight)
        quantizer(weight)
        found = distribution("w", "weight", quantizer, weight)
        assert found["levels"] is None


class TestBins:
    def test_zeros_are_counted_apart(self):
        x = torch.relu(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
        found = distribution("a", "activation", IntQuantizer(4, signed=False).fit(x), x)
        assert found["histogram"]["zeros"] == int((x == 0).sum())

    def test_few_values_have_few(self, weight):
        few, many = torch.randn(100), torch.randn(100_000)
        quantizer = IntQuantizer(4).fit(many)
        assert distribution("w", "weight", quantizer, few)["histogram"]["bins"] <= 64
        assert distribution("w", "weight", quantizer, many)["histogram"]["bins"] >= 256

    @pytest.mark.parametrize("tensors", [1, 50, 200, 600, 10**6])
    def test_many_tensors_have_fewer_each(self, tensors):
        bins = bins_of_each(tensors)
        assert bins & (bins - 1) == 0
        assert bins * tensors <= ALL_BINS or bins == 64
