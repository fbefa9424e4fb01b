"""The specification itself: against published vectors, plain Python arithmetic, and the laws of a quantizer."""

import ast
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hard_inputs import DTYPES, assert_same, hard_values
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_quantizer import reference

INT = torch.int32


def grid(scale, zero_point):
    return torch.tensor(scale), torch.tensor(zero_point, dtype=INT)


def test_imports_torch_alone():
    imported = set()
    for file in Path(reference.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text())
        imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m for m in imported if not m.startswith("pytorch_quantizer.reference.")} == {"torch"}


class TestPhilox:
    """Philox4x32-10 as published (Random123's known-answer vectors), its first word's upper 24 bits."""

    def test_zero_counter_zero_key(self):
        assert reference.uniform24(torch.Size([1]), 0, 0).item() == (0x6627E8D5 >> 8) * 2.0**-24

    def test_matches_plain_python(self):
        for seed, offset in ((0, 1), (123456789, 5), (-1, 2**40 + 3), (2**62 + 1, 2**63 - 3)):
            expected = [(philox(seed, offset + i) >> 8) * 2.0**-24 for i in range(6)]
            assert reference.uniform24(torch.Size([2, 3]), seed, offset).flatten().tolist() == expected

    def test_python_philox_matches_the_known_answer_of_all_ones(self):
        # Random123 kat_vectors: counter and key all ones give 408f276d …; checks the multipliers and the key schedule.
        assert philox_words((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2)[0] == 0x408F276D


def philox_words(counter, key):
    (a, b, c, d), (k, m), mask = counter, key, 0xFFFFFFFF
    for _ in range(10):
        low, high = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (high >> 32) ^ b ^ k, high & mask, (low >> 32) ^ d ^ m, low & mask
        k, m = (k + 0x9E3779B9) & mask, (m + 0xBB67AE85) & mask
    return a, b, c, d


def philox(seed, counter):
    mask = 0xFFFFFFFF
    return philox_words((counter & mask, counter >> 32 & mask, 0, 0), (seed & mask, seed >> 32 & mask))[0]


class TestRounding:
    """Every tie and its neighbours, against exact rational arithmetic."""

    @pytest.mark.parametrize("rounding", ["half_even", "half_away"])
    def test_ties_and_neighbours(self, rounding):
        ties = np.arange(-20, 20, dtype=np.float32) + np.float32(0.5)
        near = np.concatenate([np.nextafter(ties, np.float32(-99)), ties, np.nextafter(ties, np.float32(99))])
        near = np.concatenate([near, np.float32([0.49999997, -0.49999997, 8388607.5, 8388609, -8388609, 0, -0.0])])
        codes = reference.quantize(torch.from_numpy(near), *grid(1.0, 0), -(2**24), 2**24, rounding=rounding)
        assert codes.tolist() == [exact_round(float(v), rounding) for v in near]

    def test_stochastic_takes_the_floor_or_the_next(self):
        x = hard_values(4000).nan_to_num(0, 0, 0).clamp(-1e4, 1e4)
        codes = reference.quantize(x, *grid(0.75, 0), -(2**20), 2**20, rounding="stochastic", seed=3)
        v = x / 0.75
        below = torch.floor(v)
        u = reference.uniform24(x.shape, 3, 0)
        assert torch.equal(codes.float(), torch.where(u < v - below, below + 1, below))

    def test_zero_point_is_added_after_rounding(self):
        # round(0.5) + 1 = 1 and round(1.5) + 1 = 3; rounding 1.5 and 2.5 instead would give 2 and 2.
        assert reference.quantize(torch.tensor([0.5, 1.5]), *grid(1.0, 1), 0, 15).tolist() == [1, 3]


def exact_round(v, rounding):
    if rounding == "half_even":
        return round(Fraction(v))
    return int(math.copysign(math.floor(abs(Fraction(v)) + Fraction(1, 2)), v))


class TestValues:
    def test_true_division(self):
        # Next to ties a product with 1/s rounds to other codes than the quotient does.
        s = np.float32(0.3)
        x = (np.arange(-3000, 3000, dtype=np.float32) + np.float32(0.5)) * s
        expected = np.rint(x / s)
        assert (expected != np.rint(x * (np.float32(1) / s))).any()
        codes = reference.quantize(torch.from_numpy(x), *grid(float(s), 0), -(2**15), 2**15 - 1)
        assert codes.tolist() == expected.tolist()

    def test_special_values(self):
        x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -0.0])
        y = reference.fake_quantize(x, *grid(0.5, 2), 0, 15)
        assert y[0].isnan()
        assert y[1:].tolist() == [6.5, -1.0, 6.5, 0.0]
        assert not torch.signbit(y[4])

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
    def test_invalid_scale_gives_nan(self, scale):
        x = torch.tensor([0.0, 1.0, float("inf")])
        assert reference.fake_quantize(x, *grid(scale, 1), 0, 15).isnan().all()
        assert reference.dequantize(torch.tensor([0, 1, 2], dtype=torch.uint8), *grid(scale, 1)).isnan().all()

    def test_nan_takes_the_code_of_zero_within_the_grid(self):
        x = torch.tensor([float("nan")])
        assert reference.quantize(x, *grid(1.0, 5), 0, 15).item() == 5
        assert reference.quantize(x, *grid(1.0, 99), 0, 15).item() == 15

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_half_types_are_the_float32_result_rounded_once(self, dtype):
        x = hard_values(3000, dtype=dtype)
        y = reference.fake_quantize(x.float(), *grid(0.3, 3), 0, 255)
        assert_same(reference.fake_quantize(x, *grid(0.3, 3), 0, 255), y.to(dtype))

    @pytest.mark.parametrize(
        ("qmin", "qmax", "dtype"),
        [
            (0, 255, torch.uint8),
            (-128, 127, torch.int8),
            (-1, 1, torch.int8),
            (0, 256, torch.int16),
            (-129, 0, torch.int16),
            (0, 65535, torch.int32),
        ],
    )
    def test_codes_take_the_smallest_dtype(self, qmin, qmax, dtype):
        assert reference.quantize(torch.zeros(1), *grid(1.0, 0), qmin, qmax).dtype == dtype


class TestStatistics:
    """Against numpy in float64 and the definitions."""

    def test_definitions(self):
        x = torch.from_numpy(np.random.default_rng(0).normal(1, 3, (7, 11, 13)).astype(np.float32))
        for axis in (None, 0, 1, -1):
            rows = x.double().numpy().reshape(1, -1) if axis is None else np.moveaxis(x.double().numpy(), axis, 0)
            rows = rows.reshape(rows.shape[0], -1)
            expected = np.stack([definitions(row) for row in rows], axis=1)
            got = reference.tensor_statistics(x, axis=axis).numpy().reshape(9, -1)
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)

    def test_empty(self):
        empty = [0, math.inf, -math.inf, 0, 0, 0, 0, 0, 0]
        assert reference.tensor_statistics(torch.zeros(0)).tolist() == empty
        assert reference.tensor_statistics(torch.zeros(2, 0), axis=0)[:, 1].tolist() == empty
        assert reference.tensor_statistics(torch.zeros(2, 0), axis=1).shape == (9, 0)


def definitions(row):
    positive = row[row > 0]
    mean = row.mean()
    spread = [np.abs(row - mean).mean(), ((row - mean) ** 2).mean()]
    return [row.size, row.min(), row.max(), mean, *spread, positive.size, positive.mean(), (positive**2).mean()]


class TestLaws:
    """Promise 2, for numbers that hypothesis finds; round to nearest unless said otherwise."""

    grids = st.tuples(st.floats(2.0**-60, 2.0**60, width=32), st.integers(1, 16), st.booleans(), st.floats(0, 1)).map(
        lambda t: make_grid(*t)
    )
    numbers = st.lists(st.floats(-(2.0**80), 2.0**80, width=32), min_size=1, max_size=20)
    roundings = st.sampled_from(["half_even", "half_away"])

    @settings(deadline=None)
    @given(numbers, grids, roundings)
    def test_idempotent_monotone_and_on_the_grid(self, numbers, grid, rounding):
        x = torch.tensor(sorted(numbers))
        y = reference.fake_quantize(x, *grid, rounding=rounding)
        assert torch.equal(reference.fake_quantize(y, *grid, rounding=rounding), y)
        assert (y.diff() >= 0).all()
        scale, zero_point, qmin, qmax = grid
        codes = reference.quantize(x, *grid, rounding=rounding)
        assert codes.min() >= qmin
        assert codes.max() <= qmax
        assert torch.equal(reference.dequantize(codes, scale, zero_point), y)

    @settings(deadline=None)
    @given(numbers, grids, roundings)
    def test_error_is_at_most_half_a_step_inside_the_range(self, numbers, grid, rounding):
        scale, zero_point, qmin, qmax = grid
        x = torch.tensor(numbers)
        y = reference.fake_quantize(x, *grid, rounding=rounding).double()
        s, x = scale.double(), x.double()
        inside = (x >= (qmin - zero_point) * s) & (x <= (qmax - zero_point) * s)
        bound = s / 2 + 2.0**-24 * (x.abs() + y.abs())
        assert ((x - y).abs() <= bound)[inside].all()

    @settings(deadline=None)
    @given(grids, st.sampled_from(["half_even", "half_away", "stochastic"]))
    def test_zero_is_exact(self, grid, rounding):
        assert reference.fake_quantize(torch.zeros(3), *grid, rounding=rounding).tolist() == [0.0] * 3

    @settings(deadline=None)
    @given(grids, st.integers(0, 2**40))
    def test_stochastic_leaves_the_grid_where_it_is(self, grid, seed):
        scale, zero_point, qmin, qmax = grid
        codes = torch.arange(qmin, qmax + 1, max(1, (qmax - qmin) // 50))
        x = reference.dequantize(codes.to(INT), scale, zero_point)
        moved = reference.fake_quantize(x, *grid, rounding="stochastic", seed=seed)
        # Exactly where the division undoes the product; else v is next to an integer and may round to the one below.
        exact = x / scale == codes - zero_point
        assert torch.equal(moved[exact], x[exact])

    @settings(deadline=None)
    @given(st.integers(0, 2**32))
    def test_per_channel_is_per_tensor_stacked(self, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, 4, 5, generator=generator)
        scale, zero_point = torch.rand(4, generator=generator) + 0.01, torch.arange(4, dtype=INT)
        y = reference.fake_quantize(x, scale, zero_point, -8, 7, axis=1)
        each = [reference.fake_quantize(x[:, c], scale[c], zero_point[c], -8, 7) for c in range(4)]
        assert torch.equal(y, torch.stack(each, 1))


def make_grid(scale, bits, signed, where):
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    zero_point = qmin + round(where * (qmax - qmin))
    return torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=INT), qmin, qmax
