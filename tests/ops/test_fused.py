"""ReLU and addition before the quantizer in one pass: the same bits as one after the other."""

import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, assert_same, hard_grid, hard_tensor, hard_values

from pytorch_quantizer import InputError, ops, reference
from pytorch_quantizer.backend import module_path

FORMS = [(False, True), (True, False), (True, True)]


def steps(x, other, relu, *grid, **keywords):
    total = x if other is None else x + other
    return ops.fake_quantize(torch.relu(total) if relu else total, *grid, **keywords)


def check(x, other, relu, axis, rounding="half_even", qmin=0, qmax=15):
    grid = (*hard_grid(x, axis, qmin, qmax), qmin, qmax)
    keywords = {"axis": axis, "rounding": rounding, "seed": 3, "offset": 5}
    fused = ops.fused_fake_quantize(x, *grid, other=other, relu=relu, **keywords)
    assert_same(fused, reference.fused_fake_quantize(x, *grid, other=other, relu=relu, **keywords))
    apart = steps(x, other, relu, *grid, **keywords)
    assert_same(fused.contiguous(), apart.contiguous())


class TestParity:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(("adds", "relu"), FORMS)
    def test_layouts_and_axes(self, device, layout, dtype, adds, relu):
        x = hard_tensor(layout, dtype, device)
        for other_layout in (layout, "contiguous", "channels_last"):
            other = hard_tensor(other_layout, dtype, device, seed=1)
            if other.shape != x.shape:
                continue
            for axis, rounding in ((None, "half_even"), (1, "half_away"), (-1, "stochastic")):
                check(x, other if adds else None, relu, axis, rounding)

    def test_instruction_sets(self, isa):
        for dtype in DTYPES:
            for adds, relu in FORMS:
                for layout in ("contiguous", "channels_last", "strided"):
                    other = hard_tensor(layout, dtype, seed=1) if adds else None
                    check(hard_tensor(layout, dtype), other, relu, 1)

    def test_sizes_off_every_vector_width(self, device):
        for n in (0, 1, 7, 8, 9, 31, 2047, 2049, 40001):
            for dtype in DTYPES:
                x, other = (hard_values(n, dtype=dtype, seed=seed).to(device) for seed in (n, n + 1))
                check(x, other, True, None, qmin=-8, qmax=7)
        check(torch.tensor(-1.7, device=device), torch.tensor(0.3, device=device), True, None)

    def test_nan_and_infinities_pass_through_the_relu(self, device):
        x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0], device=device)
        grid = torch.tensor(1.0, device=device), torch.tensor(0, dtype=torch.int32, device=device), 0, 15
        y = ops.fused_fake_quantize(x, *grid, relu=True)
        assert y[0].isnan()
        assert y[1:].tolist() == [15, 0, 0]

    def test_a_half_sum_is_rounded_before_it_is_quantized(self, device):
        # 2048 + 1 is 2048 in float16 and 2049 in float32, which is another code of this grid.
        x, other = (torch.tensor([v], dtype=torch.float16, device=device) for v in (2048.0, 1.0))
        grid = torch.tensor(1.0, device=device), torch.tensor(-2048, dtype=torch.int32, device=device), -100, 100
        assert ops.fused_fake_quantize(x, *grid, other=other).item() == 2048


class TestForms:
    @pytest.mark.parametrize(("adds", "relu"), FORMS)
    def test_out_may_be_either_input(self, device, adds, relu):
        for dtype in DTYPES:
            x, other = (hard_tensor("channels_last", dtype, device, seed=seed) for seed in (0, 1))
            grid = (*hard_grid(x, None), 0, 15)
            expected = steps(x, other if adds else None, relu, *grid)
            for take_other in (False, True) if adds else (False,):
                copies = x.clone(), other.clone()
                out = copies[take_other]
                got = ops.fused_fake_quantize(copies[0], *grid, other=copies[1] if adds else None, relu=relu, out=out)
                assert got is out
                assert_same(out, expected)

    def test_what_does_not_fit_in_one_pass_runs_step_by_step(self, device):
        x = torch.randn(2, 3, 4, device=device)
        grid = (*hard_grid(x, None), 0, 15)
        for other in (
            torch.randn(4, device=device),
            torch.randn(2, 3, 4, device=device).half(),
            1.5 * x.double().sum().float(),
        ):
            assert_same(ops.fused_fake_quantize(x, *grid, other=other, relu=True), steps(x, other, True, *grid))

    def test_gradients_are_those_of_the_steps(self, device):
        x, other, g = (torch.randn(50, device=device) * 5 for _ in range(3))
        grid = (*hard_grid(x, None), 0, 15)
        results = []
        for form in (
            lambda a, b: ops.fused_fake_quantize(a, *grid, other=b, relu=True),
            lambda a, b: steps(a, b, True, *grid),
        ):
            leaves = [t.clone().requires_grad_() for t in (x, other)]
            results.append(torch.autograd.grad(form(*leaves), leaves, g))
        for one, two in zip(*results, strict=True):
            assert_same(one, two)

    def test_out_is_refused_where_a_gradient_is_needed(self, device):
        x = torch.randn(5, device=device, requires_grad=True)
        grid = (*hard_grid(x.detach(), None), 0, 15)
        with pytest.raises(InputError, match="has no gradient"):
            ops.fused_fake_quantize(x, *grid, relu=True, out=torch.empty_like(x))

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_out_that_overlaps_an_input_in_part_is_refused(self, device):
        shared, apart = torch.zeros(100, device=device), torch.zeros(90, device=device)
        grid = (*hard_grid(apart, None), 0, 15)
        for x, other in ((shared[:90], apart), (apart, shared[:90])):
            with pytest.raises(RuntimeError, match="not overlap"):
                ops.fused_fake_quantize(x, *grid, other=other, out=shared[10:])
