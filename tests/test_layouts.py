"""Layers whose training on channels-last tensors would write past memory get others; all else keeps the fast format."""

import pytest
import torch
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.learned_block import SoftLayer
from pytorch_quantizer.layouts import needs_channels_first
from pytorch_quantizer.quantization.qtypes import IntQuantizer

CASES = {
    "strided, few channels": (nn.Conv2d(6, 6, 1, stride=2), True),
    "strided one way": (nn.Conv2d(6, 6, 1, stride=(1, 2)), True),
    "groups of few channels": (nn.Conv2d(32, 32, 1, stride=2, groups=8), True),
    "strided, many channels": (nn.Conv2d(16, 6, 1, stride=2), False),
    "not strided": (nn.Conv2d(6, 6, 1), False),
    "of nine taps": (nn.Conv2d(6, 6, 3, stride=2), False),
    "one-dimensional": (nn.Conv1d(6, 6, 1, stride=2), False),
    "linear": (nn.Linear(6, 6), False),
}


@pytest.mark.parametrize("name", CASES)
def test_which_layers(name):
    layer, expected = CASES[name]
    assert needs_channels_first(layer) is expected


@pytest.mark.parametrize(("kernel", "stride", "first"), [(1, 2, True), (1, 1, False), (3, 2, False)])
def test_what_a_block_under_training_gives_its_layers(kernel, stride, first):
    layer = nn.Conv2d(6, 6, kernel, stride=stride)
    soft = SoftLayer(layer, layer.weight, IntQuantizer(4, axis=0).fit(layer.weight))
    x = torch.randn(2, 6, 8, 8).to(memory_format=torch.channels_last)
    y = soft(x)
    assert y.is_contiguous() is first
    assert y.is_contiguous(memory_format=torch.channels_last) is not first
    assert torch.allclose(y, layer(x), atol=1e-5)


def test_a_block_with_such_a_layer_learns():
    """On a CPU with AVX2 memory was written past its end here, before."""
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1, stride=2), nn.ReLU())
    net = nn.Sequential(body, nn.Flatten(), nn.Linear(96, 4))
    recipe = pq.Recipe(weights="int3", activations="int3", reconstruction="block", reconstruction_iterations=60)
    notes = pq.quantize(net, recipe, torch.randn(32, 3, 8, 8), progress=False).notes
    assert any("blocks learned" in note for note in notes)
