"""The entropy of codes: by hand, against scipy, against the closed form for fine steps, and the rate of mid-tread."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from pytorch_quantizer import InputError, IntQuantizer, QParams
from pytorch_quantizer.quantization.bit_allocation import midtread_levels
from pytorch_quantizer.quantization.entropy import code_entropy, entropy_of
from pytorch_quantizer.quantization.qtypes.allocated_quantizer import AllocatedQuantizer
from pytorch_quantizer.quantization.qtypes.mid_tread_quantizer import MidTreadQuantizer

codes_lists = st.lists(st.integers(-128, 127), min_size=1, max_size=60)
GAUSSIAN_BITS = 0.5 * math.log2(2 * math.pi * math.e)  # differential entropy at σ = 1
LAPLACE_BITS = math.log2(2 * math.e)  # at b = 1


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestCodeEntropy:
    def test_by_hand(self):
        assert code_entropy(torch.tensor([3, 3, 3])) == 0
        assert code_entropy(torch.tensor([0, 1, 0, 1])) == pytest.approx(1)
        assert code_entropy(torch.tensor([-1, 0, 0, 1, 0, 0, 1, -1])) == pytest.approx(1.5)
        assert code_entropy(torch.arange(256, dtype=torch.uint8)) == pytest.approx(8)

    def test_each_channel_has_its_own_code(self):
        codes = torch.tensor([[0, 0, 0, 0], [5, 6, 5, 6]])
        assert code_entropy(codes, axis=0) == pytest.approx(0.5)
        assert code_entropy(codes) == pytest.approx(1.5)
        assert code_entropy(codes.T, axis=-1) == pytest.approx(0.5)
        assert code_entropy(codes.T, axis=0) == pytest.approx(1)

    @settings(max_examples=60, deadline=None)
    @given(codes=codes_lists)
    def test_is_scipys(self, codes):
        counts = [codes.count(code) for code in set(codes)]
        assert code_entropy(torch.tensor(codes)) == pytest.approx(scipy_entropy(counts, base=2), abs=1e-12)

    @settings(max_examples=60, deadline=None)
    @given(codes=codes_lists, other=codes_lists)
    def test_laws(self, codes, other):
        """At most log2 of the codes there are; names and order don't matter; codes of one's own never cost more."""
        x = torch.tensor(codes)
        value = code_entropy(x)
        assert 0 <= value <= math.log2(len(set(codes))) + 1e-12
        assert code_entropy(7 - 3 * x.flip(0)) == pytest.approx(value, abs=1e-12)
        assert code_entropy(x.repeat(3)) == pytest.approx(value, abs=1e-12)
        size = min(len(codes), len(other))
        two = torch.tensor([codes[:size], other[:size]])
        assert code_entropy(two, axis=0) <= code_entropy(two) + 1e-12

    def test_runs_where_the_codes_are(self, device):
        assert code_entropy(torch.tensor([0, 1, 2, 3], dtype=torch.int8, device=device)) == pytest.approx(2)

    def test_refusals(self):
        with pytest.raises(InputError, match=r"codes must be integers, got torch.float32"):
            code_entropy(torch.zeros(3))
        with pytest.raises(InputError, match=r"there are no codes to measure: the tensor has shape \[0, 3\]"):
            code_entropy(torch.zeros(0, 3, dtype=torch.int8))
        with pytest.raises(InputError, match=r"there are no codes to measure"):
            code_entropy(torch.zeros(0, 3, dtype=torch.int8), axis=0)


class TestEntropyOfQuantizers:
    @pytest.mark.parametrize("step", [0.5, 0.25, 0.1])
    def test_fine_steps_follow_the_closed_form(self, step):
        """H = h(X) − log2 Δ, for a normal and a Laplace density; a wide cell adds its own spread, Δ²/12."""
        normal = gaussian(400_000)
        grid = QParams(torch.tensor(step), torch.tensor(0, dtype=torch.int32), 12, signed=True)
        quantizer = IntQuantizer.from_qparams(grid)
        widened = 0.5 * math.log2(1 + step**2 / 12)
        assert entropy_of(quantizer, normal) == pytest.approx(GAUSSIAN_BITS + widened - math.log2(step), abs=0.005)
        uniform = torch.rand(400_000, generator=torch.Generator().manual_seed(1)) - 0.5
        laplace = -uniform.sign() * torch.log1p(-2 * uniform.abs())
        assert entropy_of(quantizer, laplace) == pytest.approx(LAPLACE_BITS - math.log2(step), abs=0.02)

    def test_a_mid_tread_quantizer_follows_it_too(self):
        x = gaussian(4, 100_000) * torch.tensor([[0.5], [1.0], [2.0], [4.0]])
        quantizer = MidTreadQuantizer(midtread_levels(x.std(1), 6)).fit(x)
        expected = [GAUSSIAN_BITS + math.log2(sigma) for sigma in (0.5, 1, 2, 4)]
        fine = sum(h - math.log2(step) for h, step in zip(expected, quantizer.scale.tolist(), strict=True)) / 4
        assert entropy_of(quantizer, x) == pytest.approx(fine, abs=0.01)

    @pytest.mark.parametrize("target", [2, 3, 4])
    def test_rate_is_below_that_of_the_levels(self, target):
        x = gaussian(16, 5000) * torch.linspace(-2, 2, 16).exp()[:, None]
        levels = midtread_levels(x.std(1), target)
        rate = entropy_of(MidTreadQuantizer(levels).fit(x), x)
        assert rate <= levels.double().log2().mean().item()
        assert rate < target - 0.3

    def test_bits_that_are_not_needed_cost_nothing(self):
        x = gaussian(3, 1000)
        quantizer = AllocatedQuantizer(torch.tensor([0, 4, 2])).fit(x)
        each = [code_entropy(quantizer.quantize(x)[i]) for i in range(3)]
        assert each[0] == 0
        assert all(value <= bits for value, bits in zip(each, (0, 4, 2), strict=True))
        assert entropy_of(quantizer, x) == pytest.approx(sum(each) / 3)

    def test_a_quantizer_per_tensor_has_one_code(self):
        x = gaussian(3, 1000) * torch.tensor([[0.1], [1.0], [10.0]])
        quantizer = IntQuantizer(6).fit(x)
        assert entropy_of(quantizer, x) == code_entropy(quantizer.quantize(x))
        assert entropy_of(IntQuantizer(6, axis=0).fit(x), x) > entropy_of(quantizer, x)
