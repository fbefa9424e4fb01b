"""LevelsQuantizer: the nearest level by exact arithmetic, and tables that are never older than what is stored."""

import copy
import pickle
from fractions import Fraction

import pytest
import torch
from hard_inputs import DTYPES, assert_same, hard_tensor

from pytorch_quantizer.quantization.qtypes import levels_quantizer
from pytorch_quantizer.quantization.qtypes.kmeans_quantizer import KMeansQuantizer
from pytorch_quantizer.quantization.qtypes.power_of_two_quantizer import PowerOfTwoQuantizer


def random_levels(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).sort(-1).values


def kmeans(levels, axis=None):
    bits = (levels.shape[-1] - 1).bit_length()
    return KMeansQuantizer(bits, axis=axis).restore({"codebook": levels})


def exactly_nearest(value, levels):
    """The nearest level in rational arithmetic, of two the one nearer to zero, of −a and a the first."""
    return min(levels, key=lambda level: (abs(Fraction(level) - Fraction(value)), abs(level), level))


@pytest.fixture
def counted(monkeypatch):
    """How many times thresholds were computed, in a list."""
    calls, original = [], levels_quantizer._highest_of_each

    def count(levels):
        calls.append(1)
        return original(levels)

    monkeypatch.setattr(levels_quantizer, "_highest_of_each", count)
    return calls


class TestNearest:
    @pytest.mark.parametrize("seed", range(5))
    def test_by_exact_arithmetic(self, seed):
        levels = torch.cat([random_levels(14, seed=seed), torch.tensor([-0.5, 0.5])]).sort().values
        middles = ((levels[1:].double() + levels[:-1].double()) / 2).float()
        x = torch.cat([middles, *(torch.nextafter(middles, torch.tensor(to)) for to in (9.0, -9.0)), levels])
        y = kmeans(levels)(x)
        assert y.tolist() == [exactly_nearest(value, levels.tolist()) for value in x.tolist()]

    @pytest.mark.parametrize("axis", [None, 0, 1, -1])
    def test_codes_and_levels_agree_with_forward(self, axis):
        x = hard_tensor("channels_last").nan_to_num(0)
        quantizer = kmeans(random_levels(*([] if axis is None else [x.shape[axis]]), 16), axis)
        assert_same(quantizer.dequantize(quantizer.quantize(x)), quantizer(x))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_in_place_overwrites_and_gives_the_same(self, dtype):
        x = hard_tensor("sliced", dtype)
        quantizer = kmeans(random_levels(16))
        expected = quantizer(x)
        assert quantizer(x, inplace=True) is x
        assert_same(x.contiguous(), expected.contiguous())

    def test_needed_gradients_go_before_in_place(self):
        x = torch.tensor([-9.0, 0.1, 9.0], requires_grad=True)
        y = kmeans(random_levels(16))(x, inplace=True)
        y.backward(torch.ones(3))
        assert x.tolist() == [-9.0, torch.tensor(0.1).item(), 9.0]
        assert x.grad.tolist() == [0, 1, 0]


class TestTables:
    """They are computed once, and anew whenever the stored buffer is replaced or written."""

    x = torch.linspace(-5, 5, 999)

    def same_as_new(self, quantizer):
        """Whether it does as a quantizer that never knew another buffer."""
        return torch.equal(quantizer(self.x), kmeans(quantizer.codebook.clone())(self.x))

    def test_computed_once(self, counted):
        quantizer = kmeans(random_levels(16))
        for _ in range(3):
            quantizer.dequantize(quantizer.quantize(quantizer(self.x)))
        assert len(counted) == 1

    def test_replaced(self):
        quantizer = kmeans(random_levels(16))
        before = quantizer(self.x)
        quantizer.codebook = random_levels(16, seed=1)
        assert not torch.equal(quantizer(self.x), before)
        assert self.same_as_new(quantizer)
        quantizer.fit(self.x * 3)
        assert self.same_as_new(quantizer)

    def test_written_in_place(self):
        quantizer = kmeans(random_levels(16))
        before = quantizer(self.x)
        quantizer.load_state_dict({"codebook": random_levels(16, seed=1)})
        assert not torch.equal(quantizer(self.x), before)
        assert self.same_as_new(quantizer)
        quantizer.codebook.mul_(2)
        assert self.same_as_new(quantizer)

    def test_copies_start_anew(self):
        quantizer = kmeans(random_levels(16))
        for _ in range(5):
            quantizer.codebook.mul_(1.1)
        quantizer(self.x)
        for make in (copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))):
            for writes in range(7):  # one of them as many as the original has seen
                other = make(quantizer)
                for _ in range(writes):
                    other.codebook.mul_(1.2)
                assert self.same_as_new(other)
        assert self.same_as_new(quantizer)

    def test_inference_tensors_are_not_trusted(self):
        with torch.inference_mode():
            quantizer = kmeans(random_levels(16))
            quantizer(self.x)
            quantizer.codebook.mul_(2)
            assert self.same_as_new(quantizer)

    def test_compiled(self):
        quantizer = PowerOfTwoQuantizer(4).fit(self.x)
        compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
        assert_same(compiled(self.x), quantizer(self.x))
        quantizer.fit(self.x * 3)
        assert_same(compiled(self.x), quantizer(self.x))
