"""AllocatedQuantizer, MidTreadQuantizer: each channel is what it would be alone, at its own number of levels."""

import copy
import itertools
import math

import pytest
import torch

from pytorch_quantizer import InputError, IntQuantizer, TensorStatistics
from pytorch_quantizer.quantization.bit_allocation import allocate_bits
from pytorch_quantizer.quantization.clipping import Domain
from pytorch_quantizer.quantization.qtypes.allocated_quantizer import AllocatedQuantizer
from pytorch_quantizer.quantization.qtypes.mid_tread_quantizer import MidTreadQuantizer

BITS = torch.tensor([4, 0, 2, 8, 1, 4, 16, 3])
LEVELS = torch.tensor([15, 1, 3, 255, 5, 15, 65535, 9])
SETTINGS = {
    "weight": {"signed": True, "narrow": True, "symmetric": True},
    "affine weight": {"signed": True, "symmetric": False},
    "activation": {"signed": False, "symmetric": False, "axis": 1},
    "symmetric activation": {"signed": True, "symmetric": True, "axis": 1},
    "activation after a relu": {"signed": False, "symmetric": False, "axis": 1, "domain": Domain("rectified")},
    "activation after relu6": {"signed": False, "symmetric": False, "axis": 1, "domain": Domain("rectified", 6.0)},
    "non-negative activation": {"signed": False, "symmetric": True, "axis": -3, "domain": Domain("nonnegative")},
    "signed and non-negative": {"signed": True, "symmetric": True, "axis": 1, "domain": Domain("nonnegative")},
    "probabilities": {"signed": False, "symmetric": False, "axis": 1, "domain": Domain("unit")},
    "clipped": {"signed": True, "symmetric": True, "clip": "laplace"},
    "clipped activation": {"signed": False, "symmetric": False, "axis": 1, "clip": "gaussian"},
    "half away": {"signed": False, "symmetric": False, "axis": 1, "rounding": "half_away"},
}
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def sample(settings, seed=0):
    """[8, 8, 5, 7], channels of different widths and means along either of the first two axes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 8, 5, 7, generator=generator) * torch.randn(8, 5, 7, generator=generator).abs()
    x = x * 2.0 ** torch.arange(-3, 5).view(8, 1, 1, 1) + torch.arange(8).view(8, 1, 1) / 10
    support = settings.get("domain", Domain()).support
    return x.sigmoid() if support == "unit" else x.abs() if support == "nonnegative" else x


def read(settings, x):
    """The tensor as the next layer reads it."""
    domain = settings.get("domain", Domain())
    return x.clamp(0, domain.upper) if domain.support == "rectified" else x


def alone(bits, settings, x):
    """One channel's IntQuantizer; None where there is none, for 0 bits and for 1 bit of values of any sign."""
    if bits == 0 or (bits == 1 and "domain" not in settings):
        return None
    settings = {name: value for name, value in settings.items() if name != "axis"}
    if bits == 1 and settings["signed"]:
        settings |= {"symmetric": False, "narrow": False}
    return IntQuantizer(bits, **settings).fit(x)


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def settings(request):
    return request.param


@pytest.fixture(params=["bits", "levels"])
def fitted(request, settings):
    if request.param == "bits":
        return AllocatedQuantizer(BITS, **settings).fit(sample(settings))
    if not settings["symmetric"] and settings["signed"]:
        pytest.skip("a mid-tread grid is symmetric")
    midtread = {name: value for name, value in settings.items() if name not in ("narrow", "symmetric")}
    midtread["signed"] = settings["signed"] or "domain" not in settings
    return MidTreadQuantizer(LEVELS, **midtread).fit(sample(settings))


class TestEachChannelIsItselfAlone:
    """The law of this type, to the bit, far outside the range, on ties, for NaN, and in half precision."""

    @staticmethod
    def hard(settings):
        x = sample(settings, seed=1) * 2
        x.view(8, 8, -1)[..., 0], x.view(8, 8, -1)[..., 1] = math.nan, math.inf
        x.view(8, 8, -1)[..., 2], x.view(8, 8, -1)[..., 3] = -math.inf, 1e30
        return x

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @each_setting
    def test_forward(self, settings, dtype):
        axis = settings.get("axis", 0)
        quantizer, x = AllocatedQuantizer(BITS, **settings).fit(sample(settings)), self.hard(settings).to(dtype)
        y, compared = quantizer(x), 0
        assert y.dtype == dtype
        slices = zip(BITS.tolist(), x.unbind(axis), sample(settings).unbind(axis), y.unbind(axis), strict=True)
        for bits, part, source, ours in slices:
            theirs = alone(bits, settings, source)
            if theirs is not None:
                assert torch.equal(ours.nan_to_num(12345.0), theirs(part).nan_to_num(12345.0))
                compared += 1
        assert compared >= 6

    @each_setting
    def test_codes_and_their_values(self, settings):
        axis = settings.get("axis", 0)
        quantizer, x = AllocatedQuantizer(BITS, **settings).fit(sample(settings)), self.hard(settings)
        codes = quantizer.quantize(x)
        slices = zip(
            BITS.tolist(),
            x.unbind(axis),
            sample(settings).unbind(axis),
            codes.unbind(axis),
            quantizer.dequantize(codes).unbind(axis),
            strict=True,
        )
        for bits, part, source, ours, values in slices:
            assert ours.unique().numel() <= 2**bits
            theirs = alone(bits, settings, source)
            if theirs is not None:
                assert torch.equal(ours.int(), theirs.quantize(part).int())
                assert torch.equal(values, theirs.dequantize(theirs.quantize(part)))

    @each_setting
    def test_gradient(self, settings):
        axis = settings.get("axis", 0)
        quantizer = AllocatedQuantizer(BITS, **settings).fit(sample(settings))
        for dtype in (torch.float32, torch.bfloat16):
            x, gradient = (sample(settings, seed=1) * 2).to(dtype).requires_grad_(), torch.randn(8, 8, 5, 7).to(dtype)
            y = quantizer(x)
            assert torch.equal(y, quantizer(x.detach()))
            y.backward(gradient)
            for i, bits in enumerate(BITS.tolist()):
                theirs, part = alone(bits, settings, sample(settings).select(axis, i)), x.detach().select(axis, i)
                if theirs is not None:
                    part = part.clone().requires_grad_()
                    theirs(part).backward(gradient.select(axis, i))
                    assert torch.equal(x.grad.select(axis, i), part.grad)
                elif bits == 0:
                    assert not x.grad.select(axis, i).any()

    def test_gradient_in_half_precision_without_a_shifted_channel(self):
        x = torch.linspace(-1, 1, 101).repeat(2, 1)
        quantizer = AllocatedQuantizer(torch.tensor([8, 10])).fit(x)
        far = (x * 1.02).bfloat16().requires_grad_()
        y = quantizer(far)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, quantizer(far.detach()))
        y.sum().backward()
        for i, bits in enumerate((8, 10)):
            one = far.detach()[i].clone().requires_grad_()
            IntQuantizer(bits).fit(x[i])(one).sum().backward()
            assert torch.equal(far.grad[i], one.grad)
            assert not one.grad.all()

    @pytest.mark.parametrize(("rounding", "codes"), [("half_even", [0, 2, 2, 7]), ("half_away", [1, 2, 3, 7])])
    def test_rounding_is_obeyed(self, rounding, codes):
        ties = torch.tensor([[0.5, 1.5, 2.5, 7.0]])
        quantizer = AllocatedQuantizer(torch.tensor([4]), rounding=rounding).fit(ties)
        assert quantizer.quantize(ties).tolist() == quantizer(ties).tolist() == [codes]

    def test_ties_beyond_the_last_code(self):
        """Where clamping before rounding, not after, would show: x = (qmax + 1/2)·s is still nearest to qmax."""
        x = torch.tensor([[-7.0, 7.0], [-1.0, 1.0]])  # s = 1 at 4 bits, 1 at 2 bits
        quantizer = AllocatedQuantizer(torch.tensor([4, 2])).fit(x)
        far = torch.tensor([7.4, 7.5, 1.4, 1.5, -1.6, -2.5, -8.6]).repeat(2, 1).requires_grad_()
        assert quantizer.quantize(far.detach()).tolist() == [[7, 7, 1, 2, -2, -2, -8], [1, 1, 1, 1, -2, -2, -2]]
        quantizer(far).sum().backward()
        assert far.grad.tolist() == [[1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 0, 1, 1, 0]]


class TestRangesAreClippings:
    @pytest.mark.parametrize("clip", ["percentile:90", "mse", "auto"])
    def test_each_channels_own(self, clip):
        x, bits = sample({})[:, :1], torch.tensor([4, 2, 4, 3, 2, 3, 4, 3])
        quantizer = AllocatedQuantizer(bits, clip=clip).fit(x)
        for i, m in enumerate(bits.tolist()):
            assert torch.equal(quantizer(x)[i], IntQuantizer(m, clip=clip).fit(x[i])(x[i]))

    @pytest.mark.parametrize("across_batches", ["max", "mean"])
    def test_across_batches(self, across_batches):
        """Ranges of 1 and 3, 2 and 8: symmetric grids end at the larger, or at the mean."""
        first, second = torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]), torch.tensor([[-3.0, 3.0], [-8.0, 8.0]])
        merged = TensorStatistics.merged(TensorStatistics.from_tensor(x, axis=0) for x in (first, second))
        quantizer = AllocatedQuantizer(torch.tensor([3, 5]), across_batches=across_batches).fit(merged)
        assert quantizer.range()[1].tolist() == pytest.approx([3, 8] if across_batches == "max" else [2, 5])


class TestFewBits:
    @each_setting
    def test_no_bits_keep_the_mean_of_what_is_read(self, settings):
        axis = settings.get("axis", 0)
        x = sample(settings)
        quantizer = AllocatedQuantizer(torch.zeros(8, dtype=torch.int64), **settings).fit(x)
        y = quantizer(x)
        for part, kept in zip(read(settings, x).unbind(axis), y.unbind(axis), strict=True):
            assert kept.unique().numel() == 1
            if settings.get("domain", Domain()).upper is None:
                assert kept.flatten()[0].item() == pytest.approx(part.mean().item(), rel=1e-5)
            else:
                assert part.mean() * 0.999 <= kept.flatten()[0] <= 6
        assert quantizer.quantize(x).unique().tolist() == [0]
        assert quantizer.code_bytes(x.shape) == 0

    def test_after_a_merge_the_mean_is_that_of_all_batches(self):
        domain = Domain("rectified")
        x, more = sample({}), sample({}, seed=3)[:, :, :2] - 1
        merged = TensorStatistics.from_tensor(x, axis=1).merge(TensorStatistics.from_tensor(more, axis=1))
        bits = torch.zeros(8, dtype=torch.int64)
        low, high = AllocatedQuantizer(bits, axis=1, signed=False, symmetric=False, domain=domain).fit(merged).range()
        expected = torch.cat([x, more], dim=2).relu().mean(dim=(0, 2, 3))
        torch.testing.assert_close(low, expected)
        assert torch.equal(low, high)

    def test_after_relu6_the_mean_is_at_most_6(self):
        domain, bits = Domain("rectified", 6.0), torch.tensor([0])
        quantizer = AllocatedQuantizer(bits, signed=False, symmetric=False, domain=domain)
        assert quantizer.fit(torch.tensor([[1.0, 99.0]])).range()[1].item() == 6

    def test_one_bit_of_a_narrow_grid_has_two_levels(self):
        x = torch.tensor([[-1.0, 1.0]])
        assert AllocatedQuantizer(torch.tensor([1]), narrow=True).fit(x)(x * 5).tolist() == [[-1, 1]]

    @pytest.mark.parametrize("signed", [True, False])
    def test_one_bit_keeps_the_side_of_the_mean(self, signed):
        x = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)) * 3 + 5
        quantizer = AllocatedQuantizer(torch.tensor([1]), signed=signed, symmetric=signed).fit(x)
        mean, spread = x.mean().item(), (x - x.mean()).abs().mean().item()
        assert quantizer(torch.tensor([[-9.0, mean - 0.01, mean + 0.01, 99.0]])).tolist() == [
            pytest.approx([mean - spread] * 2 + [mean + spread] * 2, rel=1e-5)
        ]
        assert quantizer.quantize(torch.tensor([[0.0, 9.0]])).tolist() == [[-1, 0] if signed else [0, 1]]
        error = (quantizer(x) - x).square().mean() / x.var()
        assert error.item() == pytest.approx(1 - 2 / math.pi, abs=0.03)  # the optimum of two levels

    def test_more_bits_are_better_and_allocated_bits_better_still(self):
        """Eight channels, 128 to 1 in width: 4 bits each, or 32 bits where they serve."""
        x = torch.randn(8, 20000, generator=torch.Generator().manual_seed(1)) * 2.0 ** torch.arange(-3, 5).view(8, 1)
        errors = [
            (AllocatedQuantizer(torch.full((8,), bits), clip="gaussian").fit(x)(x) - x).square().mean(1).tolist()
            for bits in range(7)
        ]
        for fewer, more in itertools.pairwise(errors):
            assert all(a > b for a, b in zip(fewer, more, strict=True))
        bits = allocate_bits(x.std(1), 4, distribution="gaussian")
        assert bits.sum() == 32
        assert bits.unique().numel() > 3
        allocated = AllocatedQuantizer(bits, clip="gaussian").fit(x)
        assert (allocated(x) - x).square().mean() < 0.5 * sum(errors[4]) / 8


class TestQuantizer:
    """What every number type promises, for both types of this file."""

    def test_statistics_or_tensor(self, fitted, settings):
        x = sample(settings)
        statistics = TensorStatistics.from_tensor(x, axis=fitted.axis, histogram=fitted.needs_histogram)
        again = copy.deepcopy(fitted).fit(statistics)
        assert torch.equal(again(x), fitted(x))
        assert fitted.fit(x.requires_grad_()) is fitted
        assert not any(tensor.requires_grad for tensor in fitted.storage().values())

    def test_idempotent_and_in_range(self, fitted, settings):
        x = sample(settings, seed=1) * 3
        y = fitted(x)
        assert torch.equal(fitted(y), y)
        low, high = fitted.range()
        assert low.dtype == high.dtype == torch.float32
        for i, part in enumerate(fitted(x * 1e6).unbind(fitted.axis)):
            assert low[i] <= part.min() <= part.max() <= high[i]

    def test_monotone(self, fitted, settings):
        x = sample(settings, seed=1).flatten(2).sort(dim=-1).values.view(8, 8, 5, 7)
        assert (fitted(x).flatten(2).diff(dim=-1) >= 0).all()

    def test_keeps_shape_layout_and_input(self, fitted, settings):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = sample(settings).to(dtype)
            before, y = x.clone(), fitted(x)
            assert torch.equal(x, before)
            for form in (x.contiguous(memory_format=torch.channels_last), x[..., :3], x.flip(3)):
                assert torch.equal(fitted(form), fitted(form.contiguous()))
            assert fitted(x, inplace=True) is x
            assert torch.equal(x, y)
        assert fitted(torch.zeros(8, 8, 0, 7)).shape == (8, 8, 0, 7)

    def test_in_place_is_refrained_from_where_a_gradient_is_needed(self, fitted, settings):
        x = sample(settings).requires_grad_()
        assert torch.equal(fitted(x, inplace=True), fitted(x))
        assert torch.equal(x, sample(settings))

    def test_half_types_are_the_float32_values_rounded_once(self, fitted, settings):
        for dtype in (torch.float16, torch.bfloat16):
            x = sample(settings, seed=1).to(dtype)
            assert torch.equal(fitted.dequantize(fitted.quantize(x)).to(dtype), fitted(x))
            assert torch.equal(fitted(x.float()).to(dtype), fitted(x))

    def test_round_trip_is_forward(self, fitted, settings):
        x = sample(settings, seed=1) * 1.5
        codes = fitted.quantize(x)
        assert not codes.is_floating_point()
        assert torch.equal(fitted.dequantize(codes), fitted(x))
        for levels, part in zip(fitted.levels.tolist(), codes.unbind(fitted.axis), strict=True):
            assert part.int().max() - part.int().min() < levels

    def test_storage_rebuilds_it(self, fitted, settings):
        x = sample(settings, seed=1)
        stored = {name: tensor.clone() for name, tensor in fitted.storage().items()}
        expected, codes = fitted(x), fitted.quantize(x)
        other = copy.deepcopy(fitted).fit(x * 5)
        assert other.restore(stored) is other
        assert torch.equal(other(x), expected)
        assert torch.equal(other.quantize(x), codes)
        kind = {"levels": LEVELS} if isinstance(fitted, MidTreadQuantizer) else {"bits": BITS}
        assert torch.equal(stored[next(iter(kind))].long(), next(iter(kind.values())))

    def test_storage_brings_its_own_bits(self, settings):
        x = sample(settings)
        fitted = AllocatedQuantizer(BITS, **settings).fit(x)
        other = AllocatedQuantizer(BITS.flip(0), **settings).restore(fitted.storage())
        assert torch.equal(other(x), fitted(x))
        assert other.code_bytes(x.shape) == fitted.code_bytes(x.shape)

    def test_state_dict_and_copies(self, fitted, settings):
        x = sample(settings)
        other, expected = copy.deepcopy(fitted), fitted(x)
        other.fit(x * 3)
        assert torch.equal(fitted(x), expected)
        assert set(fitted.state_dict()) == {"scale", "zero_point", "shift"}
        other.load_state_dict(fitted.state_dict())
        assert torch.equal(other(x), expected)
        assert torch.equal(copy.deepcopy(fitted).half()(x), expected)

    def test_constants_come_out_as_they_are(self, fitted, settings):
        for value in (0.0, 0.75, 1e-30) if settings.get("domain", Domain()).support != "unit" else (0.0, 1.0):
            x = torch.full((8, 8, 5, 7), value)
            torch.testing.assert_close(fitted.fit(x)(x), x, rtol=3e-7, atol=0)

    def test_runs_on_the_device_of_its_statistics(self, device, settings):
        x = sample(settings).to(device)
        fitted = AllocatedQuantizer(BITS, **settings).fit(x)
        statistics = TensorStatistics.from_tensor(x, axis=fitted.axis, histogram=fitted.needs_histogram).to("cpu")
        here = AllocatedQuantizer(BITS, **settings).fit(statistics)
        assert torch.equal(fitted(x).cpu(), here(x.cpu()))

    def test_compiles_whole(self):
        x = sample({})
        quantizer = AllocatedQuantizer(BITS).fit(x)
        compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), quantizer(x))

    def test_is_not_for_integer_kernels(self, fitted):
        assert not fitted.is_integer


class TestMidTread:
    def test_is_the_integer_grid_where_that_has_as_many_levels(self):
        """2^M − 1 levels, symmetric and narrow: the same grid, and with minmax the same range."""
        x = sample({})
        bits = torch.tensor([2, 3, 4, 5, 6, 7, 8, 9])
        ours = MidTreadQuantizer(2**bits - 1).fit(x)
        theirs = AllocatedQuantizer(bits, narrow=True).fit(x)
        assert torch.equal(ours(x * 2), theirs(x * 2))
        assert torch.equal(ours.quantize(x), theirs.quantize(x))

    @pytest.mark.parametrize(("levels", "step"), [(3, 6.0), (5, 3.0), (13, 1.0)])
    def test_levels_are_odd_about_zero(self, levels, step):
        x = torch.linspace(-6, 6, 1001)[None]
        quantizer = MidTreadQuantizer(torch.tensor([levels])).fit(x)
        half = levels // 2
        assert quantizer(x * 3).unique().tolist() == [step * i for i in range(-half, half + 1)]

    @pytest.mark.parametrize("levels", [2, 3, 6, 7])
    def test_after_a_relu_zero_is_the_lowest_level(self, levels):
        x = torch.linspace(-9, 6, 1001)[None]
        quantizer = MidTreadQuantizer(torch.tensor([levels]), signed=False, domain=Domain("rectified")).fit(x)
        y = quantizer(x)
        assert y.unique().numel() == levels
        assert (y.min(), y.max()) == (0, 6)

    def test_clips_between_the_whole_bits_beside_it(self):
        x = torch.randn(1, 100000, generator=torch.Generator().manual_seed(0))
        ends = [
            MidTreadQuantizer(torch.tensor([levels]), clip="gaussian").fit(x).range()[1].item()
            for levels in (5, 7, 9, 11, 15, 17)
        ]
        assert ends == sorted(ends)
        # The root of the derivative for N levels: α erfc(α/√2) − √(2/π) e^(−α²/2) + α/(3N²) = 0.
        for end, levels in zip(ends, (5, 7, 9, 11, 15, 17), strict=True):
            noise = end / (3 * levels**2)
            slope = end * math.erfc(end / 2**0.5) - math.sqrt(2 / math.pi) * math.exp(-(end**2) / 2) + noise
            assert abs(slope) < 0.1 * noise

    def test_words_and_sizes(self):
        quantizer = MidTreadQuantizer(LEVELS)
        assert quantizer.channel_bits.tolist() == [4, 0, 2, 8, 3, 4, 16, 4]
        assert quantizer.describe() == f"midtread~{LEVELS.double().mean():.2f}levels"

    def test_refusals(self):
        with pytest.raises(InputError, match=r"levels of a signed mid-tread grid must be odd.*got 4"):
            MidTreadQuantizer(torch.tensor([3, 4]))
        with pytest.raises(InputError, match="levels of a channel must be between 1 and 65536, got 0"):
            MidTreadQuantizer(torch.tensor([3, 0]), signed=False)
        with pytest.raises(InputError, match="an unsigned mid-tread grid can't hold negative values"):
            MidTreadQuantizer(torch.tensor([3]), signed=False).fit(torch.tensor([[-1.0, 1.0]]))


class TestSizesAndWords:
    def test_bits(self):
        quantizer = AllocatedQuantizer(BITS)
        assert quantizer.channel_bits.tolist() == BITS.tolist()
        assert (quantizer.mean_bits, quantizer.bits) == (38 / 8, 5)
        assert quantizer.describe() == "int~4.75"
        assert AllocatedQuantizer(BITS, signed=False).describe() == "uint~4.75"
        assert "int~4.75, symmetric, 8 channels along axis=0, clip=minmax" in repr(quantizer)

    def test_codes_are_packed_at_their_own_bits(self):
        assert AllocatedQuantizer(BITS).code_bytes((8, 3, 5)) == math.ceil(38 * 15 / 8)
        assert AllocatedQuantizer(BITS, axis=1).code_bytes(torch.Size((2, 8, 1))) == math.ceil(38 * 2 / 8)
        with pytest.raises(InputError, match="bits are for 8 channels, a tensor has 3"):
            AllocatedQuantizer(BITS).code_bytes((3, 8))

    def test_packed_codes_come_back(self, fitted, settings):
        codes = fitted.quantize(read(settings, sample(settings)))
        packed = fitted.pack(codes)
        assert packed["codes"].numel() == fitted.code_bytes(codes.shape)
        back = fitted.unpack(packed, codes.shape)
        assert torch.equal(back, codes)
        assert back.dtype == codes.dtype
        with pytest.raises(InputError, match="must hold"):
            fitted.unpack({"codes": packed["codes"][:-1]}, codes.shape)

    def test_stores_what_it_needs_and_no_more(self):
        stored = AllocatedQuantizer(BITS).fit(sample({})).storage()
        assert {name: (tensor.dtype, tensor.numel()) for name, tensor in stored.items()} == {
            "scale": (torch.float32, 8),
            "bits": (torch.uint8, 8),
            "shift": (torch.float32, 2),
        }
        affine = AllocatedQuantizer(BITS.clamp(min=2), symmetric=False).fit(sample({})).storage()
        assert set(affine) == {"scale", "bits", "zero_point"}


class TestRounding:
    def test_stochastic_stays_in_each_channels_codes_and_is_unbiased(self):
        x = torch.linspace(-7, 7, 20001).repeat(2, 1)
        quantizer = AllocatedQuantizer(torch.tensor([4, 3]), rounding="stochastic").fit(x)
        first, second = quantizer(x), quantizer(x)
        assert not torch.equal(first, second)
        assert quantizer.quantize(x * 3)[1].unique().tolist() == list(range(-4, 4))
        assert (first - x).mean(1).abs().max() < 0.03


class TestRefusals:
    @pytest.mark.parametrize(
        ("bits", "message"),
        [
            (torch.tensor([4, 17]), "bits of a channel must be between 0 and 16, got 17"),
            (torch.tensor([4, -1]), "bits of a channel must be between 0 and 16, got -1"),
            (torch.tensor([4.0]), r"bits must be whole numbers \[C\], got torch.float32"),
            (torch.tensor(4), r"bits must be whole numbers \[C\].*shape \[\]"),
            (torch.tensor([], dtype=torch.int64), r"bits must be whole numbers \[C\].*shape \[0\]"),
        ],
    )
    def test_bits(self, bits, message):
        with pytest.raises(InputError, match=message):
            AllocatedQuantizer(bits)

    def test_settings(self):
        with pytest.raises(InputError, match="narrow=True leaves out the lowest signed code"):
            AllocatedQuantizer(BITS, signed=False, narrow=True)
        with pytest.raises(InputError, match="rounding must be one of"):
            AllocatedQuantizer(BITS, rounding="up")
        with pytest.raises(InputError, match="across_batches must be one of max, mean, got 'min'"):
            AllocatedQuantizer(BITS, across_batches="min")
        with pytest.raises(InputError, match="clip must be"):
            AllocatedQuantizer(BITS, clip="laplase")

    def test_fit(self):
        quantizer = AllocatedQuantizer(BITS)
        with pytest.raises(InputError, match=r"bits are for 8 channels, the statistics have shape \[3\]"):
            quantizer.fit(torch.randn(3, 8))
        with pytest.raises(InputError, match=r"bits are for 8 channels, the statistics have shape \[\]"):
            quantizer.fit(TensorStatistics.from_tensor(torch.randn(3, 8)))
        for channel in range(8):  # whatever its bits
            x = sample({})
            x[channel, 0, 0, 0] = math.nan
            with pytest.raises(InputError, match="NaN or infinite"):
                quantizer.fit(x)
        with pytest.raises(InputError, match="no value was observed"):
            quantizer.fit(torch.zeros(8, 0))

    def test_unfitted(self):
        x, codes = sample({}), torch.zeros(8, 2, dtype=torch.int8)
        for method, *arguments in (("forward", x), ("quantize", x), ("dequantize", codes), ("storage",), ("range",)):
            with pytest.raises(InputError, match="no grid yet; call fit"):
                getattr(AllocatedQuantizer(BITS), method)(*arguments)

    def test_storage_that_does_not_fit(self):
        quantizer = AllocatedQuantizer(BITS).fit(sample({}))
        stored = quantizer.storage()
        for name, value, message in (
            ("scale", torch.ones(3), r"scale and zero_point must be \[C\]"),
            ("scale", torch.zeros(8), "scale positive"),
            ("bits", torch.full((8,), 17), "between 0 and 16, got 17"),
            ("shift", torch.zeros(3), "shift must hold 2 values, got 3"),
        ):
            with pytest.raises(InputError, match=message):
                AllocatedQuantizer(BITS).restore({**stored, name: value})
