"""Bad arguments: one clear error each, from the ops and from the raw ones."""

import pytest
import torch
from op_checks import INT, raw

from pytorch_quantizer import InputError, ops
from pytorch_quantizer.backend import module_path


class TestChecks:
    """Every mistake ends in one InputError that names the argument, the rule and the value."""

    x = torch.zeros(2, 3)
    good = (torch.tensor(1.0), torch.tensor(0, dtype=INT), 0, 15)
    channels = (torch.ones(3), torch.zeros(3, dtype=INT))

    @pytest.mark.parametrize(
        ("arguments", "keywords", "message"),
        [
            ((torch.zeros(2, dtype=torch.float64), *good), {}, r"x must be float32, .* got torch\.float64"),
            ((x, torch.tensor(1), *good[1:]), {}, r"scale must be float32 .* got torch\.int64"),
            ((x, good[0], torch.tensor(0.0), 0, 15), {}, r"zero_point int32, got .*torch\.float32"),
            ((x, *channels, 0, 15), {}, r"shape \[\] with axis=None .* got \[3\] and \[3\]"),
            ((x, *channels, 0, 15), {"axis": 0}, r"shape \[2\] with axis=0"),
            ((x, channels[0], good[1], 0, 15), {"axis": 1}, r"got \[3\] and \[\]"),
            ((x, *channels, 0, 15), {"axis": 2}, r"axis must name one of the 2 dimensions .* got 2"),
            ((x, *channels, 0, 15), {"axis": -3}, r"got -3"),
            ((torch.zeros(()), *good), {"axis": 0}, r"axis must name one of the 0 dimensions"),
            ((x, *good[:2], 15, 15), {}, r"qmin < qmax must hold, .* got qmin=15, qmax=15"),
            ((x, *good[:2], 0, 2**25), {}, r"within ±2\*\*24, got .*qmax=33554432"),
            ((x, *good), {"rounding": "nearest"}, r"rounding must be one of half_even, .* got 'nearest'"),
            (
                (x, *good),
                {"rounding": "stochastic", "seed": 2**63},
                r"seed must fit in 64 bits, got 9223372036854775808",
            ),
            ((x, *good), {"rounding": "stochastic", "offset": -1}, r"offset must be between 0 .* got -1"),
            ((x, *good), {"out": torch.zeros(3, 2)}, r"out must be like x .* got \[3, 2\]"),
            ((x, *good), {"out": torch.zeros(2, 3).half()}, r"out must be like x .* got \[2, 3\], torch\.float16"),
        ],
    )
    def test_fake_quantize(self, arguments, keywords, message):
        with pytest.raises(InputError, match=message):
            ops.fake_quantize(*arguments, **keywords)

    def test_quantize_and_dequantize(self):
        with pytest.raises(InputError, match=r"dtype must hold \[qmin, qmax\] = \[0, 255\], got torch\.int8"):
            ops.quantize(self.x, *self.good[:2], 0, 255, dtype=torch.int8)
        with pytest.raises(InputError, match=r"dtype must be int8, .* got torch\.int64"):
            ops.quantize(self.x, *self.good, dtype=torch.int64)
        with pytest.raises(InputError, match=r"codes must be int8, .* got torch\.float32"):
            ops.dequantize(self.x, *self.good[:2])
        with pytest.raises(InputError, match=r"dtype must be float32, .* got torch\.float64"):
            ops.dequantize(self.x.to(torch.int8), *self.good[:2], dtype=torch.float64)

    def test_a_gradient_for_the_scale_is_refused(self):
        scale, zero_point = torch.tensor(1.0, requires_grad=True), torch.tensor(0, dtype=INT)
        with pytest.raises(InputError, match="dequantize has no gradient"):
            ops.dequantize(self.x.to(torch.int8), scale, zero_point)

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_an_instruction_set_that_is_none(self, monkeypatch):
        monkeypatch.setenv("PQ_CPU_CAPABILITY", "AVX2")
        with pytest.raises(RuntimeError, match="PQ_CPU_CAPABILITY must be baseline, avx2 or avx512, got AVX2"):
            ops.fake_quantize(self.x, *self.good)

    def test_statistics(self):
        with pytest.raises(InputError, match=r"x must be float32, .* got torch\.int32"):
            ops.tensor_statistics(self.x.to(INT))
        with pytest.raises(InputError, match=r"axis must name one of the 2 dimensions of the tensor, got 5"):
            ops.tensor_statistics(self.x, axis=5)

    def test_devices_must_match(self):
        scale, zero_point = self.good[:2]
        for scale_device, zero_device in (("meta", "meta"), ("meta", "cpu"), ("cpu", "meta")):
            with pytest.raises(InputError, match=rf"tensor's device cpu, got {scale_device}, {zero_device}"):
                ops.fake_quantize(self.x, scale.to(scale_device), zero_point.to(zero_device), 0, 15)


@pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
class TestRawOps:
    """Those who call them past ops/ must not read foreign memory."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.int16, torch.int32])
    def test_other_dtypes_are_refused(self, device, dtype):
        x = torch.ones(100, 40, device=device).to(dtype)
        scale, zero_point = torch.ones((), device=device), torch.zeros((), dtype=INT, device=device)
        grid, rest = (scale, zero_point, 0, 15, -1), (0, 0, 0)
        online = (True, 1, 3.0, 0, float("inf"), False, 0, 15, -1, *rest)
        for call in (
            lambda: raw.fake_quantize(x, *grid, *rest),
            lambda: raw.fused_fake_quantize(x, None, True, *grid, *rest),
            lambda: raw.fake_quantize_backward(x, x, *grid, *rest),
            lambda: raw.learnable_fake_quantize_backward(x, x, scale, scale, 0, 15, -1, 1.0),
            lambda: raw.online_fake_quantize(x, *online),
            lambda: raw.quantize(x, *grid, *rest, torch.uint8),
            lambda: raw.tensor_statistics(x, -1),
            lambda: raw.histogram(x, torch.zeros((), dtype=torch.int64, device=device), 8, -1),
        ):
            with pytest.raises(RuntimeError, match="must be float32, float16 or bfloat16"):
                call()
