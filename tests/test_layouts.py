"""Layers whose training on channels-last tensors would write past memory get others; all else keeps the fast format."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.learned_block import SoftLayer
from pytorch_quantizer.calibration.trainable import LearnedLayer
from pytorch_quantizer.layouts import needs_channels_first, trained_formats
from pytorch_quantizer.quantization.qtypes import IntQuantizer
from pytorch_quantizer.training.pupil import Pupil

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


def soft(layer):
    return SoftLayer(layer, layer.weight, IntQuantizer(4, axis=0).fit(layer.weight))


def tuned(layer):
    return LearnedLayer(layer, None, None)


def latent(layer):
    quantized = copy.deepcopy(layer)
    quantized.add_module("weight_quantizer", IntQuantizer(16, axis=0).fit(layer.weight))
    return LearnedLayer(quantized, layer.weight.detach(), None)


@pytest.mark.parametrize("learned", [soft, tuned, latent])
@pytest.mark.parametrize("weight", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride", "first"), [(1, 2, True), (1, 1, False), (3, 2, False)])
def test_what_layers_are_trained_on(learned, weight, images, kernel, stride, first):
    """The format of what a layer gives tells in which it ran."""
    layer = nn.Conv2d(6, 6, kernel, stride=stride).to(memory_format=weight)
    x = torch.randn(2, 6, 8, 8).to(memory_format=images)
    y = learned(layer)(x)
    assert torch.allclose(y, layer(x), atol=1e-3)
    if first:
        assert y.is_contiguous()
    elif images == torch.channels_last:
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_elsewhere_than_on_a_cpu_all_formats_stay():
    layer = nn.Conv2d(6, 6, 1, stride=2)
    x = torch.empty(2, 6, 8, 8, device="meta").to(memory_format=torch.channels_last)
    assert trained_formats(layer, x, layer.weight)[0] is x


@pytest.mark.parametrize("fields", [{"reconstruction": "block", "reconstruction_iterations": 60}, {"tuning_epochs": 2}])
def test_a_network_with_such_a_layer_learns(fields):
    """On a CPU with AVX2 memory was written past its end here, before."""
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1, stride=2), nn.ReLU())
    net = nn.Sequential(body, nn.Flatten(), nn.Linear(96, 4)).to(memory_format=torch.channels_last)
    recipe = pq.Recipe(weights="int3", activations="int3", **fields)
    images = torch.randn(32, 3, 8, 8).to(memory_format=torch.channels_last)
    assert pq.quantize(net, recipe, images, progress=False).notes


@pytest.mark.parametrize(("stride", "kept"), [(1, True), (2, False)])
def test_what_training_in_bfloat16_is_given(stride, kept):
    """Channels last but for such a layer: of any, as all of them read what the first one gave."""
    net, seen = nn.Sequential(nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 1, stride=stride)), []

    def loss(images, labels):
        seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return net(images).float().square().mean()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pupil = Pupil(net, loss, net.train, nn.Identity(), optimizer, LambdaLR(optimizer, lambda step: 1.0), None, True)
    pupil.learn(torch.randn(2, 6, 8, 8), torch.zeros(2))
    assert seen == [kept]
