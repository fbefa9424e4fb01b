"""Bits divided among channels: the total is kept, and who is quieter gets fewer."""

import pytest
import torch
from networks import images, sequence
from torch import nn

from pytorch_quantizer import InputError, Recipe, quantize
from pytorch_quantizer.quantization.qtypes.allocated_quantizer import AllocatedQuantizer
from pytorch_quantizer.quantization.qtypes.mid_tread_quantizer import MidTreadQuantizer

PAPER = Recipe(
    activations="int4",
    activation_granularity="per_channel",
    activation_allocation="bits",
    weight_allocation="bits",
    weights="int4",
    deployable=False,
)


def net():
    """Three convolutions and a linear layer, channels from quiet to loud."""
    made = sequence(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 8, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    )
    with torch.no_grad():
        for layer in (made.body[2], made.body[4]):
            layer.weight *= 2.0 ** torch.linspace(-2, 2, len(layer.weight)).view(-1, 1, 1, 1)
    return made


def by_name(model):
    return {site.name: site for site in model.sites}


def test_each_tensor_keeps_its_mean_bits():
    found = by_name(quantize(net(), PAPER, [images()]))
    for name in ("body.2.weight", "body.4.weight", "body.1", "body.3"):
        assert isinstance(found[name].quantizer, AllocatedQuantizer)
        assert found[name].quantizer.mean_bits == 4
    assert len(set(found["body.2.weight"].quantizer.channel_bits.tolist())) > 1
    assert found["body.0.weight"].quantizer.mean_bits == 8  # the first layer's


def test_a_quiet_channel_gets_fewer_bits():
    model = net()
    with torch.no_grad():
        model.body[0].weight[3] *= 1e-3
        model.body[0].bias[3] = 0
    found = by_name(quantize(model, PAPER, [images()]))
    bits = found["body.1"].quantizer.channel_bits
    assert bits[3] == bits.min() < 4


def test_levels_that_are_no_powers_of_two():
    recipe = PAPER.replace(weight_allocation="midtread", activation_allocation="midtread")
    found = by_name(quantize(net(), recipe, [images()]))
    assert isinstance(found["body.2.weight"].quantizer, MidTreadQuantizer)
    assert found["body.2.weight"].quantizer.levels.sum() <= 32 * 2**4
    assert (found["body.2.weight"].quantizer.levels % 2 == 1).all()


def test_a_constant_tensor_is_named_or_runs():
    model = quantize(net(), PAPER, [torch.zeros(2, 3, 8, 8)])
    assert torch.isfinite(model(torch.zeros(2, 3, 8, 8))).all()


@pytest.mark.parametrize(("which", "other"), [("weight", "activation"), ("activation", "weight")])
def test_each_kind_of_tensor_has_a_quota_of_its_own(which, other):
    found = by_name(quantize(net(), PAPER.replace(**{f"{other}_allocation": "none"}), [images()]))
    allocated = {isinstance(found[name].quantizer, AllocatedQuantizer): name for name in ("body.2.weight", "body.1")}
    assert allocated == {which == "weight": "body.2.weight", which == "activation": "body.1"}


@pytest.mark.parametrize("quota", ["bits", "midtread"])
def test_everything_but_the_bits_stays_as_it_was_asked_for(quota):
    recipe = PAPER.replace(weight_clip="laplace", clip="mse", rounding="stochastic")
    plain = recipe.replace(weight_allocation="none", activation_allocation="none")
    recipe = recipe.replace(weight_allocation=quota, activation_allocation=quota)
    found, expected = (by_name(quantize(net(), r, [images()])) for r in (recipe, plain))
    for name in ("body.2.weight", "body.1"):
        got, wanted = found[name].quantizer, expected[name].quantizer
        assert isinstance(got, AllocatedQuantizer)
        for setting in ("axis", "clip", "domain", "across_batches", "rounding", "signed"):
            assert getattr(got, setting) == getattr(wanted, setting), setting


def test_no_channel_of_few_bits_gets_more_than_eight():
    model = net()
    with torch.no_grad():
        model.body[2].weight[5] *= 1e6
    bits = by_name(quantize(model, PAPER, [images()]))["body.2.weight"].quantizer.channel_bits
    assert bits.max() == bits[5] == 8


def test_levels_are_odd_only_where_values_have_two_signs():
    recipe = PAPER.replace(activation_allocation="midtread", weight_allocation="midtread")
    levels = by_name(quantize(net(), recipe, [images()]))["body.3"].quantizer.levels
    assert (levels % 2 == 0).any()


def test_what_allows_no_allocation_is_named():
    poisoned = images()
    poisoned[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"^(x|body\.1): "):
        quantize(net(), PAPER.replace(first="int4"), [poisoned])


def test_online_activations_have_nothing_to_be_allocated_by():
    with pytest.raises(InputError, match="set statistics offline"):
        PAPER.replace(statistics="online")
