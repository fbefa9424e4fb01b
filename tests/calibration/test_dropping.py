"""Dropping: as many values as asked, as they lie, the same under a seed; gradients for both sides."""

import pytest
import torch
from networks import images

from pytorch_quantizer.calibration.dropping import Dropping


def dropping(probability, seed=0):
    return Dropping(probability, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_as_many_as_asked(probability):
    x, y = torch.ones(40, 3, 32, 32), torch.zeros(40, 3, 32, 32)
    share = float(dropping(probability).mixed(x, y).mean())
    assert share == probability if probability in (0, 1) else abs(share - probability) < 0.01


def test_the_same_under_a_seed_and_others_each_time():
    drops, x = dropping(0.5), images(4, 3, 8, 8)
    first, second = drops.mask(x), drops.mask(x)
    assert not torch.equal(first, second)
    assert torch.equal(dropping(0.5).mask(x), first)
    assert not torch.equal(dropping(0.5, seed=1).mask(x), first)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_element_is_one_of_the_two(layout):
    x, y = images(3, 5, 7, 9).contiguous(memory_format=layout), images(3, 5, 7, 9, seed=2)
    mixed = dropping(0.5).mixed(x, y.contiguous(memory_format=layout))
    near_x, near_y = (mixed - x).abs() < 1e-6, (mixed - y).abs() < 1e-6
    assert bool((near_x | near_y).all())
    assert 0.4 < float(near_x.float().mean()) < 0.6
    assert mixed.stride() == x.stride()


def test_a_gradient_goes_to_the_side_that_was_taken():
    x, y = torch.ones(4, 100, requires_grad=True), torch.zeros(4, 100, requires_grad=True)
    mixed = dropping(0.5).mixed(x, y)
    gradient = images(4, 100)
    mixed.backward(gradient)
    assert torch.equal(x.grad, gradient * mixed.detach())
    assert torch.equal(y.grad, gradient * (1 - mixed.detach()))


def test_a_side_that_needs_no_gradient_gets_none():
    y = torch.zeros(4, 100, requires_grad=True)
    dropping(0.5).mixed(torch.ones(4, 100), y).sum().backward()
    assert 0 < float(y.grad.sum()) < 400
