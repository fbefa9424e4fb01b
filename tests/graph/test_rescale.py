"""Gain and shift folded into layers: what they compute afterwards, and on which grids."""

import pytest
import torch
from networks import images, sequence
from torch import nn

from pytorch_quantizer import Recipe, quantize
from pytorch_quantizer.graph.rescale import (
    apply_affine,
    as_applied,
    ensure_biases,
    scale_of_outputs,
    shift_weight,
    takes_gain,
)
from pytorch_quantizer.quantization.bias_correction import Affine

LAYERS = {
    "convolution": lambda: nn.Conv2d(8, 6, 3),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 3),
    "linear": lambda: nn.Linear(512, 6),
}


def quantized_layer(layer, **settings):
    """The layer in the middle of a simulated network, and what it reads there."""
    before = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    if isinstance(layer, nn.Linear):
        before.append(nn.Flatten())
    model = quantize(sequence(*before, layer, nn.ReLU()), Recipe(weights="int4", last="int4", **settings), [images()])
    got = model.get_submodule(f"body.{len(before)}")
    read = []
    got.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0]))
    model(images())
    return got, read[0].detach()


def affine(channels):
    return Affine(torch.linspace(0.6, 1.7, channels).double(), torch.linspace(-2, 3, channels).double())


def over_channels(values, y):
    return values.reshape(1, -1, *(1,) * (y.dim() - 2)).float()


@pytest.mark.parametrize("kind", LAYERS)
class TestAffine:
    def test_computes_gain_times_y_plus_shift_on_integer_grids(self, kind):
        layer, x = quantized_layer(LAYERS[kind]())
        assert takes_gain(layer)
        with torch.no_grad():
            before = layer(x)
            codes = layer.weight_quantizer.quantize(layer.weight)
            gain, shift = affine(before.shape[1])
            apply_affine(layer, Affine(gain, shift))
            after = layer(x)
        step = layer.bias_quantizer.scale
        error = (after - (over_channels(gain, before) * before + over_channels(shift, before))).abs()
        assert bool((error <= over_channels(step / 2, before) + 1e-4).all())  # the bias's rounding, and sums'
        assert torch.equal(layer.weight_quantizer.quantize(layer.weight), codes)
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)

    def test_bias_scales_are_the_products_and_bias_codes_whole(self, kind):
        layer, _ = quantized_layer(LAYERS[kind]())
        apply_affine(layer, affine(len(layer.bias)))
        quantizer = layer.bias_quantizer
        assert torch.equal(quantizer.scale, quantizer.input_scale.float() * layer.weight_quantizer.scale.float())
        assert torch.equal(quantizer(layer.bias), layer.bias)
        codes = layer.bias.double() / quantizer.scale.double()
        assert torch.allclose(codes, codes.round(), rtol=0, atol=1e-2)
        assert quantizer.quantize(layer.bias).dtype == torch.int32

    def test_what_it_will_compute_is_told_before(self, kind):
        layer, x = quantized_layer(LAYERS[kind]())
        with torch.no_grad():
            before = layer(x)
            gain, shift = as_applied(layer, affine(before.shape[1]))
            apply_affine(layer, affine(before.shape[1]))
            wanted = over_channels(gain, before) * before + over_channels(shift, before)
            torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


class TestGainless:
    @pytest.mark.parametrize("weights", ["kmeans4", "mxfp4"])
    def test_types_without_a_scale_a_channel(self, weights):
        settings = {"weights": weights, "first": weights, "last": weights}
        net = sequence(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        layer = quantize(net, Recipe(**settings, deployable=False), [images()]).get_submodule("body.2")
        assert not takes_gain(layer)
        with torch.no_grad():
            before, x = layer.weight.clone(), images(2, 8, 5, 5)
            expected = layer(x) + over_channels(affine(4).shift, layer(x))
            apply_affine(layer, Affine(torch.ones(4).double(), affine(4).shift))
            torch.testing.assert_close(layer(x), expected)
        assert torch.equal(layer.weight, before)

    def test_a_grid_for_the_whole_tensor(self):
        assert not takes_gain(quantized_layer(LAYERS["convolution"](), weight_granularity="per_tensor")[0])
        assert takes_gain(quantized_layer(LAYERS["convolution"]())[0])
        assert takes_gain(nn.Conv2d(3, 4, 3))

    @pytest.mark.parametrize("weight_granularity", ["per_tensor", "per_channel"])
    def test_a_grouped_transposed_convolution_takes_a_shift(self, weight_granularity):
        layer, x = quantized_layer(nn.ConvTranspose2d(8, 6, 3, groups=2), weight_granularity=weight_granularity)
        assert not takes_gain(layer)
        scale = scale_of_outputs(layer, layer.weight_quantizer)
        assert scale.shape == ((6,) if weight_granularity == "per_channel" else ())
        with torch.no_grad():
            before = layer(x)
            apply_affine(layer, Affine(torch.ones(6).double(), affine(6).shift))
            error = (layer(x) - before - over_channels(affine(6).shift, before)).abs().amax((0, 2, 3))
        assert bool((error <= layer.bias_quantizer.scale / 2 + 1e-4).all())

    def test_each_output_of_a_grouped_transposed_convolution_has_its_own_channels_scale(self):
        layer, x = quantized_layer(nn.ConvTranspose2d(8, 6, 3, groups=2))
        scale = scale_of_outputs(layer, layer.weight_quantizer) * layer.bias_quantizer.input_scale
        with torch.no_grad():
            sums = (layer(x) - over_channels(layer.bias, x)) / over_channels(scale, x)
        torch.testing.assert_close(sums, sums.round(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose1d(4, 6, 3), nn.Linear(4, 6)])
def test_a_float_layer_takes_both(layer):
    x = {nn.Conv2d: images(2, 4, 5, 5), nn.ConvTranspose1d: images(2, 4, 5), nn.Linear: images(2, 4)}[type(layer)]
    with torch.no_grad():
        expected = over_channels(affine(6).gain, layer(x)) * layer(x) + over_channels(affine(6).shift, layer(x))
        apply_affine(layer, affine(6))
        torch.testing.assert_close(layer(x), expected)


def test_biases_are_made_where_there_are_none():
    bare = [nn.Conv2d(4, 6, 3, bias=False), nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.Linear(4, 6, False)]
    had = nn.Conv2d(3, 3, 1)
    kept = had.bias
    ensure_biases([*bare, had])
    assert all(layer.bias.tolist() == [0.0] * 6 for layer in bare)
    assert had.bias is kept
    frozen = nn.Linear(4, 6, False).requires_grad_(False)
    ensure_biases([frozen])
    assert not frozen.bias.requires_grad
    assert bare[0].bias.requires_grad


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 12, 3, groups=2)])
def test_weights_are_shifted_along_their_quantizers_axis(layer):
    before = layer.weight.detach().clone()
    shift_weight(layer, affine(6))
    shape = (1, 6, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (6, 1, 1, 1)
    gain, shift = (part.reshape(shape).float() for part in affine(6))
    torch.testing.assert_close(layer.weight.detach(), before * gain + shift)
