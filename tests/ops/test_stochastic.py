"""Stochastic rounding: what it depends on, what it leaves alone, and that it is unbiased."""

import pytest
import torch
from hard_inputs import hard_grid, hard_values
from op_checks import INT

from pytorch_quantizer import ops, reference


class TestStochastic:
    def test_depends_on_the_logical_index_alone(self, device):
        x = torch.randn(6, 8, 5, 7, generator=torch.Generator().manual_seed(0)).to(device)
        grid = (*hard_grid(x, None), -8, 7)
        y = ops.fake_quantize(x, *grid, rounding="stochastic", seed=9)
        layouts = [
            x.contiguous(memory_format=torch.channels_last),
            x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        ]
        for other in layouts:
            assert other.stride() != x.stride()
            assert torch.equal(ops.fake_quantize(other, *grid, rounding="stochastic", seed=9), y)

    def test_offset_continues_the_sequence(self, device):
        x = hard_values(3000).nan_to_num().to(device)
        grid = (*hard_grid(x, None), -8, 7)
        whole = ops.quantize(x, *grid, rounding="stochastic", seed=1)
        rest = ops.quantize(x[1234:], *grid, rounding="stochastic", seed=1, offset=1234)
        assert torch.equal(whole[1234:], rest)
        assert not torch.equal(whole, ops.quantize(x, *grid, rounding="stochastic", seed=2))

    def test_values_on_the_grid_never_move(self, device):
        codes = torch.arange(-128, 128, device=device).repeat(200).to(torch.int16)
        scale, zero_point = torch.tensor(0.125, device=device), torch.tensor(3, dtype=INT, device=device)
        x = ops.dequantize(codes, scale, zero_point)
        for seed in range(5):
            moved = ops.quantize(x, scale, zero_point, -128, 127, rounding="stochastic", seed=seed, dtype=torch.int16)
            assert torch.equal(moved, codes)

    def test_goes_up_only_where_u_is_less_than_the_fraction(self, device):
        u = reference.uniform24(torch.Size([5000]), 7, 3, device)
        unit = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device), 0, 15
        keywords = {"rounding": "stochastic", "seed": 7, "offset": 3}
        assert (ops.quantize(u, *unit, **keywords) == 0).all()
        assert (ops.quantize(u + 2.0**-24, *unit, **keywords) == 1).all()

    @pytest.mark.parametrize("fraction", [0.03125, 0.25, 0.5, 0.9375])
    def test_unbiased(self, device, fraction):
        # n draws of a Bernoulli(f): the mean is within 5·√(f(1 − f)/n) of f but for 6 in 10⁷ seeds; this one is fixed.
        n = 400_000
        x = torch.full((n,), 3 + fraction, device=device)
        grid = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device), 0, 15
        y = ops.fake_quantize(x, *grid, rounding="stochastic", seed=11).double()
        assert set(y.unique().tolist()) == {3.0, 4.0}
        assert abs(y.mean().item() - 3 - fraction) <= 5 * (fraction * (1 - fraction) / n) ** 0.5
