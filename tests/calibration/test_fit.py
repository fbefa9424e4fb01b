"""Fitting: every site to what was seen of it, weights by their outputs where asked, and what is missing is named."""

import pytest
import torch
from networks import images, sequence
from torch import nn

from pytorch_quantizer import InputError, Recipe, capture, fold, quantize
from pytorch_quantizer.calibration.fit import fit
from pytorch_quantizer.graph.place import place


def net():
    return sequence(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


def placed(**settings):
    """(graph, sites) of a small network."""
    graph, kept = fold(capture(net(), images()))
    return graph, place(graph, Recipe(**settings), kept)


def test_statistics_that_lack_a_tensor_are_named():
    with pytest.raises(InputError, match=r"^x: the statistics hold nothing of it; collect them with this recipe$"):
        fit(*placed(), {})


def test_what_is_fitted_online_needs_no_statistics():
    sites = fit(*placed(statistics="online", deployable=False), {})
    assert not any(site.quantizer.needs_statistics for site in sites if site.quantizer and site.is_activation)


@pytest.mark.parametrize("weight_granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("bits", [3, 4])
def test_weights_fitted_to_their_outputs_make_them_better_than_those_fitted_to_themselves(weight_granularity, bits):
    x = images(16, 3, 8, 8) + 1  # a mean, so that inputs of a window go together
    errors = {}
    for clip in ("minmax", "mse", "output_mse"):
        overrides = [{"layers": "body.2", "weights": f"int{bits}"}]
        recipe = Recipe(weight_clip=clip, weight_granularity=weight_granularity, overrides=overrides)
        got = quantize(net(), recipe, [x]).get_submodule("body.2")
        float_layer, read = net().body[2], net().body[:2](x)
        error = got(read) - float_layer(read) - (got.bias - float_layer.bias).view(1, -1, 1, 1)
        errors[clip] = error.detach().square().mean((0, 2, 3))
        if weight_granularity == "per_tensor":
            errors[clip] = errors[clip].sum()
    assert bool((errors["output_mse"] <= errors["mse"] * 1.01).all())
    assert errors["output_mse"].sum() < 0.95 * errors["mse"].sum()
    assert errors["output_mse"].sum() < 0.95 * errors["minmax"].sum()


def test_a_weight_without_a_range_is_refused_also_where_its_outputs_decide():
    graph, sites = placed(weight_clip="output_mse", activations="int8")
    graph.get_submodule("body.2").weight.data[0, 0, 0, 0] = float("nan")
    weights = tuple(site for site in sites if site.name == "body.2.weight")
    with pytest.raises(InputError, match=r"^body\.2\.weight: "):
        fit(graph, weights, {}, {"body.2.weight": torch.eye(72).double().unsqueeze(0)})
