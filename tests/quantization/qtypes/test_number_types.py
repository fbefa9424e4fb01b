"""What every number type promises, whatever its grid. A new type joins by its line in the registry."""

import copy

import pytest
import torch

from pytorch_quantizer import InputError, TensorStatistics
from pytorch_quantizer.quantization.clipping import CLIPPINGS, Domain
from pytorch_quantizer.quantization.qtypes import NUMBER_TYPES, NumberType

BITS = {"int": (1, 2, 4, 8, 16)}  # the widths that a type is tested at; others at those of a new type
A_NEW_TYPES_BITS = (2, 4, 8)
SETTINGS = {  # as placement asks for them
    "weight": {"signed": True, "narrow": True, "symmetric": True, "axis": 0},
    "weight, per tensor": {"signed": True, "narrow": True, "symmetric": True},
    "weight of a transposed convolution": {"signed": True, "narrow": True, "symmetric": True, "axis": 1},
    "affine weight": {"signed": True, "symmetric": False, "axis": 0},
    "activation": {"signed": False, "symmetric": False},
    "activation after a relu": {"signed": False, "symmetric": False, "domain": Domain("nonnegative")},
    "clipped activation": {"signed": False, "symmetric": False, "clip": "laplace"},
    "half away": {"signed": False, "symmetric": False, "rounding": "half_away"},
}


def quantizers():
    """(type, bits, settings) of all cases that exist: one bit has no symmetric signed grid."""
    for name in NUMBER_TYPES:
        for bits in BITS.get(name, A_NEW_TYPES_BITS):
            for case, settings in SETTINGS.items():
                if bits > 1 or not settings["symmetric"]:
                    yield pytest.param((name, bits, settings), id=f"{name}{bits}-{case}")


@pytest.fixture(params=quantizers())
def unfitted(request):
    name, bits, settings = request.param
    return NUMBER_TYPES[name](bits, **settings)


@pytest.fixture
def fitted(unfitted):
    return unfitted.fit(sample(unfitted))


def sample(quantizer, seed=0):
    """[5, 6, 7, 3], channels of different widths along either of the first two axes."""
    x = torch.randn(5, 6, 7, 3, generator=torch.Generator().manual_seed(seed))
    x = x * 2.0 ** torch.arange(-2, 3).view(5, 1, 1, 1) + torch.arange(6).view(6, 1, 1) / 10
    return x.abs() if quantizer.domain.support == "nonnegative" else x


def channels(quantizer, x):
    """The slices of x that share a grid."""
    return [x] if quantizer.axis is None else x.unbind(quantizer.axis)


class TestFit:
    def test_returns_itself(self, unfitted):
        x = sample(unfitted)
        assert unfitted.fit(x) is unfitted
        assert unfitted.fit(TensorStatistics.from_tensor(x, axis=unfitted.axis)) is unfitted

    def test_from_statistics_is_from_the_tensor(self, fitted):
        x = sample(fitted)
        again = copy.deepcopy(fitted).fit(TensorStatistics.from_tensor(x, axis=fitted.axis))
        assert torch.equal(again(x), fitted(x))

    def test_takes_a_parameter_without_keeping_its_graph(self, unfitted):
        unfitted.fit(sample(unfitted).requires_grad_())
        assert not any(tensor.requires_grad for tensor in unfitted.storage().values())

    def test_refuses_what_is_not_finite(self, unfitted):
        for value in (float("nan"), float("inf")):
            x = sample(unfitted)
            x[1, 2, 3, 0] = value
            with pytest.raises(InputError, match="NaN or infinite"):
                unfitted.fit(x)

    def test_refuses_nothing(self, unfitted):
        with pytest.raises(InputError, match="no value was observed"):
            unfitted.fit(torch.zeros(5, 6, 0, 3))

    def test_comes_first(self, unfitted):
        x, codes = sample(unfitted), torch.ones(5, dtype=torch.int32)
        for method, *arguments in (("forward", x), ("quantize", x), ("dequantize", codes), ("storage",), ("range",)):
            with pytest.raises(InputError, match="no grid yet; call fit"):
                getattr(unfitted, method)(*arguments)


class TestForward:
    def test_keeps_shape_and_dtype(self, fitted):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = sample(fitted).to(dtype)
            for form in (x, x.contiguous(memory_format=torch.channels_last), x[..., :2]):
                y = fitted(form)
                assert (y.shape, y.dtype) == (form.shape, dtype)
                assert torch.equal(y, fitted(form.contiguous()))

    def test_leaves_its_input_alone(self, fitted):
        x = sample(fitted)
        fitted(x)
        assert torch.equal(x, sample(fitted))

    def test_in_place_is_the_same_to_the_bit(self, fitted):
        x, expected = sample(fitted), fitted(sample(fitted))
        assert fitted(x, inplace=True) is x
        assert torch.equal(x, expected)

    def test_in_place_is_refrained_from_where_a_gradient_is_needed(self, fitted):
        x = sample(fitted).requires_grad_()
        assert torch.equal(fitted(x, inplace=True), fitted(x))
        assert torch.equal(x, sample(fitted))

    def test_at_most_two_to_the_bits_levels(self, fitted):
        wide = torch.linspace(-9, 9, 5 * 6 * 7 * 3 * 200).view(5, 6, -1, 3)[:, torch.randperm(6)]
        for part in channels(fitted, fitted(wide)):
            assert part.unique().numel() <= 2**fitted.bits

    def test_idempotent(self, fitted):
        y = fitted(sample(fitted, seed=1) * 2)
        assert torch.equal(fitted(y), y)

    def test_monotone(self, fitted):
        x = sample(fitted, seed=1).flatten(2).sort(dim=-1).values.view(5, 6, 7, 3)
        assert (fitted(x).flatten(2).diff(dim=-1) >= 0).all()

    def test_stays_in_its_range(self, fitted):
        low, high = fitted.range()
        assert low.dtype == high.dtype == torch.float32
        far = 1e6 * (-1.0) ** torch.arange(5 * 6 * 7 * 3).view(5, 6, 7, 3)
        for i, part in enumerate(channels(fitted, fitted(far))):
            assert part.min() == (low if fitted.axis is None else low[i])
            assert part.max() == (high if fitted.axis is None else high[i])

    def test_empty(self, fitted):
        assert fitted(torch.zeros(5, 6, 0, 3)).shape == (5, 6, 0, 3)

    def test_gradient_goes_straight_through(self, fitted):
        x = fitted(sample(fitted)).requires_grad_()  # on the grid, thus inside
        gradient = torch.randn(x.shape)
        fitted(x).backward(gradient)
        assert torch.equal(x.grad, gradient)

    def test_per_channel_is_per_tensor_stacked(self, fitted):
        x = sample(fitted)
        for part, ours in zip(channels(fitted, x), channels(fitted, fitted(x)), strict=True):
            one = copy.deepcopy(fitted)
            one.axis = None
            assert torch.equal(one.fit(part)(part), ours)

    def test_constants_come_out_as_they_are(self, unfitted):
        for unfitted.clip in CLIPPINGS:
            for value in (0.0, 0.75, 1e-30, 1e30):
                x = torch.full((5, 6, 7, 3), value)
                torch.testing.assert_close(unfitted.fit(x)(x), x, rtol=3e-7, atol=0)


class TestCodes:
    def test_round_trip_is_forward(self, fitted):
        x = sample(fitted, seed=1) * 1.5
        codes = fitted.quantize(x)
        assert not codes.is_floating_point()
        assert codes.shape == x.shape
        assert fitted.dequantize(codes).dtype == torch.float32
        assert torch.equal(fitted.dequantize(codes), fitted(x))

    def test_half_types_are_the_float32_values_rounded_once(self, fitted):
        for dtype in (torch.float16, torch.bfloat16):
            x = sample(fitted).to(dtype)
            assert torch.equal(fitted.dequantize(fitted.quantize(x)).to(dtype), fitted(x))

    def test_no_more_codes_than_bits(self, fitted):
        codes = fitted.quantize(sample(fitted) * 100).int()
        assert codes.max() - codes.min() < 2**fitted.bits


class TestStorage:
    def test_rebuilds_the_quantizer(self, fitted, unfitted):
        x = sample(fitted, seed=1)
        stored = {name: tensor.clone() for name, tensor in fitted.storage().items()}
        expected, codes = fitted(x), fitted.quantize(x)
        other = copy.deepcopy(unfitted).fit(sample(fitted, seed=2) * 3)
        assert other.restore(stored) is other
        assert torch.equal(other(x), expected)
        assert torch.equal(other.quantize(x), codes)

    def test_holds_tensors_alone(self, fitted):
        assert all(isinstance(tensor, torch.Tensor) for tensor in fitted.storage().values())

    def test_a_copy_shares_nothing(self, fitted):
        x = sample(fitted)
        other, expected = copy.deepcopy(fitted), fitted(x)
        other.fit(x * 5)
        assert torch.equal(fitted(x), expected)
        assert torch.equal(copy.deepcopy(fitted)(x), expected)

    def test_state_dict_carries_the_grid(self, fitted):
        x = sample(fitted)
        other = copy.deepcopy(fitted).fit(x * 5)
        other.load_state_dict(fitted.state_dict())
        assert torch.equal(other(x), fitted(x))


class TestNames:
    @pytest.mark.parametrize("name", NUMBER_TYPES)
    def test_parsed_as_recipes_write_them(self, name):
        for bits in range(1, 17):
            number = NumberType.parse(f"{name}{bits}")
            assert (number.name, number.bits, number.is_float, str(number)) == (name, bits, False, f"{name}{bits}")

    def test_float(self):
        assert NumberType.parse("float32").is_float
        assert NumberType.parse("float").bits == 32

    @pytest.mark.parametrize("text", ["int0", "int17", "int99999"])
    def test_impossible_bits(self, text):
        with pytest.raises(InputError, match=rf"bits must be between 1 and 16, got \d+ in '{text}'"):
            NumberType.parse(text)

    @pytest.mark.parametrize("text", ["int", "4", "itn4", "int4.5", "int-4", "", "INT4", " int4", 4, None, ["int4"]])
    def test_unknown_names(self, text):
        with pytest.raises(InputError, match=r"a number type must be one of int1 … int16 or float32, got"):
            NumberType.parse(text)
