"""Promise 7: opcheck, torch.compile, meta tensors, streams and devices."""

import pytest
import torch
from hard_inputs import LAYOUTS, assert_same, hard_grid, hard_tensor
from op_checks import INT, check_all, check_statistics, raw

from pytorch_quantizer import ops, reference


def raw_calls(device):
    """One call of each raw op per tensor and per channel: what opcheck examines."""
    x = hard_tensor("channels_last", device=device)[:, :, :2, :3].nan_to_num(0, 0, 0)
    for axis in (None, 1):
        scale, zero_point = torch.full_like(hard_grid(x, axis)[0], 0.5), hard_grid(x, axis)[1]
        grid = (scale, zero_point, 0, 15, -1 if axis is None else axis, 2, 1, 2)
        yield raw.fake_quantize, (x, *grid)
        yield raw.fake_quantize_, (x.clone(), *grid)
        yield raw.fake_quantize_out, (x, *grid, torch.empty_like(x))
        yield raw.fake_quantize_backward, (torch.randn_like(x), x, *grid)
        yield raw.fake_quantize_backward_out, (torch.randn_like(x), x, *grid, torch.empty_like(x))
        for other in (None, torch.randn_like(x)):
            yield raw.fused_fake_quantize, (x, other, True, *grid)
            yield raw.fused_fake_quantize_out, (x, other, True, *grid, torch.empty_like(x))
        learned = (torch.randn_like(x), x, scale, zero_point.float(), *grid[2:5], 0.5)
        yield raw.learnable_fake_quantize_backward, learned
        yield (
            raw.learnable_fake_quantize_backward_out,
            (*learned, torch.empty_like(x), *map(torch.empty_like, learned[2:4])),
        )
        rule = (True, 1, 3.5, 1, 6.0, False, *grid[2:])
        yield raw.online_fake_quantize, (x, *rule)
        yield raw.online_fake_quantize_out, (x, *rule, torch.empty_like(x))
        yield raw.quantize, (x, *grid, torch.uint8)
        yield (
            raw.dequantize,
            (ops.quantize(x, scale, zero_point, 0, 15, axis=axis), scale, zero_point, grid[4], torch.half),
        )
        yield raw.tensor_statistics, (x, grid[4])
        counts = torch.zeros((*scale.shape, 66), dtype=torch.int64, device=device)
        yield raw.growing_histogram, (x, scale, counts, torch.zeros_like(scale, dtype=torch.int64), grid[4])
        yield raw.histogram, (x, torch.zeros_like(scale, dtype=torch.int64), 64, grid[4])


class TestPyTorch:
    """opcheck, torch.compile, streams and devices."""

    def test_opcheck(self, device):
        for op, arguments in raw_calls(device):
            torch.library.opcheck(op.default, arguments)

    def test_compile_fullgraph(self, device):
        x = torch.randn(4, 6, device=device, requires_grad=True)
        scale, zero_point = torch.rand(6, device=device) + 0.1, torch.zeros(6, dtype=INT, device=device)

        def layer(x):
            return ops.fake_quantize(x * 2, scale, zero_point, -8, 7, axis=-1, rounding="stochastic", seed=3).sin()

        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_same(compiled(x), layer(x))
        grads = [torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, layer)]
        assert_same(*grads)

    def test_compile_the_other_forms(self, device):
        x = torch.randn(4, 6, device=device)
        grid = (*hard_grid(x, None), 0, 15)

        def forms(x, buffer):
            ops.fake_quantize(x, *grid, out=buffer)
            y = ops.fake_quantize_(x.clone(), *grid)
            codes = ops.quantize(x, *grid)
            statistics = ops.tensor_statistics(x, axis=0)
            counts = ops.histogram(x, torch.tensor(-3, device=device), bins=64)
            fused = ops.fused_fake_quantize(x, *grid, other=x, relu=True)
            online = ops.online_fake_quantize(x, 0, 15, spread="abs_dev", reach=4.0, axis=1)
            return fused, *online, y, codes, ops.dequantize(codes, *grid[:2]), statistics, counts, buffer + 1

        buffers = [torch.zeros_like(x) for _ in range(2)]
        compiled = torch.compile(forms, fullgraph=True, backend="aot_eager")
        for got, expected in zip(compiled(x, buffers[0]), forms(x, buffers[1]), strict=True):
            assert_same(got, expected)
        assert_same(*buffers)

    def test_a_changing_offset_does_not_recompile_for_ever(self):
        x = torch.randn(100)
        grid = (*hard_grid(x, None), 0, 15)
        compiled = torch.compile(
            lambda x, n: ops.quantize(x, *grid, rounding="stochastic", offset=n), fullgraph=True, backend="eager"
        )
        torch._dynamo.reset()
        with torch._dynamo.config.patch(error_on_recompile=False, recompile_limit=3):
            for n in range(0, 1000, 100):
                assert_same(compiled(x, n), reference.quantize(x, *grid, rounding="stochastic", offset=n))

    @pytest.mark.slow
    def test_compile_inductor(self, device):
        x = torch.randn(4, 6, device=device, requires_grad=True)
        grid = (*hard_grid(x, None), 0, 15)
        layer = lambda x: ops.fake_quantize(x * 2, *grid) + 1  # noqa: E731
        compiled = torch.compile(layer, fullgraph=True)
        assert_same(compiled(x), layer(x))
        assert_same(*[torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, layer)])

    def test_meta_tensors_keep_shape_dtype_and_layout(self):
        for layout in LAYOUTS:
            x = hard_tensor(layout)
            meta = torch.empty_strided(x.shape, x.stride(), device="meta")
            grid = torch.tensor(1.0, device="meta"), torch.tensor(0, dtype=INT, device="meta")
            for name in ("fake_quantize", "quantize"):
                real = getattr(ops, name)(x, torch.tensor(1.0), torch.tensor(0, dtype=INT), 0, 255)
                fake = getattr(ops, name)(meta, *grid, 0, 255)
                assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())

    @pytest.mark.cuda
    def test_another_stream(self, device):
        if device != "cuda":
            pytest.skip("streams are CUDA's")
        x = torch.randn(1 << 24, device=device)
        grid = (*hard_grid(x, None), 0, 15)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # what runs on the wrong stream reads x before it is written
            x.mul_(3)
            y, statistics = ops.fake_quantize(x, *grid), ops.tensor_statistics(x)
        torch.cuda.synchronize()
        assert_same(y, reference.fake_quantize(x, *grid))
        assert statistics[2] == x.max()

    @pytest.mark.cuda
    def test_second_device(self, second_device):
        x = hard_tensor("contiguous", device=second_device)
        check_all(x, 1, "half_even")
        check_statistics(torch.randn(100, 100, device=second_device), 1)
        assert torch.cuda.current_device() == 0

    @pytest.mark.cuda
    def test_nothing_waits_for_the_device(self, device):
        if device != "cuda":
            pytest.skip("the CPU has nothing to wait for")
        x = torch.randn(64, 64, device=device)
        grid = (*hard_grid(x, 1), 0, 15)
        torch.cuda.set_sync_debug_mode("error")
        try:
            ops.dequantize(ops.quantize(x, *grid, axis=1), *grid[:2], axis=1)
            ops.fake_quantize(x, *grid, axis=1)
            ops.tensor_statistics(x, axis=1)
            ops.histogram(x, torch.zeros(64, dtype=torch.int64, device=device), bins=64, axis=1)
            ops.online_fake_quantize(x, 0, 15, spread="abs_dev", reach=4.0)
            leaf = grid[0].clone().requires_grad_()
            ops.learnable_fake_quantize(x, leaf, grid[1].float(), 0, 15, axis=1).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
