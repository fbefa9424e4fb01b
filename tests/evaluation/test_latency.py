"""Latency says what was timed and how; the time itself is no test's business."""

import pytest
import torch
from torch import nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import latency, measure_latency


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        self.calls += 1
        return x


def test_says_what_was_timed():
    model = Counting()
    measured = measure_latency(model, torch.zeros(8, 3, 4, 4), repeats=5, warmup=2)
    assert model.calls == 7
    assert measured.median_ms > 0
    assert (measured.batch_size, measured.threads, measured.repeats) == (8, torch.get_num_threads(), 5)
    assert (measured.label, measured.device) == ("float32", "cpu")


def test_a_quantized_model_is_labelled_simulated():
    model = Counting()
    model.sites = ()
    assert measure_latency(model, torch.zeros(1, 3), repeats=1).label == "simulated"
    assert measure_latency(model, torch.zeros(1, 3), repeats=1, label="integer").label == "integer"


def test_the_median_in_milliseconds(monkeypatch):
    clock = iter([0.0, 0.001, 1.0, 1.002, 2.0, 2.5])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    assert measure_latency(Counting(), torch.zeros(1, 3), repeats=3, warmup=0).median_ms == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seconds", "warmup", "repeats"), [(0.01, 3, 10), (0.4, 3, 10), (0.6, 2, 9), (2.0, 1, 3), (60.0, 1, 3)]
)
def test_slow_passes_are_fewer(monkeypatch, seconds, warmup, repeats):
    clock = iter(range(1000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock) * seconds)
    model = Counting()
    measured = measure_latency(model, torch.zeros(1, 3))
    assert measured.repeats == repeats
    assert model.calls == warmup + repeats


def test_fewer_repeats_than_the_least_stay_so():
    assert measure_latency(Counting(), torch.zeros(1, 3), repeats=1).repeats == 1


@pytest.mark.parametrize(("images", "arguments"), [(0, {}), (1, {"repeats": 0}), (1, {"warmup": -1})])
def test_impossible_numbers(images, arguments):
    with pytest.raises(InputError, match="latency needs images and a repeat"):
        measure_latency(Counting(), torch.zeros(images, 3), **arguments)
