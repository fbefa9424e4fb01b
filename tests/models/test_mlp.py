"""The MLP: linear layers with ReLUs between, for any classes and channels, and nothing that tracing can't enter."""

import pytest
import torch
from torch import nn

from pytorch_quantizer import capture
from pytorch_quantizer.models import MLP, create_model


class TestMLP:
    def test_layers(self):
        linears = [module for module in create_model("mlp").modules() if isinstance(module, nn.Linear)]
        sizes = [(layer.in_features, layer.out_features) for layer in linears]
        assert sizes == [(3 * 28 * 28, 256), (256, 128), (128, 10)]
        assert {type(module) for module in create_model("mlp").modules()} == {
            *(MLP, nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU),
        }

    def test_computes_what_it_says(self):
        net, x = MLP((5, 4), num_classes=3, in_channels=1), torch.randn(2, 1, 28, 28)
        hidden = x.flatten(1)
        for layer in (net.hidden[0], net.hidden[2]):
            hidden = (hidden @ layer.weight.T + layer.bias).clamp(min=0)
        assert torch.allclose(net(x), hidden @ net.linear.weight.T + net.linear.bias, atol=1e-6)

    @pytest.mark.parametrize(("classes", "channels"), [(7, 1), (10, 3)])
    def test_classes_and_channels(self, classes, channels):
        net = create_model("mlp", num_classes=classes, in_channels=channels)
        assert net(torch.randn(2, channels, 28, 28)).shape == (2, classes)
        assert not net.training

    def test_is_captured_whole(self):
        assert not capture(create_model("mlp"), torch.randn(2, 3, 28, 28)).opaque

    def test_activations_keep_their_size_through_the_layers(self):
        """Weights are drawn for ReLUs: no layer's outputs vanish or explode."""
        torch.manual_seed(0)
        net = MLP((512,) * 6, in_channels=1)
        assert 0.3 < net(torch.randn(64, 1, 28, 28)).std() < 3
