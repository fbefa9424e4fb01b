"""The straight-through gradient, against the closed form."""

import pytest
import torch
from op_checks import (
    INT,
)

from pytorch_quantizer import InputError, ops


class TestGradient:
    """Straight-through: dx = g inside the grid, 0 outside; by the closed form, not by finite differences."""

    def test_closed_form(self, device):
        x = torch.tensor(
            [-1.3, -1.2, 0.0, 5.0, 6.2, 6.3, float("inf"), float("nan")], device=device, requires_grad=True
        )
        scale, zero_point = torch.tensor(0.5, device=device), torch.tensor(2, dtype=INT, device=device)
        g = torch.arange(1.0, 9.0, device=device)
        ops.fake_quantize(x, scale, zero_point, 0, 14).backward(g)
        # round(−1.3/0.5) + 2 = −1 is outside, round(−1.2/0.5) + 2 = 0 inside; 6.2 → 14 inside, 6.3 → 15 outside.
        assert x.grad.tolist() == [0, 2, 3, 4, 5, 0, 0, 0]

    def test_infinite_gradient_outside_the_grid_is_zero(self, device):
        x = torch.tensor([100.0, 1.0], device=device, requires_grad=True)
        grid = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device), 0, 15
        ops.fake_quantize(x, *grid).backward(torch.tensor([float("inf")] * 2, device=device))
        assert x.grad.tolist() == [0, float("inf")]

    def test_parameters_get_none_and_a_scale_that_needs_one_is_refused(self, device):
        x = torch.ones(3, device=device, requires_grad=True)
        zero_point = torch.tensor(0, dtype=INT, device=device)
        with pytest.raises(InputError, match=r"scale must not need a gradient"):
            ops.fake_quantize(x, torch.tensor(1.0, device=device, requires_grad=True), zero_point, 0, 15)

    def test_second_derivative_is_refused(self, device):
        x = torch.ones(3, device=device, requires_grad=True)
        grid = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device), 0, 15
        (dx,) = torch.autograd.grad((ops.fake_quantize(x, *grid) ** 2).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()
