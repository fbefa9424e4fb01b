"""out= and in-place forms: any layout, overlap, autograd."""

import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, assert_same, hard_grid, hard_tensor

from pytorch_quantizer import InputError, ops, reference
from pytorch_quantizer.backend import module_path


def on_a_grid(op, x, out, **keywords):
    return op(x, *hard_grid(x, None), 0, 15, out=out, **keywords)


def codebook(x, out):
    levels = torch.arange(4.0, device=x.device)
    return ops.codebook_fake_quantize(x, levels, levels[1:] - 0.5, out=out)


# Every op of floats that takes out=, on x.
OUT_FORMS = {
    "fake_quantize": lambda x, out: on_a_grid(ops.fake_quantize, x, out),
    "fused_fake_quantize": lambda x, out: on_a_grid(ops.fused_fake_quantize, x, out, other=x.detach(), relu=True),
    "online_fake_quantize": lambda x, out: ops.online_fake_quantize(x, 0, 15, out=out)[0],
    "codebook_fake_quantize": codebook,
}


class TestForms:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_out_of_any_layout(self, device, layout):
        x = hard_tensor(layout, device=device)
        grid = (*hard_grid(x, 1), 0, 15)
        expected = reference.fake_quantize(x, *grid, axis=1, rounding="stochastic", seed=4)
        for out in (torch.empty(x.shape, device=device), torch.empty(x.shape[::-1], device=device).permute(3, 2, 1, 0)):
            got = ops.fake_quantize(x, *grid, axis=1, rounding="stochastic", seed=4, out=out)
            assert got is out
            assert_same(out.contiguous(), expected.contiguous())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_out_whose_elements_lie_apart(self, device, dtype):
        x = hard_tensor("contiguous", dtype, device)
        grid = (*hard_grid(x, 1), 0, 15)
        wide = torch.full((*x.shape, 2), 7.0, dtype=dtype, device=device)
        ops.fake_quantize(x, *grid, axis=1, out=wide[..., 0])
        assert_same(wide[..., 0].contiguous(), reference.fake_quantize(x, *grid, axis=1))
        assert (wide[..., 1] == 7).all()

    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
    def test_in_place(self, device, layout):
        for dtype in DTYPES:
            x = hard_tensor(layout, dtype, device)
            grid = (*hard_grid(x, 1), 0, 15)
            expected = reference.fake_quantize(x, *grid, axis=1)
            assert ops.fake_quantize(x, *grid, axis=1, out=torch.empty_like(x)) is not x
            assert ops.fake_quantize_(x, *grid, axis=1) is x
            assert_same(x.contiguous(), expected.contiguous())

    def test_strided_in_place_leaves_the_rest_alone(self, device):
        wide = torch.full((100, 10), 0.3, device=device)
        ops.fake_quantize_(wide[:, ::2], *hard_grid(wide, None), 0, 15)
        assert (wide[:, 1::2] == 0.3).all()
        assert (wide[:, ::2] != 0.3).all()

    def test_no_gradient_is_lost_in_silence(self, device):
        x = torch.ones(3, device=device, requires_grad=True)
        grid = (*hard_grid(x, None), 0, 15)
        with pytest.raises(InputError, match=r"fake_quantize_ has no gradient .* torch\.no_grad"):
            ops.fake_quantize_(x, *grid)
        with pytest.raises(InputError, match=r"out= has no gradient"):
            ops.fake_quantize(x, *grid, out=torch.empty(3, device=device))
        with torch.no_grad():
            ops.fake_quantize_(x, *grid)

    def test_autograd_notices_that_a_saved_tensor_was_overwritten(self, device):
        for write in (ops.fake_quantize_, lambda y, *grid: ops.fake_quantize(y.clone(), *grid, out=y)):
            x = torch.ones(3, device=device, requires_grad=True)
            y = x.exp()  # saves its result
            with torch.no_grad():
                write(y.detach(), *hard_grid(y, None), 0, 15)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()

    @pytest.mark.parametrize("form", OUT_FORMS)
    def test_an_out_that_needs_a_gradient_is_refused(self, device, form):
        out = torch.empty(3, device=device, requires_grad=True)
        with pytest.raises(InputError, match=r"out= has no gradient and a tensor needs one"):
            OUT_FORMS[form](torch.ones(3, device=device), out)

    @pytest.mark.parametrize("form", OUT_FORMS)
    def test_autograd_is_told_that_out_was_written(self, device, form):
        out = torch.empty(3, device=device)
        before = out._version
        assert OUT_FORMS[form](torch.ones(3, device=device), out) is out
        assert out._version > before

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    @pytest.mark.parametrize("form", OUT_FORMS)
    def test_out_that_overlaps_in_part_is_refused(self, device, form):
        x = torch.zeros(100, device=device)
        with pytest.raises(RuntimeError, match="not overlap"):
            OUT_FORMS[form](x[:90], x[10:])
        square, wide = torch.zeros(10, 10, device=device), torch.zeros(64, 100, device=device)
        with pytest.raises(RuntimeError, match="not overlap"):
            OUT_FORMS[form](square, square.t())
        with pytest.raises(RuntimeError, match="not overlap"):
            OUT_FORMS[form](wide[:, :90], wide[:, 7:97])

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_out_whose_elements_share_memory_is_refused(self, device):
        x = torch.zeros(100, device=device)
        grid = (*hard_grid(x, None), 0, 15)
        with pytest.raises(RuntimeError, match="expanded"):
            ops.fake_quantize(x, *grid, out=torch.zeros(1, device=device).expand(100))
        with pytest.raises(RuntimeError, match="elements overlap"):
            ops.fake_quantize(torch.zeros(50, 2, device=device), *grid, out=x.as_strided((50, 2), (1, 1)))

    def test_rows_of_one_matrix_are_apart(self, device):
        wide = torch.randn(8, 100, device=device)
        grid = (*hard_grid(wide, None), 0, 15)
        expected = reference.fake_quantize(wide[:4, 3:50], *grid)
        assert_same(ops.fake_quantize(wide[:4, 3:50], *grid, out=wide[4:, 3:50]).contiguous(), expected)


class TestManyDimensions:
    @pytest.mark.parametrize("dims", [17, 64, 65, 100, 1000])
    def test_of_one_or_in_sequence(self, device, dims):
        """Dimensions of size 1, however many, and sixteen that continue one another."""
        x = torch.randn(2**16, device=device)
        grid = (*hard_grid(x, None), 0, 15)
        shape = [2] * 16 + [1] * (dims - 16)
        got = ops.fake_quantize(x.reshape(shape), *grid, rounding="stochastic", seed=3)
        assert_same(got.reshape(-1), ops.fake_quantize(x, *grid, rounding="stochastic", seed=3))
        assert_same(ops.tensor_statistics(x.reshape(shape)), ops.tensor_statistics(x))

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_more_than_sixteen_that_do_not_continue_one_another(self, device):
        x = torch.randn([2] * 17, device=device).permute(*reversed(range(17)))
        with pytest.raises(RuntimeError, match=r"at most 16 dimensions .*; make the tensor contiguous"):
            ops.fake_quantize(x, *hard_grid(x, None), 0, 15)
