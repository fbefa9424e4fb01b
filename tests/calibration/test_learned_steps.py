"""LearnedStep: an IntQuantizer's grid as parameters, and back into the very quantizer."""

import pytest
import torch
from networks import images, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.learned_steps import LearnedStep, harden_steps, install_steps
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.biases import accumulators, renew_biases
from pytorch_quantizer.quantization.qtypes import IntQuantizer


@pytest.fixture(params=[None, 1], ids=["per tensor", "per channel"])
def fitted(request):
    return IntQuantizer(3, signed=False, symmetric=False, axis=request.param).fit(images(seed=5))


def test_before_the_first_step_it_is_the_quantizer(fitted):
    x, other = images(), images(seed=2)
    step = LearnedStep(fitted, zero_point=True)
    assert torch.equal(step(x), fitted(x))
    assert torch.equal(step(x, other=other, relu=True), fitted(x, other=other, relu=True))


def test_what_it_ran_on_is_what_the_quantizer_gets(fitted):
    x, step = images(), LearnedStep(fitted, zero_point=True)
    with torch.no_grad():
        step.growth.add_(0.37)
        step.offset.add_(0.8)
    expected, before = step(x).detach(), fitted(x)
    assert step.harden() is fitted
    assert torch.equal(fitted(x), expected)
    assert not torch.equal(expected, before)
    assert fitted.zero_point.dtype == torch.int32


def test_a_step_that_is_far_too_long_shrinks_to_what_the_data_ask():
    x = images(64, 3, 8, 8)
    best = IntQuantizer(3, clip="mse").fit(x).scale
    quantizer = IntQuantizer(3).fit(x)
    step = LearnedStep(quantizer)
    optimizer = torch.optim.Adam(step.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        (step(x) - x).square().mean().backward()
        optimizer.step()
    assert abs(float(step.harden().scale / best) - 1) < 0.05


def test_gradients_reach_the_scale_the_zero_point_and_what_is_read(fitted):
    x, step = images().requires_grad_(), LearnedStep(fitted, zero_point=True)
    step(2 * x).square().sum().backward()  # some of it is clipped
    assert all(bool((tensor.grad != 0).any()) for tensor in (x, step.growth, step.offset))


def test_a_symmetric_grid_keeps_its_zero_point():
    assert LearnedStep(IntQuantizer(4).fit(images()), zero_point=True).offset is None


@pytest.mark.parametrize(
    ("quantizer", "words"),
    [
        (IntQuantizer(4), "no grid"),
        (IntQuantizer(4, rounding="stochastic").fit(images()), "stochastic"),
        (nn.ReLU(), "ReLU"),
    ],
)
def test_what_has_no_step_to_learn_is_refused(quantizer, words):
    with pytest.raises(InputError, match=words):
        LearnedStep(quantizer)


def test_a_step_that_diverged_is_not_written(fitted):
    step, before = LearnedStep(fitted), fitted.scale.clone()
    with torch.no_grad():
        step.growth.fill_(float("nan"))
    with pytest.raises(InputError, match="diverged"):
        step.harden()
    assert torch.equal(fitted.scale, before)


def model():
    net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    graph = pq.fold(pq.capture(net, images()))[0]
    return pq.quantize(net, "w8a4", images(), progress=False), graph


def test_installed_in_a_model_and_hardened_the_model_is_the_same():
    quantized, _ = model()
    expected, quantizers = quantized(images()), [site.quantizer for site in quantized.sites if site.is_activation]
    installed = install_steps(quantized)
    assert installed
    assert torch.equal(quantized(images()), expected)
    harden_steps(quantized, installed)
    assert torch.equal(quantized(images()), expected)
    assert [site.quantizer for site in quantized.sites if site.is_activation] == quantizers


def test_biases_follow_the_steps_that_were_learned():
    quantized, graph = model()
    installed = install_steps(quantized)
    with torch.no_grad():
        for step in installed.values():
            step.growth.add_(0.5)
    harden_steps(quantized, installed)
    renew_biases(quantized, accumulators(graph, quantized.sites, quantized.recipe))
    expected, x = quantized(images()), images()
    found = pq.IntegerModel(quantized)(x)
    assert torch.allclose(found, expected, atol=1e-5)
    for node in quantized.graph.nodes:
        layer = quantized.get_submodule(node.target) if node.op == "call_module" else None
        if hasattr(layer, "bias_quantizer"):
            scale = layer.bias_quantizer.scale
            assert torch.equal(scale, layer.bias_quantizer.input_scale * layer.weight_quantizer.scale)
            assert torch.equal(layer.bias_quantizer(layer.bias), layer.bias)
