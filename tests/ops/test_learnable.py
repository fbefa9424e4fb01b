"""Gradients of a learned scale and zero point: dx to the bit, ds and dz within promise 1's bound."""

import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, assert_same, cut_tensors, hard_tensor, hard_values
from op_checks import raw

from pytorch_quantizer import InputError, ops, reference
from pytorch_quantizer.backend import module_path

AXES = (None, 0, 1, -1)


def parameters(x, axis, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = [] if axis is None else [x.shape[axis]]
    scale = torch.rand(shape, generator=generator) + 0.3
    zero_point = torch.rand(shape, generator=generator) * 20 - 2  # some lie beyond [0, 15]
    return scale.to(x.device), zero_point.to(x.device)


def gradient_like(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)


def term_sizes(grad, x, scale, zero_point, axis):
    """Σ|terms| of ds and dz, by the formula."""
    s, z = (
        v if axis is None else v.reshape([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])
        for v in (scale.double(), zero_point.double().round().clamp(0, 15))
    )
    q = (x.double() / s).round() + z
    inside = (q >= 0) & (q <= 15)
    slope = q.clamp(0, 15) - z - torch.where(inside, x.double() / s, 0.0)
    over = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    terms = (grad.double() * slope).abs(), torch.where(inside, 0.0, (s * grad.double()).abs())
    return [t.sum(over) if over else t for t in terms]


def check(x, axis, grad_scale=0.37):
    scale, zero_point = parameters(x, axis)
    grad = gradient_like(x)
    rest = {"axis": axis, "grad_scale": grad_scale}
    expected = reference.learnable_fake_quantize_backward(grad, x, scale, zero_point, 0, 15, **rest)
    leaves = [t.detach().clone().requires_grad_() for t in (scale, zero_point)]
    x = x.detach().requires_grad_()
    y = ops.learnable_fake_quantize(x, *leaves, 0, 15, **rest)
    assert_same(y.detach(), reference.fake_quantize(x, scale, zero_point, 0, 15, axis=axis))
    got = torch.autograd.grad(y, [x, *leaves], grad)
    assert_same(got[0], expected[0])
    for one, other, size in zip(
        got[1:], expected[1:], term_sizes(grad, x.detach(), scale, zero_point, axis), strict=True
    ):
        assert one.dtype == torch.float32
        bound = 1e-12 * grad_scale * size + 2.0**-24 * other.abs()  # both are rounded to float32 once
        assert ((one.double() - other.double()).abs() <= bound).all()


class TestParity:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_zero_point_of_nan_makes_everything_nan(self, device, dtype):
        worst = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32).to(device)  # all bits of the fraction
        x = torch.linspace(-2, 2, 40, device=device).to(dtype)
        for shape, axis in ([], None), ([40], 0):
            y = ops.learnable_fake_quantize(x, torch.ones(shape).to(x.device), worst.expand(shape), 0, 15, axis=axis)
            assert y.isnan().all()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_and_axes(self, device, layout, dtype):
        x = hard_tensor(layout, dtype, device).nan_to_num(0, 50, -50).clamp(-60, 60)
        for axis in AXES:
            check(x, axis)

    def test_instruction_sets(self, isa):
        for layout in ("contiguous", "channels_last"):
            for axis in AXES:
                check(hard_tensor(layout).nan_to_num(0, 50, -50).clamp(-60, 60), axis)

    def test_sizes_off_every_vector_width(self, device):
        for n in (0, 1, 2, 7, 8, 9, 31, 2047, 2048, 2049, 70001):
            x = hard_values(n, seed=n).nan_to_num(0, 50, -50).clamp(-60, 60).to(device)
            check(x, None)
            check(x.view(1, n), 1)
            check(x.view(1, n), 0)
        check(torch.randn(6, 3000, device=device), 1)
        check(torch.randn(3, 64, 40, 40, device=device), 1)
        check(torch.tensor(1.7, device=device), None)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_channels_cut_in_every_way(self, device, threads, count):
        threads(count)
        for x, axis in cut_tensors():
            check(x.to(device), axis)

    def test_parameters_need_not_be_contiguous(self, device):
        x = hard_tensor("contiguous", device=device).nan_to_num(0, 50, -50)
        learned = parameters(x, 1)
        columns = [torch.stack([t, t + 1], 1)[:, 0] for t in learned]
        assert columns[0].stride() == (2,)
        got, expected = (
            raw.learnable_fake_quantize_backward(gradient_like(x), x, *each, 0, 15, 1, 1.0)
            for each in (columns, learned)
        )
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)


class TestClosedForm:
    def test_by_hand(self, device):
        # s = 0.5, z = 2.4 → 2; v = x/s = −6, 1.2, 3, 40: q = −4, 3, 5, 42; the first and the last are outside [0, 15].
        x = torch.tensor([-3.0, 0.6, 1.5, 20.0], device=device, requires_grad=True)
        scale = torch.tensor(0.5, device=device, requires_grad=True)
        zero_point = torch.tensor(2.4, device=device, requires_grad=True)
        g = torch.tensor([1.0, 10.0, 100.0, 1000.0], device=device)
        ops.learnable_fake_quantize(x, scale, zero_point, 0, 15, grad_scale=0.25).backward(g)
        assert x.grad.tolist() == [0, 10, 100, 0]
        slopes = 1 * (0 - 2) + 10 * (1 - 1.2) + 100 * 0 + 1000 * (15 - 2)
        assert scale.grad.item() == pytest.approx(0.25 * slopes, rel=1e-6)
        assert zero_point.grad.item() == pytest.approx(0.25 * -0.5 * (1 + 1000), rel=1e-6)

    def test_a_scale_that_is_no_scale_gives_nan_and_no_gradient_to_x(self, device):
        x = torch.randn(10, device=device, requires_grad=True)
        leaves = [torch.tensor(v, device=device, requires_grad=True) for v in (0.0, 1.0)]
        ops.learnable_fake_quantize(x, *leaves, 0, 15).sum().backward()
        assert (x.grad == 0).all()
        assert leaves[0].grad.isnan()

    def test_agrees_with_torch(self):
        torch.manual_seed(0)
        x, g = torch.randn(3, 8, 5, 5) * 4, torch.randn(3, 8, 5, 5)
        values = x, torch.rand(8) + 0.2, torch.full((8,), 3.0)
        mine, theirs = ([t.clone().requires_grad_() for t in values] for _ in range(2))
        ops.learnable_fake_quantize(*mine, 0, 15, axis=1).backward(g)
        torch._fake_quantize_learnable_per_channel_affine(*theirs, 1, 0, 15, 1.0).backward(g)
        assert torch.equal(mine[0].grad, theirs[0].grad)
        assert torch.allclose(mine[1].grad, theirs[1].grad, rtol=1e-4, atol=1e-3)
        assert torch.allclose(mine[2].grad, theirs[2].grad, rtol=1e-4, atol=1e-3)


class TestPromises:
    def test_any_number_of_threads_gives_the_same_bits(self, threads):
        for x, axis in (
            (hard_tensor("contiguous").repeat(40, 1, 1, 1), 1),
            (torch.randn(9000, 37), 1),
            (torch.randn(10**6), None),
        ):
            x = x.nan_to_num(0, 50, -50)
            results = []
            for count in (1, 2, 3, 7):
                threads(count)
                results.append(
                    raw.learnable_fake_quantize_backward(
                        gradient_like(x), x, *parameters(x, axis), 0, 15, -1 if axis is None else axis, 1.0
                    )
                )
            for result in results[1:]:
                for one, other in zip(results[0], result, strict=True):
                    assert_same(one, other)

    def test_out_form_writes_the_same(self, device):
        x = hard_tensor("channels_last", device=device).nan_to_num(0, 50, -50)
        grad, learned = gradient_like(x), parameters(x, 1)
        expected = raw.learnable_fake_quantize_backward(grad, x, *learned, 0, 15, 1, 0.5)
        outs = [torch.empty_like(t) for t in (x, *learned)]
        raw.learnable_fake_quantize_backward_out(grad, x, *learned, 0, 15, 1, 0.5, *outs)
        for one, other in zip(outs, expected, strict=True):
            assert_same(one, other)

    def test_out_form_refuses_what_it_still_reads(self, device):
        x = torch.randn(10, device=device)
        learned = parameters(x, None)
        for dx in (x, x[:5], torch.empty(3, device=device)):
            with pytest.raises(RuntimeError, match=r"must not be an input|must have the input's shape"):
                raw.learnable_fake_quantize_backward_out(
                    x, x, *learned, 0, 15, -1, 1.0, dx, *map(torch.empty_like, learned)
                )

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_gradients_that_overlap_are_refused(self, device):
        x = torch.randn(10, device=device)
        learned, dx = parameters(x, None), torch.empty_like(x)
        one = torch.empty_like(learned[0])
        for ds, dz in ((one, one), (dx[0], one), (one, dx[1])):
            with pytest.raises(RuntimeError, match="the gradients must not overlap"):
                raw.learnable_fake_quantize_backward_out(x.clone(), x, *learned, 0, 15, -1, 1.0, dx, ds, dz)

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    @pytest.mark.parametrize(("place", "message"), [(0, "must not be an input"), (3, "not overlap")])
    def test_out_form_refuses_a_gradient_that_it_still_reads(self, device, place, message):
        memory, x = torch.randn(13, device=device), torch.randn(10, device=device)
        learned = parameters(x, None)
        outs = memory[place : place + 10], *map(torch.empty_like, learned)
        with pytest.raises(RuntimeError, match=message):
            raw.learnable_fake_quantize_backward_out(memory[:10], x, *learned, 0, 15, -1, 1.0, *outs)

    def test_straight_through_into_out(self, device):
        for layout in LAYOUTS:
            x = hard_tensor(layout, device=device)
            grid = (
                torch.tensor(0.75, device=device),
                torch.tensor(7, dtype=torch.int32, device=device),
                0,
                15,
                -1,
                0,
                0,
                0,
            )
            out = torch.empty(x.shape, device=device)
            raw.fake_quantize_backward_out(gradient_like(x), x, *grid, out)
            assert_same(out.contiguous(), raw.fake_quantize_backward(gradient_like(x), x, *grid).contiguous())


class TestArguments:
    x = torch.zeros(2, 3)

    @pytest.mark.parametrize(
        ("arguments", "keywords", "message"),
        [
            (
                (x, torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), 0, 15),
                {},
                r"must be float32, got .*torch\.int32",
            ),
            ((x, torch.tensor(1.0).double(), torch.tensor(0.0), 0, 15), {}, r"must be float32, got torch\.float64"),
            ((x.int(), torch.tensor(1.0), torch.tensor(0.0), 0, 15), {}, r"x must be float32, .* got torch\.int32"),
            ((x, torch.tensor(1.0), torch.tensor(0.0), 15, 0), {}, r"qmin < qmax must hold"),
            ((x, torch.ones(2), torch.zeros(2), 0, 15), {"axis": 1}, r"shape \[3\] with axis=1"),
        ],
    )
    def test_one_clear_error(self, arguments, keywords, message):
        with pytest.raises(InputError, match=message):
            ops.learnable_fake_quantize(*arguments, **keywords)
