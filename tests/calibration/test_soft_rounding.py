"""SoftRoundedWeight: begins in float, settles on a neighbour, ends as codes."""

import pytest
import torch
from networks import images

from pytorch_quantizer.calibration.soft_rounding import SoftRoundedWeight, indecision
from pytorch_quantizer.quantization.qtypes import IntQuantizer


@pytest.fixture(params=[None, 0, 1], ids=["per tensor", "axis 0", "axis 1"])
def soft(request):
    weight = images(6, 4, 3, 3, seed=4)
    quantizer = IntQuantizer(3, narrow=True, axis=request.param).fit(weight)
    return weight, quantizer, SoftRoundedWeight(weight, quantizer)


def test_it_begins_as_the_float_weight(soft):
    weight, _, learned = soft
    assert torch.allclose(learned(learned.share()), weight, atol=1e-5)


def test_beyond_the_grid_it_begins_at_its_end():
    weight = torch.tensor([[0.1, 5.0, -5.0]])
    quantizer = IntQuantizer(3, narrow=True).fit(torch.tensor([-1.0, 1.0]))
    learned = SoftRoundedWeight(weight, quantizer)
    assert torch.allclose(learned(learned.share()), torch.tensor([[0.1, 1.0, -1.0]]), atol=1e-5)


def test_untrained_it_hardens_to_the_nearest_codes(soft):
    weight, quantizer, learned = soft
    expected = quantizer(weight)
    given, hard = learned.harden()
    assert given is quantizer
    assert torch.equal(hard, expected)


def test_trained_up_or_down_it_hardens_to_that_neighbour_on_the_learned_scale(soft):
    weight, quantizer, learned = soft
    scale = learned.start.clone()
    with torch.no_grad():
        learned.logit.copy_(torch.where(images(*weight.shape) > 0, 9.0, -9.0))
        learned.growth.add_(0.25)
    shares = learned.share()
    assert set(shares.unique().tolist()) == {0.0, 1.0}
    expected = learned(shares).detach()
    _, hard = learned.harden()
    assert torch.allclose(hard, expected, atol=1e-6)
    assert torch.equal(quantizer(hard), hard)
    assert torch.equal(quantizer.dequantize(quantizer.quantize(hard)), hard)
    assert torch.allclose(quantizer.scale, scale * 2.718281828**0.25)
    shape = [1] * 4 if quantizer.axis is None else [-1 if d == quantizer.axis else 1 for d in range(4)]
    assert float((quantizer.quantize(hard) - weight / scale.reshape(shape)).abs().max()) < 1 + 1e-4


def test_a_zero_point_shifts_the_codes_alone():
    weight = images(6, 4, seed=4) + 0.5
    quantizer = IntQuantizer(3, symmetric=False, axis=0).fit(weight)
    expected = quantizer(weight)
    assert int(quantizer.zero_point.abs().max()) > 0
    learned = SoftRoundedWeight(weight, quantizer)
    low, high = (bound[:, None] for bound in quantizer.range())
    assert torch.allclose(learned(learned.share()), weight.clamp(low, high), atol=1e-5)
    assert torch.equal(learned.harden()[1], expected)


def test_indecision_falls_to_nothing_at_the_ends():
    share = torch.tensor([0.0, 1.0, 0.5, 0.75])
    assert float(indecision(share[:2], 2.0)) == 0
    assert float(indecision(share, 2.0)) == pytest.approx(1 + (1 - 0.5**2))
    assert float(indecision(share, 20.0)) > float(indecision(share, 2.0))


def test_undecided_counts_the_middle(soft):
    _, _, learned = soft
    with torch.no_grad():
        learned.logit.fill_(9.0)
        learned.logit[0, 0] = 0.0
    assert learned.undecided() == 9
