"""Histograms of a report: bins lie where the numbers say, and the sentence under them tells what is drawn."""

import pytest
import torch
from report_examples import details

from pytorch_quantizer.evaluation.distributions import distribution
from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.qtypes import IntQuantizer
from pytorch_quantizer.reports.distributions import Distribution, distributions_of, distributions_section


def test_bins_are_the_histograms_own():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    entry = distribution("w", "weight", IntQuantizer(4).fit(x), x)
    bars = Distribution(entry, []).bars()
    histogram = Histogram.from_dict(entry["histogram"])
    edges, counts = histogram.edges().tolist(), histogram.counts.tolist()
    expected = [(low, count) for low, count in zip(edges, counts, strict=False)]
    found = dict(zip(bars["left"], bars["count"], strict=True))
    assert all(found.get(low, 0) == count for low, count in expected)
    assert sum(bars["share"]) == pytest.approx(100)


def test_zeros_are_part_of_the_whole_and_told():
    one = distributions_of(details())[1]
    assert one.total == 35
    assert sum(one.bars()["share"]) == pytest.approx(100 * 25 / 35)
    assert "Zeros, 28.6 % of the values, are left out" in one.said()


def test_the_view_holds_values_and_range():
    for one in distributions_of(details()):
        low, high = one.view()
        bars = one.bars()
        assert low < min(bars["left"][0], one.ends()[0])
        assert high > max(bars["right"][-1], one.ends()[1])


def test_what_is_drawn_is_said():
    codes, levels, many = distributions_of(details())
    assert "code" in codes.label()
    assert "16 levels drawn" in levels.said()
    assert "too many levels to draw" in many.said()
    assert "3 calibration batches" in levels.batches_said()
    assert "the same for all batches" in codes.batches_said()


def test_without_any_batches_there_is_no_chart_of_them():
    without = details() | {"batches": {}}
    drawings = [len(distributions_section(found, "run", "t").parts) for found in (details(), without)]
    assert drawings[0] - drawings[1] == 1


def test_an_empty_tensor_has_a_view():
    entry = details()["tensors"][0] | {"histogram": {"bins": 64, "exponent": 0, "zeros": 0, "first": 0, "counts": []}}
    assert Distribution(entry, []).view()[0] < -7
