"""The CIFAR ResNets are those of He et al. 2015, and torch.fx can trace them."""

import pytest
import torch
from torch import fx

from pytorch_quantizer.models import create_model
from pytorch_quantizer.models.cifar_resnet import PaddedShortcut


@pytest.mark.parametrize(("layers", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_the_papers_table_6(layers, millions):
    parameters = sum(parameter.numel() for parameter in create_model(f"resnet{layers}").parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05 if layers == 110 else 0.006)


@pytest.mark.parametrize("size", [8, 9, 28, 32])
def test_traced_and_plain_agree_at_any_size(size):
    model = create_model("resnet20", num_classes=7, in_channels=1)
    images = torch.randn(2, 1, size, size)
    logits = model(images)
    assert logits.shape == (2, 7)
    assert torch.equal(fx.symbolic_trace(model)(images), logits)


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 16 * 4 * 6, dtype=torch.float32).reshape(2, 16, 4, 6)
    y = PaddedShortcut(16, 32)(x)
    assert y.shape == (2, 32, 2, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()
