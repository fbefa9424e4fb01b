"""From sums to codes: half to even, clamps, and gemmlowp's fixed-point multiplier against Python's own integers."""

import math
import random

import pytest
import torch

from pytorch_quantizer.export.requantize import codes_of, fixed_point, multiply_fixed_point, scaled
from pytorch_quantizer.quantization.qparams import QParams

GRID = QParams(torch.tensor(0.5), torch.tensor(3, dtype=torch.int32), 4, False, False, None)


class TestCodes:
    def test_half_to_even_then_the_zero_point_then_the_clamp(self):
        v = torch.tensor([0.5, 1.5, -0.5, -2.5, 100.0, -100.0, math.inf, -math.inf, math.nan])
        assert codes_of(v, GRID).tolist() == [3, 5, 3, 1, 15, 0, 15, 0, 3]


class TestScaled:
    def test_the_multiplier_is_one_float32_number(self):
        values, scale, output = torch.tensor([3.0, 7.0]).double(), torch.tensor(0.1), torch.tensor(0.3)
        multiplier = scale / output
        assert multiplier.dtype == torch.float32
        assert torch.equal(scaled(values, scale, output), values.float() * multiplier)

    def test_wide_sums_keep_what_float32_would_lose(self):
        values = torch.tensor([2.0**40 + 1], dtype=torch.float64)
        assert scaled(values, torch.tensor(1.0), torch.tensor(1.0), wide=True).item() == 2**40 + 1


def saturating_rounding_doubling_high_mul(a, b):
    """gemmlowp's, in Python's integers: the rounded upper 32 bits of 2ab."""
    product = a * b
    nudge = 2**30 if product >= 0 else 1 - 2**30
    return int(math.copysign(abs(product + nudge) // 2**31, product + nudge))


def rounding_divide_by_power(x, exponent):
    """Round half away from zero of x / 2^exponent."""
    return int(math.copysign((2 * abs(x) + 2**exponent) // 2 ** (exponent + 1), x)) if exponent else x


class TestFixedPoint:
    @pytest.mark.parametrize("multiplier", [1e-7, 0.01, 0.3, 0.5, 0.99999999, 1.0, 1.7, 300.0])
    def test_the_mantissa_has_31_bits(self, multiplier):
        mantissa, shift = fixed_point(torch.tensor(multiplier, dtype=torch.float64))
        assert 2**30 <= mantissa.item() < 2**31
        assert math.isclose(mantissa.item() * 2.0 ** (-31 - shift.item()), multiplier, rel_tol=2**-31)

    def test_as_gemmlowp_computes(self):
        draw = random.Random(0)
        sums = [draw.randrange(-(2**31), 2**31) >> draw.randrange(31) for _ in range(2000)]
        sums += [0, 1, -1, 2**31 - 1, -(2**31)]
        for multiplier in (0.4999, 0.0123, 0.00071, 1.3e-6):
            mantissa, shift = fixed_point(torch.tensor(multiplier, dtype=torch.float64))
            got = multiply_fixed_point(torch.tensor(sums), mantissa, shift).tolist()
            high = [saturating_rounding_doubling_high_mul(value, mantissa.item()) for value in sums]
            assert got == [rounding_divide_by_power(value, shift.item()) for value in high]

    def test_multipliers_above_one_shift_to_the_left_and_saturate(self):
        mantissa, shift = fixed_point(torch.tensor([3.0, 3.0], dtype=torch.float64))
        assert multiply_fixed_point(torch.tensor([5, 2**31 - 1]), mantissa, shift).tolist() == [15, 1610612735]

    def test_a_multiplier_a_channel(self):
        mantissa, shift = fixed_point(torch.tensor([[0.25], [0.75]], dtype=torch.float64))
        assert multiply_fixed_point(torch.tensor([[10, -10], [10, -10]]), mantissa, shift).tolist() == [
            [3, -3],
            [8, -7],
        ]
