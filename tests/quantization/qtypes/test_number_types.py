"""What every number type promises, whatever its levels. A new type joins by its line in the registry.

What a type can't keep is declared in the tables below, and the law is then tested in the form that holds for it.
"""

import copy

import pytest
import torch

from pytorch_quantizer import InputError, TensorStatistics
from pytorch_quantizer.quantization.clipping import CLIPPINGS, Domain
from pytorch_quantizer.quantization.qtypes import NUMBER_TYPES, NumberType
from pytorch_quantizer.quantization.qtypes.mx_quantizer import MXQuantizer

BITS = {"int": (1, 4, 8, 16), "kmeans": (1, 4), "pot": (4,), "apot": (3,)}  # others: their one width
SETTINGS = {  # as placement asks for them
    "weight": {"signed": True, "narrow": True, "symmetric": True, "axis": 0},
    "weight, per tensor": {"signed": True, "narrow": True, "symmetric": True},
    "weight of a transposed convolution": {"signed": True, "narrow": True, "symmetric": True, "axis": 1},
    "affine weight": {"signed": True, "symmetric": False, "axis": 0},
    "activation": {"signed": False, "symmetric": False},
    "activation after a relu": {"signed": False, "symmetric": False, "domain": Domain("nonnegative")},
}
CLIPPED = {  # ranges other than min-max; a type that isn't here has none
    "int": ("laplace",),
    "pot": ("percentile", "std", "mse"),
    "apot": ("percentile", "std", "mse"),
    "fp8_e4m3": ("mse",),
    "fp8_e5m2": ("mse",),
}
ROUNDED = {"int": ("half_away",)}  # roundings other than half to even
MX = tuple(name for name, quantizer in NUMBER_TYPES.items() if issubclass(quantizer, MXQuantizer))
NEEDS_SIGNS = ("binary",)  # has no use for a tensor without negative values
NEVER_FITTED = MX  # each tensor brings its own scales
FROM_BINS = ("kmeans", "ternary")  # fitted to statistics they are the optimum of the histogram, not of the values
NO_ZERO = ("kmeans", "binary")  # zero is no level, or only by chance
FEWER_LEVELS_LOSE_CONSTANTS = ("binary", *MX)  # not every constant is a level
GRID_FOLLOWS_THE_TENSOR = MX  # range() is what could be reached, not what is


def cases(name):
    """(description, settings) of what placement may ask of a type."""
    settings = dict(SETTINGS)
    if name != "int":  # to the others signs and zero points are nothing, so these are cases that there are already
        del settings["affine weight"], settings["weight, per tensor"]
    for clip in CLIPPED.get(name, ()):
        settings[f"activation, {clip}"] = {"signed": False, "symmetric": False, "clip": clip}
    if "mse" in CLIPPED.get(name, ()):
        settings["weight, mse"] = {"axis": 0, "clip": "mse"}
    for rounding in ROUNDED.get(name, ()):
        settings[rounding] = {"signed": False, "symmetric": False, "rounding": rounding}
    if name in NEEDS_SIGNS:
        del settings["activation after a relu"]
    return settings.items()


def quantizers():
    """(type, bits, settings) of all cases that exist: one bit has no symmetric signed uniform grid."""
    for name, quantizer in NUMBER_TYPES.items():
        for bits in BITS[name] if quantizer.fixed_bits is None else (quantizer.fixed_bits,):
            for case, settings in cases(name):
                if (name, bits) != ("int", 1) or not settings.get("symmetric", True):
                    yield pytest.param((name, bits, settings), id=f"{name}{bits}-{case}")


@pytest.fixture(params=quantizers(), scope="module")
def asked(request):
    return request.param


@pytest.fixture
def name(asked):
    return asked[0]


@pytest.fixture
def unfitted(asked):
    name, bits, settings = asked
    return NUMBER_TYPES[name](bits, **settings)


@pytest.fixture(scope="module")
def fitted_once(asked):
    name, bits, settings = asked
    quantizer = NUMBER_TYPES[name](bits, **settings)
    return quantizer.fit(sample(quantizer))


@pytest.fixture
def fitted(fitted_once):
    return copy.deepcopy(fitted_once)


def sample(quantizer, seed=0):
    """[5, 6, 7, 3], channels of different widths along either of the first two axes."""
    x = torch.randn(5, 6, 7, 3, generator=torch.Generator().manual_seed(seed))
    x = x * 2.0 ** torch.arange(-2, 3).view(5, 1, 1, 1) + torch.arange(6).view(6, 1, 1) / 10
    return x.abs() if quantizer.domain.support == "nonnegative" else x


def channels(quantizer, x):
    """The slices of x that are fitted together."""
    return [x] if quantizer.axis is None else x.unbind(quantizer.axis)


def groups(quantizer, x):
    """The values of x that share their levels, flat: channels; of MX types blocks of 32."""
    if not isinstance(quantizer, MXQuantizer):
        return [part.flatten() for part in channels(quantizer, x)]
    lines = x.movedim(1, -1).flatten(0, -2) if quantizer.axis is None else x.movedim(quantizer.axis, 0).flatten(1)
    return [block for line in lines for block in line.split(32)]


def measured(quantizer, x):
    return TensorStatistics.from_tensor(x, axis=quantizer.axis, histogram=quantizer.needs_histogram)


class TestFit:
    def test_returns_itself(self, unfitted):
        x = sample(unfitted)
        assert unfitted.fit(x) is unfitted
        assert unfitted.fit(measured(unfitted, x)) is unfitted

    def test_from_statistics_is_from_the_tensor(self, fitted, name):
        x = sample(fitted)
        again = copy.deepcopy(fitted).fit(measured(fitted, x))
        if name in FROM_BINS or (name != "int" and fitted.clip == "mse"):
            errors = [(x - quantizer(x)).square().mean() for quantizer in (fitted, again)]
            least = 1 - 1e-6 if name in FROM_BINS else 0.98  # the optimum, or the best that a search has found
            assert errors[0] * least <= errors[1] <= errors[0] * 1.02 + 1e-5
        else:
            assert torch.equal(again(x), fitted(x))

    def test_asks_for_the_histogram_that_it_needs(self, unfitted):
        x = sample(unfitted)
        bare = TensorStatistics.from_tensor(x, axis=unfitted.axis)
        if unfitted.needs_histogram:
            with pytest.raises(InputError, match=r"histogram=True"):
                unfitted.fit(bare)
        else:
            assert unfitted.fit(bare) is unfitted

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

    def test_comes_first(self, unfitted, name):
        x, codes = sample(unfitted), torch.ones(5, dtype=torch.int32)
        for method, *arguments in (("forward", x), ("quantize", x), ("dequantize", codes), ("storage",), ("range",)):
            if name in NEVER_FITTED:
                getattr(unfitted, method)(*arguments)
            else:
                with pytest.raises(InputError, match="no grid yet; call fit"):
                    getattr(unfitted, method)(*arguments)


class TestForward:
    def test_keeps_shape_and_dtype(self, fitted):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = sample(fitted).to(dtype)
            for form in (x, x.contiguous(memory_format=torch.channels_last), x[..., :2]):
                y = fitted(form)
                assert (y.shape, y.dtype, y.stride()) == (form.shape, dtype, torch.empty_like(form).stride())
                assert torch.equal(y, fitted(form.contiguous()))

    def test_leaves_its_input_alone(self, fitted):
        x = sample(fitted)
        fitted(x)
        fitted.quantize(x)
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
        if isinstance(fitted, MXQuantizer):  # a block has 32 values
            wide = wide[:, :, :7]
        for part in groups(fitted, fitted(wide))[:50]:
            assert part.unique().numel() <= 2**fitted.bits

    def test_idempotent(self, fitted):
        y = fitted(sample(fitted, seed=1) * 2)
        assert torch.equal(fitted(y), y)

    def test_monotone(self, fitted):
        x = sample(fitted, seed=1) * 1.5
        for before, after in zip(groups(fitted, x), groups(fitted, fitted(x)), strict=True):
            assert (after[before.argsort()].diff() >= 0).all()

    def test_stays_in_its_range(self, fitted, name):
        low, high = fitted.range()
        assert low.dtype == high.dtype == torch.float32
        far = 1e6 * (-1.0) ** torch.arange(5 * 6 * 7 * 3).view(5, 6, 7, 3)
        for i, part in enumerate(channels(fitted, fitted(far))):
            lowest, highest = (low, high) if low.dim() == 0 else (low[i], high[i])
            if name in GRID_FOLLOWS_THE_TENSOR:
                assert lowest < part.min() < part.max() < highest
            else:
                assert part.min() == lowest
                assert part.max() == highest

    def test_nan_stays_nan_and_touches_nothing_else(self, fitted):
        x = sample(fitted, seed=1)
        expected = fitted(x)
        where = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.01
        where &= x.abs() < 1  # MX: not the largest of its block, which sets the scale
        y = fitted(torch.where(where, torch.nan, x))
        assert torch.equal(y.isnan(), where)
        if not isinstance(fitted, MXQuantizer) or fitted.axis is None:
            assert torch.equal(y[~where], expected[~where])

    def test_infinite_values_are_as_huge_ones(self, fitted):
        x = sample(fitted, seed=1)
        x[0, 0, 0, 0], x[1, 1, 1, 1] = float("inf"), -float("inf")
        y = fitted(x)
        assert y.isfinite().all()
        assert torch.equal(y, fitted(x.clamp(-3.4028234663852886e38, 3.4028234663852886e38)))

    def test_zero_is_exact(self, fitted, name):
        x = sample(fitted, seed=1)
        x[:, :, 3] = 0
        if name not in NO_ZERO:
            assert (fitted(x)[:, :, 3] == 0).all()

    def test_empty(self, fitted):
        assert fitted(torch.zeros(5, 6, 0, 3)).shape == (5, 6, 0, 3)
        assert fitted.quantize(torch.zeros(5, 6, 0, 3)).shape == (5, 6, 0, 3)

    def test_gradient_goes_straight_through(self, fitted):
        x = fitted(sample(fitted)).requires_grad_()  # on the grid, thus inside
        gradient = torch.randn(x.shape)
        fitted(x).backward(gradient)
        assert torch.equal(x.grad, gradient)

    def test_gradient_stops_far_outside(self, fitted, name):
        x = (1e6 * (-1.0) ** torch.arange(5 * 6 * 7 * 3).view(5, 6, 7, 3)).requires_grad_()
        fitted(x).sum().backward()
        assert (x.grad == (1 if name in GRID_FOLLOWS_THE_TENSOR else 0)).all()

    def test_per_channel_is_per_tensor_stacked(self, fitted):
        x = sample(fitted)
        for part, ours in zip(channels(fitted, x), channels(fitted, fitted(x)), strict=True):
            one = copy.deepcopy(fitted)
            one.axis = None
            flat = part if fitted.axis is None else part.flatten()
            assert torch.equal(one.fit(flat)(flat).view(part.shape), ours)

    def test_constants_come_out_as_they_are(self, unfitted, name):
        every = CLIPPINGS if (name, unfitted.bits, unfitted.axis) == ("int", 4, None) else CLIPPED.get(name, ())
        for unfitted.clip in ("minmax", *every):
            for value in (0.0, 0.75, 1e-30, 1e30):
                x = torch.full((5, 6, 7, 3), value)
                torch.testing.assert_close(unfitted.fit(x)(x), x, rtol=tolerance(unfitted), atol=floor(name))


def tolerance(quantizer):
    """How far a constant may come out: what saturates below the next power of two; float32's rounding."""
    if isinstance(quantizer, MXQuantizer):
        return 1 - quantizer.element.largest / 2 ** (quantizer.element.largest_exponent + 1)
    return 3e-7


def floor(name):
    """Binary has no zero: its α stays above."""
    return 2.0**-126 if name in NO_ZERO else 0


class TestCodes:
    def test_round_trip_is_forward(self, fitted):
        x = sample(fitted, seed=1) * 1.5
        x[:, :, 2] = 0
        codes = fitted.quantize(x)
        assert not codes.is_floating_point()
        assert codes.shape == x.shape
        assert fitted.dequantize(codes).dtype == torch.float32
        assert torch.equal(fitted.dequantize(codes), fitted(x))

    def test_any_layout(self, fitted):
        x = sample(fitted, seed=1)
        for form in (x.contiguous(memory_format=torch.channels_last), x[..., ::2], x.flip(0)):
            assert torch.equal(fitted.quantize(form), fitted.quantize(form.contiguous()))

    def test_half_types_are_the_float32_values_rounded_once(self, fitted):
        for dtype in (torch.float16, torch.bfloat16):
            x = sample(fitted).to(dtype)
            assert torch.equal(fitted.dequantize(fitted.quantize(x)).to(dtype), fitted(x))

    def test_no_more_codes_than_bits(self, fitted):
        for part in groups(fitted, fitted.quantize(sample(fitted) * 100).int())[:50]:
            assert part.unique().numel() <= 2**fitted.bits

    def test_nan_has_a_code(self, fitted):
        x = sample(fitted)
        x[1, 2, 3, 0] = float("nan")
        assert fitted.quantize(x).shape == x.shape

    def test_bytes_of_packed_codes(self, fitted):
        shape = (5, 6, 7, 3)
        codes = -(-630 * fitted.bits // 8)
        scales = len(groups(fitted, torch.zeros(shape))) if isinstance(fitted, MXQuantizer) else 0
        assert fitted.code_bytes(shape) == fitted.code_bytes(torch.Size(shape)) == codes + scales
        assert fitted.code_bytes((5, 6, 0, 3)) == 0

    def test_codes_pack_into_the_bytes_that_are_reported(self, fitted):
        codes = fitted.quantize(sample(fitted))
        packed = fitted.pack(codes)
        assert {stream.dtype for stream in packed.values()} == {torch.uint8}
        assert sum(stream.numel() for stream in packed.values()) == fitted.code_bytes(codes.shape)
        back = fitted.unpack(packed, codes.shape)
        assert torch.equal(back, codes)
        assert back.dtype == codes.dtype

    def test_a_stream_that_is_cut_short_is_refused(self, fitted):
        packed = fitted.pack(fitted.quantize(sample(fitted)))
        for name, stream in packed.items():
            with pytest.raises(InputError, match=r"must (hold|be) \d+"):
                fitted.unpack({**packed, name: stream[:-1]}, (5, 6, 7, 3))

    def test_integer_types_have_a_scale_and_a_zero_point(self, fitted):
        if not fitted.is_integer:
            assert fitted.scale is None
            return
        codes, shape = fitted.quantize(sample(fitted)).int(), [1] * 4
        if fitted.axis is not None:
            shape[fitted.axis] = -1
        scale, zero_point = fitted.scale.view(shape), fitted.zero_point.view(shape)
        assert (scale > 0).all()
        assert zero_point.dtype == torch.int32
        assert torch.equal(fitted.dequantize(codes), (codes - zero_point) * scale)


class TestStorage:
    def test_rebuilds_the_quantizer(self, fitted, unfitted):
        x = sample(fitted, seed=1)
        stored = {name: tensor.clone() for name, tensor in fitted.storage().items()}
        expected, codes = fitted(x), fitted.quantize(x)
        other = copy.deepcopy(unfitted).fit(sample(fitted, seed=2) * 3)
        assert other.restore(stored) is other
        assert torch.equal(other(x), expected)
        assert torch.equal(other.quantize(x), codes)

    def test_needs_no_fit(self, fitted, asked):
        name, bits, settings = asked
        x = sample(fitted, seed=1)
        assert torch.equal(NUMBER_TYPES[name](bits, **settings).restore(fitted.storage())(x), fitted(x))

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

    def test_half_models_keep_their_grids(self, fitted):
        x = sample(fitted)
        expected = fitted(x)
        assert torch.equal(fitted.half()(x), expected)


UNKNOWN = ("int", "4", "itn4", "int4.5", "int-4", "", "INT4", " int4", "int04", 4, None, ["int4"])
UNKNOWN += ("fp8", "binary1", "mxfp4_e2m1", "fp8_e4m38", "kmeans", "ternary2")
MISSPELT = {"INT4": "int4", "itn4": "int4", " int4": "int4", "Ternary": "ternary", "binary1": "binary"}
MISSPELT |= {"fp8_e5m3": "fp8_e5m2", "k-means4": "kmeans4", "flaot32": "float32", "MXFP4": "mxfp4"}


class TestNames:
    @pytest.mark.parametrize("name", NUMBER_TYPES)
    def test_parsed_as_recipes_write_them(self, name):
        quantizer = NUMBER_TYPES[name]
        for bits in quantizer.widths:
            text = name if quantizer.fixed_bits else f"{name}{bits}"
            number = NumberType.parse(text)
            assert (number.name, number.bits, number.is_float, str(number)) == (name, bits, False, text)
            assert number.is_integer == quantizer.is_integer
            assert quantizer(bits).describe() == text

    def test_which_there_are(self):
        widths = {name: (quantizer.widths[0], quantizer.widths[-1]) for name, quantizer in NUMBER_TYPES.items()}
        assert {name: widths[name] for name in BITS} == {
            "int": (1, 16),
            "kmeans": (1, 8),
            "pot": (2, 8),
            "apot": (2, 8),
        }
        fixed = {name: quantizer.fixed_bits for name, quantizer in NUMBER_TYPES.items() if quantizer.fixed_bits}
        assert fixed == {"ternary": 2, "binary": 1, "fp8_e4m3": 8, "fp8_e5m2": 8, "mxint8": 8, "mxfp4": 4} | {
            "mxfp8_e4m3": 8, "mxfp8_e5m2": 8, "mxfp6_e3m2": 6, "mxfp6_e2m3": 6
        }  # fmt: skip
        assert [name for name, quantizer in NUMBER_TYPES.items() if quantizer.is_integer] == [
            "int",
            "ternary",
            "binary",
        ]

    def test_float(self):
        assert NumberType.parse("float32").is_float
        assert not NumberType.parse("float32").is_integer
        assert NumberType.parse("float").bits == 32
        assert str(NumberType.parse("float")) == "float32"

    @pytest.mark.parametrize("text", ["int0", "int17", "int99999"])
    def test_impossible_bits(self, text):
        with pytest.raises(InputError, match=rf"bits must be between 1 and 16, got \d+ in '{text}'"):
            NumberType.parse(text)

    @pytest.mark.parametrize(("text", "rule"), [("kmeans9", "1 and 8"), ("pot1", "2 and 8"), ("apot9", "2 and 8")])
    def test_impossible_bits_of_other_types(self, text, rule):
        with pytest.raises(InputError, match=rf"bits must be between {rule}, got \d in '{text}'"):
            NumberType.parse(text)

    @pytest.mark.parametrize("text", UNKNOWN)
    def test_unknown_names(self, text):
        with pytest.raises(InputError, match=r"must be one of int1 … int16, kmeans1 … .*, mxint8 or float32, got"):
            NumberType.parse(text)

    @pytest.mark.parametrize(("text", "meant"), MISSPELT.items())
    def test_what_may_have_been_meant(self, text, meant):
        with pytest.raises(InputError, match=rf"\(did you mean '{meant}'\?\)"):
            NumberType.parse(text)


class TestRefusals:
    @pytest.mark.parametrize("name", [name for name in NUMBER_TYPES if name != "int"])
    def test_settings_that_a_type_has_not_got(self, name):
        quantizer = NUMBER_TYPES[name]
        for rounding in ("half_away", "stochastic", "up"):
            with pytest.raises(InputError, match=rf"rounding of {name} must be half_even .*, got '{rounding}'"):
                quantizer(quantizer.widths[0], rounding=rounding)
        for clip in {"laplace", "kl", "std", "mse", "percentile"} - set(CLIPPED.get(name, ())):
            with pytest.raises(InputError, match=rf"clip of {name} must be minmax.*, got '{clip}'"):
                quantizer(quantizer.widths[0], clip=clip)
        with pytest.raises(InputError, match=r"clip must be one of"):
            quantizer(quantizer.widths[0], clip="laplase")
        for bits in (0, quantizer.widths[-1] + 1, 32):
            with pytest.raises(InputError, match=rf"bits of {name} must be .*, got {bits}"):
                quantizer(bits)
        with pytest.raises(InputError, match="across_batches must be one of"):
            quantizer(quantizer.widths[0], across_batches="min")

    def test_storage_of_something_else(self, fitted):
        if not fitted.storage() or hasattr(fitted, "qparams"):  # nothing to miss; int's are QParams' to check
            return
        stored = fitted.storage()
        for wrong in (
            {},
            {name: x[None] for name, x in stored.items()},
            {name: x.half() for name, x in stored.items()},
        ):
            with pytest.raises(InputError, match=fitted.describe()):
                fitted.restore(wrong)
        assert torch.equal(fitted.restore(stored)(sample(fitted)), fitted(sample(fitted)))
