"""BiasQuantizer: exactly the int32 grid of a layer's accumulators."""

import numpy as np
import pytest
import torch

from pytorch_quantizer import InputError
from pytorch_quantizer.quantization.qtypes import BiasQuantizer

S_X, S_W = torch.tensor(0.013), torch.tensor([0.002, 0.7, 1e-7])
BIAS = torch.tensor([0.31, -12.7, 3e-7])


def test_scale_is_the_product_rounded_once():
    expected = (S_X.double() * S_W.double()).float()
    assert torch.equal(BiasQuantizer(S_X, S_W).scale, expected)
    assert torch.equal(BiasQuantizer(S_X, S_W[0]).scale, expected[0])


def test_codes_by_plain_arithmetic():
    scale = (S_X * S_W).double()
    expected = [round(b / s) for b, s in zip(BIAS.double().tolist(), scale.tolist(), strict=True)]
    codes = BiasQuantizer(S_X, S_W).quantize(BIAS)
    assert codes.dtype == torch.int32
    assert codes.tolist() == expected


def test_ties_go_to_even():
    one = torch.tensor(1.0)
    assert BiasQuantizer(one, one).quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


def test_forward_is_the_round_trip_and_idempotent():
    quantizer = BiasQuantizer(S_X, S_W)
    y = quantizer(BIAS)
    assert torch.equal(y, quantizer.dequantize(quantizer.quantize(BIAS)))
    assert torch.equal(quantizer(y), y)
    assert (y - BIAS).abs().le(quantizer.scale / 2 + BIAS.abs() * 2**-24).all()


def test_values_are_code_times_scale_rounded_once():
    quantizer = BiasQuantizer(S_X, S_W)
    codes = torch.tensor([2**31 - 1, -(2**31), 16777217], dtype=torch.int32)
    expected = (codes.numpy().astype(np.float64) * quantizer.scale.numpy().astype(np.float64)).astype(np.float32)
    assert quantizer.dequantize(codes).tolist() == expected.tolist()


def test_saturates():
    quantizer = BiasQuantizer(torch.tensor(1e-9), torch.tensor(1e-9))
    assert quantizer.quantize(torch.tensor([1.0, -1.0])).tolist() == [2**31 - 1, -(2**31)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keeps_the_dtype(dtype):
    assert BiasQuantizer(S_X, S_W)(BIAS.to(dtype)).dtype == dtype


def test_interface():
    quantizer = BiasQuantizer(S_X, S_W)
    assert quantizer.fit(BIAS) is quantizer
    assert quantizer.storage() == {}  # both factors are stored with their own tensors
    assert quantizer.restore({}) is quantizer
    assert (quantizer.bits, quantizer.describe()) == (32, "int32")
    low, high = quantizer.range()
    torch.testing.assert_close(high, 2.0**31 * quantizer.scale)
    torch.testing.assert_close(low, -(2.0**31) * quantizer.scale)


def test_packs_as_int32():
    quantizer = BiasQuantizer(S_X, S_W)
    codes = quantizer.quantize(BIAS)
    packed = quantizer.pack(codes)
    assert packed["codes"].numel() * 4 == quantizer.code_bytes(codes.shape)
    assert torch.equal(quantizer.unpack(packed, codes.shape), codes)
    with pytest.raises(InputError, match="must be int32"):
        quantizer.unpack({"codes": packed["codes"].long()}, codes.shape)


def test_needs_a_per_tensor_input():
    with pytest.raises(InputError, match=r"per-tensor input scale, got shape \[3\]"):
        BiasQuantizer(S_W, S_W)
