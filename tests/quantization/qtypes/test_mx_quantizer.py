"""MX types against the OCP specification v1.0: element tables, shared scales, blocks."""

import pytest
import torch
from torch import nn

from pytorch_quantizer import Recipe, quantize
from pytorch_quantizer.quantization.qtypes import NUMBER_TYPES
from pytorch_quantizer.quantization.qtypes.mx_quantizer import MXQuantizer

MX = {name: quantizer for name, quantizer in NUMBER_TYPES.items() if issubclass(quantizer, MXQuantizer)}
FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M3 = [*[i / 8 for i in range(16)], *[2 + i / 4 for i in range(8)], *[4 + i / 2 for i in range(8)]]
E3M2 = [i / 16 for i in range(8)] + [2.0**e * (1 + m / 4) for e in range(-1, 5) for m in range(4)]
# table 1 to 5 of the specification: the values that aren't negative, and emax
TABLES = {
    "mxfp4": (FP4, 2),
    "mxfp6_e2m3": (E2M3, 2),
    "mxfp6_e3m2": (E3M2, 4),
    "mxint8": ([i / 64 for i in range(128)], 0),
    "mxfp8_e4m3": (torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).tolist(), 8),
    "mxfp8_e5m2": (torch.arange(124, dtype=torch.uint8).view(torch.float8_e5m2).tolist(), 15),
}


def by_the_specification(name, block):
    """Section 6.3 with numbers of any precision: Python's own."""
    values, emax = TABLES[name]
    largest = max(abs(v) for v in block)
    if largest == 0:
        return [0.0] * len(block)
    exponent = 0
    while 2.0**exponent > largest:
        exponent -= 1
    while 2.0 ** (exponent + 1) <= largest:
        exponent += 1
    scale = 2.0 ** max(-127, min(127, exponent - emax))

    def element(v):
        distances = [abs(abs(v) / scale - value) for value in values]
        nearest = [i for i, distance in enumerate(distances) if distance == min(distances)]
        return values[min(nearest, key=lambda i: i % 2)] * scale * (-1 if v < 0 else 1)

    return [element(v) for v in block]


def hard_blocks(seed=0):
    """[60, 32]: Gaussian of many sizes, exact ties, powers of two, subnormal and huge ones."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 32, generator=generator) * 2.0 ** torch.randint(-30, 30, (60, 1), generator=generator)
    x[10:20] = torch.randint(-127, 128, (10, 32), generator=generator) / 8.0
    x[20:25] = 2.0 ** torch.randint(-20, 20, (5, 32), generator=generator)
    x[25:30] *= 1e-38
    x[30] = 3.4e38 * torch.linspace(-1, 1, 32)
    x[31] = 1e-45
    x[32] = 0
    x[33, 1:] = 0
    return x


@pytest.mark.parametrize("name", MX)
class TestSpecification:
    def test_elements_are_the_tables(self, name):
        codes = MX[name].element.decode(torch.arange(2 ** MX[name].fixed_bits))
        finite = codes[codes.isfinite()]
        assert finite[finite >= 0].unique().tolist() == TABLES[name][0]
        negative = finite[finite <= 0].unique().tolist()
        assert [-value for value in TABLES[name][0]][::-1] == [v for v in negative if v > -2 or name != "mxint8"]

    def test_blocks(self, name):
        x = hard_blocks()
        y = MX[name](axis=0)(x)
        expected = torch.tensor([by_the_specification(name, row) for row in x.tolist()])
        assert torch.equal(y, expected)

    def test_codes_hold_the_scale_and_the_element(self, name):
        x = hard_blocks()
        codes = MX[name](axis=0).quantize(x)
        scales, elements = codes >> 8, codes & 0xFF
        assert (scales == scales[:, :1]).all()
        assert ((scales >= 0) & (scales <= 254)).all()
        assert (elements < 2 ** MX[name].fixed_bits).all()
        largest = x.abs().amax(1).double()
        emax = TABLES[name][1]
        ordinary = (largest > 2.0**-100) & (largest < 2.0**100)
        assert torch.equal(scales[ordinary, 0] - 127, largest[ordinary].log2().floor().int() - emax)

    def test_a_block_of_zeros(self, name):
        assert torch.equal(MX[name](axis=0)(torch.zeros(2, 40)), torch.zeros(2, 40))

    def test_nan_counts_for_no_scale(self, name):
        x = hard_blocks()[:5]
        x[:, 7] = 0
        expected = MX[name](axis=0)(x)
        x[:, 7] = torch.nan
        y = MX[name](axis=0)(x)
        assert y[:, 7].isnan().all()
        assert torch.equal(y.nan_to_num(0.0), expected)

    def test_nan_is_coded_where_there_is_a_code(self, name):
        quantizer = MX[name](axis=0)
        y = quantizer.dequantize(quantizer.quantize(torch.full((1, 32), torch.nan)))
        assert y.isnan().all() if "fp8" in name else (y == 0).all()

    def test_the_last_block_is_shorter(self, name):
        x = torch.randn(4, 70, generator=torch.Generator().manual_seed(0))
        y = MX[name](axis=0)(x)
        parts = [MX[name](axis=0)(part) for part in x.split(32, dim=1)]
        assert torch.equal(y, torch.cat(parts, dim=1))
        assert MX[name]().code_bytes(()) == -(-MX[name].fixed_bits // 8) + 1


class TestBlocks:
    """Which values share a scale: outliers of different sizes show it."""

    @staticmethod
    def scales(x, axis):
        return MX["mxint8"](axis=axis).quantize(x) >> 8

    def test_of_a_weight_run_over_the_flattened_input(self):
        x = 2.0 ** torch.randint(-9, 9, (4, 8, 3, 3), generator=torch.Generator().manual_seed(0))
        scales = self.scales(x, 0).flatten(1)
        for begin, end in ((0, 32), (32, 64), (64, 72)):
            expected = x.flatten(1)[:, begin:end].amax(1).log2().int() + 127
            assert (scales[:, begin:end] == expected[:, None]).all()

    def test_of_a_transposed_weight_run_over_the_rest(self):
        x = 2.0 ** torch.randint(-9, 9, (8, 4, 3, 3), generator=torch.Generator().manual_seed(0))
        assert torch.equal(self.scales(x, 1), self.scales(x.movedim(1, 0), 0).movedim(0, 1))

    def test_of_images_run_over_the_channels_of_a_pixel(self):
        x = 2.0 ** torch.randint(-9, 9, (2, 40, 3, 5), generator=torch.Generator().manual_seed(0))
        for part, scales in zip(x.split(32, dim=1), self.scales(x, None).split(32, dim=1), strict=True):
            assert torch.equal(scales, (part.amax(1, keepdim=True).log2().int() + 127).expand_as(scales))

    @pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40)])
    def test_of_other_tensors_run_over_the_last_dimension(self, shape):
        x = 2.0 ** torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(0))
        for part, scales in zip(x.split(32, dim=-1), self.scales(x, None).split(32, dim=-1), strict=True):
            assert torch.equal(scales, (part.amax(-1, keepdim=True).log2().int() + 127).expand_as(scales))

    def test_bytes(self):
        weight, image = (4, 8, 3, 3), (2, 40, 3, 5)
        assert MX["mxfp4"](axis=0).code_bytes(weight) == 4 * 72 // 2 + 4 * 3
        assert MX["mxfp4"]().code_bytes(image) == 2 * 40 * 15 // 2 + 2 * 15 * 2
        assert MX["mxfp6_e2m3"]().code_bytes((3, 32)) == 3 * 24 + 3
        assert MX["mxint8"](axis=0).storage() == {}


def test_an_image_does_not_depend_on_its_batch():
    """Also where the recipe asks for a grid a channel: a block lies within one image."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
    x = torch.randn(4, 3, 8, 8) * torch.tensor([0.1, 1, 30, 4]).view(-1, 1, 1, 1)
    recipe = Recipe(activations="mxfp4", activation_granularity="per_channel", deployable=False)
    model = quantize(net, recipe, x, progress=False)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-5)
