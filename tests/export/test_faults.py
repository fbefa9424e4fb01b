"""What is said to be wrong with a tensor that integers compute otherwise than the simulation."""

import itertools

import pytest
import torch
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.export.faults import faults, saturating


def quantized(net, weights="int8", activations="int8", **fields):
    recipe = pq.Recipe(weights=weights, activations=activations, **fields)
    return pq.quantize(net, recipe, images(8, 3, 8, 8), progress=False)


def convnet(groups=1):
    """body.2, between body.1 and body.3, is neither the first layer nor the last."""
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3 if groups == 1 else 1, groups=groups), nn.ReLU())
    return sequence(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 5))


@pytest.fixture
def model():
    return quantized(convnet())


def found(model, name):
    return "; ".join(faults(model, name, images(2, 3, 8, 8)))


class TestFaults:
    def test_a_model_as_quantize_makes_it_has_none(self, model):
        for name in ("x", "body.1", "body.3", None):
            assert not found(model, name)

    def test_a_weight_off_its_grid(self, model):
        model.get_submodule("body.2").weight.data[0, 0, 0, 0] += 1e-3
        assert found(model, "body.3") == "body.2's weights lie up to 0.001 off their grid"
        assert not found(model, "body.1")

    def test_a_bias_off_its_grid(self, model):
        layer = model.get_submodule("body.2")
        layer.bias.data += 0.25 * layer.bias_quantizer.scale
        assert found(model, "body.3") == "body.2's bias does not lie on its grid"

    def test_a_grid_changed_after_the_bias_was_put_on_it(self, model):
        model.get_submodule("quantizers.body_1").scale.mul_(2)
        assert (
            found(model, "body.3") == "body.2's bias lies on another grid than its sums s_x·s_w, by a factor of up to 2"
        )

    def test_values_that_lie_on_no_grid(self, model):
        model.get_submodule("quantizers.body_1").register_forward_hook(lambda module, given, value: value + 1e-3)
        assert found(model, "body.3") == "the simulation's values of body.1 do not lie on its grid"
        assert not found(model, "body.1")

    def test_of_the_outputs(self, model):
        model.get_submodule("body.6").weight.data *= 1.01
        assert found(model, None).startswith("body.6's weights lie up to")

    def test_all_layers_behind_a_concatenation(self):
        parts = {"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1), "c": nn.Conv2d(6, 2, 1)}
        model = quantized(network(lambda net, x: net.c(torch.cat([net.a(x), net.b(x).relu()], 1)), **parts))
        for name in "ab":
            model.get_submodule(name).weight.data *= 1.01
        told = found(model, "cat")
        assert "a's weights" in told
        assert "b's weights" in told

    def test_the_branches_of_an_addition_are_tensors_of_their_own(self):
        parts = {"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1), "c": nn.Conv2d(3, 2, 1)}
        model = quantized(network(lambda net, x: net.c((net.a(x) + net.b(x)).relu()), **parts))
        model.get_submodule("a").weight.data *= 1.01
        names = [site.name for site in model.sites if site.is_activation and site.quantizer is not None]
        assert [name for name in names if found(model, name)] == ["a"]


def pairs(model, layer, highest):
    """The most that two products of a channel come to, by trying all pairs."""
    codes = model.get_submodule(layer).weight_quantizer.quantize(model.get_submodule(layer).weight).flatten(1).tolist()
    return max(abs(a + b) * highest for channel in codes for a, b in itertools.combinations(channel, 2))


class TestSaturating:
    @pytest.mark.parametrize(("bits", "can"), [(8, True), (7, False), (4, False)])
    def test_where_two_products_are_more_than_16_bits(self, bits, can):
        model = quantized(convnet(), weights=f"int{bits}")
        assert (pairs(model, "body.2", highest=255) > 32767) is can
        told = ["body.2's sums u8·s8 can saturate at 16 bits"]
        assert saturating(model, "body.3", {"body.2": "int8"}) == (told if can else [])

    def test_codes_of_few_bits_cannot(self):
        assert not saturating(quantized(convnet(), activations="int4"), "body.3", {"body.2": "int8"})

    def test_codes_of_a_signed_grid_are_stored_128_higher(self):
        net = sequence(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1))
        model = quantized(net, activation_symmetric=True)
        assert pairs(model, "body.1", highest=127) <= 32767 < pairs(model, "body.1", highest=255)
        assert saturating(model, "body.1", {"body.1": "int8"})

    def test_unsigned_weights_do_not(self, model):
        assert not saturating(model, "body.3", {"body.2": "uint8"})

    def test_a_channel_of_one_weight_has_no_pair(self):
        assert not saturating(quantized(convnet(groups=6)), "body.3", {"body.2": "int8"})
