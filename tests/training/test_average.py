"""A running average follows a model: slowly at last, at once in the beginning; what isn't floating point is copied."""

import pytest
import torch
from torch import nn

from pytorch_quantizer.training.average import Average


def test_it_is_the_weighted_sum_of_what_it_saw():
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, 0.5)
    expected = float(model.weight.detach())
    for step, value in enumerate((2.0, -1.0, 5.0)):
        nn.init.constant_(model.weight, value)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.averaged.weight.detach()) == pytest.approx(expected, rel=1e-6)


def test_at_last_the_decay_counts():
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, 0.9)
    average.steps = 1000
    nn.init.constant_(average.averaged.weight, 1.0)
    nn.init.constant_(model.weight, 0.0)
    average.update()
    assert float(average.averaged.weight.detach()) == pytest.approx(0.9)


def test_statistics_follow_and_counts_are_copied():
    model = nn.BatchNorm1d(2)
    average = Average(model, 0.5)
    model(torch.randn(8, 2) + 10)
    average.update()
    assert int(average.averaged.num_batches_tracked) == 1
    assert bool((average.averaged.running_mean > 0.5).all())
    assert not any(a is b for a, b in zip(average.averaged.parameters(), model.parameters(), strict=True))
