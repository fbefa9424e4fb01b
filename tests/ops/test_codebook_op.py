"""codebook_fake_quantize, codebook_quantize and codebook_dequantize: to the bit those of the reference, and of plain
comparisons with every threshold."""

import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, SPECIAL, assert_same, hard_tensor, hard_values
from op_checks import AXES, both, raw

from pytorch_quantizer import InputError, ops, reference
from pytorch_quantizer.backend import module_path

COUNTS = (1, 2, 3, 7, 16, 33, 64, 65, 66, 79, 80, 81, 129, 255, 256)  # CPU: few levels up to 64, groups of 16 beyond


def codebook(x, axis, count=16):
    """Levels with a −0 and two that are equal, and thresholds that are ties of hard_values: x meets many exactly."""
    shape = (1 if axis is None else x.shape[axis], count)
    levels = torch.randn(shape, generator=torch.Generator().manual_seed(count)).mul(4).sort(1).values
    levels[:, count // 2] = -0.0
    levels[:, count // 3] = levels[:, count // 3 - 1]
    levels = levels.sort(dim=1, stable=True).values
    highest = (
        (torch.arange(count - 1) - (count - 1) // 2 + 0.5) * 0.75 * 2.0 ** (torch.arange(shape[0]) % 5 - 2)[:, None]
    )
    tables = (levels, highest) if axis is not None else (levels[0], highest[0])
    return tuple(table.to(x.device) for table in tables)


def check_codebook(x, axis, count=16):
    """Every op on x equals the reference to the bit."""
    levels, highest = codebook(x, axis, count)
    assert_same(*both("codebook_fake_quantize", x, levels, highest, axis=axis))
    codes, expected = both("codebook_quantize", x, highest, axis=axis)
    assert_same(codes, expected)
    assert_same(*both("codebook_dequantize", codes, levels, axis=axis, dtype=x.dtype))


class TestReference:
    """The specification itself, against a comparison with each threshold."""

    @pytest.mark.parametrize("axis", AXES)
    @pytest.mark.parametrize("count", [1, 2, 16, 256])
    def test_counts_the_thresholds_below(self, axis, count):
        x = hard_tensor("channels_last")
        levels, highest = codebook(x, axis, count)
        rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)
        index = (highest.reshape(rows.shape[0], 1, count - 1) < rows[..., None]).sum(-1)
        y = torch.where(rows.isnan(), rows, levels.reshape(rows.shape[0], count).gather(1, index))
        y = y.view(x.shape) if axis is None else y.view(x.movedim(axis, 0).shape).movedim(0, axis)
        got = reference.codebook_fake_quantize(x, levels, highest, axis=axis)
        assert_same(got.contiguous(), y.contiguous())
        assert got.stride() == x.stride()

    def test_special_values(self):
        x, highest = torch.tensor(SPECIAL), torch.tensor([-1.0, 0.0, 0.49999997])
        y = reference.codebook_fake_quantize(x, torch.tensor([1.0, 2.0, 3.0, 4.0]), highest)
        assert y[:-1].tolist() == [2, 2, 3, 2, 3, 4, 1, 4, 1, 3, 2, 4, 1, 4, 4, 1]
        assert y[-1].isnan()
        assert reference.codebook_quantize(x, highest)[-1] == 1  # as 0.0

    def test_a_code_without_a_level_is_nan(self):
        y = reference.codebook_dequantize(
            torch.tensor([0, 2, 3, 255], dtype=torch.uint8), torch.tensor([1.0, 2.0, 3.0])
        )
        assert y[:2].tolist() == [1, 3]
        assert y[2:].isnan().all()


class TestParity:
    """Kernel = reference, bit for bit, on hard inputs."""

    @pytest.mark.parametrize("count", [16, 66])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_and_axes(self, device, layout, dtype, count):
        x = hard_tensor(layout, dtype, device)
        for axis in AXES:
            check_codebook(x, axis, count)

    @pytest.mark.parametrize("count", COUNTS)
    def test_numbers_of_levels(self, device, count):
        x = hard_values(5003).to(device)
        check_codebook(x, None, count)
        check_codebook(x[:5000].view(50, 100), 0, count)
        check_codebook(x[:5000].view(50, 100), 1, count)

    @pytest.mark.parametrize("count", COUNTS)
    def test_instruction_sets(self, isa, count):
        for layout in ("contiguous", "channels_last", "strided", "misaligned"):
            for axis in AXES:
                check_codebook(hard_tensor(layout), axis, count)
        for dtype in DTYPES[1:]:
            check_codebook(hard_tensor("transposed", dtype), 1, count)

    def test_sizes_off_every_vector_width(self, device):
        for n in (*range(70), 127, 129, 2047, 2048, 2049, 16 * 1024 - 1, 65541):
            x = hard_values(n, seed=n).to(device)
            check_codebook(x, None)
            check_codebook(x.view(1, n), 1, 5)
            check_codebook(x, None, 100)
        for channels in (2, 3, 7, 8, 9, 31, 2047, 2049, 5000):
            x = hard_values(3 * channels, seed=channels).to(device)
            check_codebook(x.view(3, channels), 1)
            check_codebook(x.view(channels, 3), 0)

    def test_empty_and_scalar(self, device):
        for shape in ((0,), (0, 3), (3, 0), ()):
            check_codebook(torch.full(shape, 1.7, device=device), None)
        check_codebook(torch.zeros(0, 3, device=device), 1)
        check_codebook(torch.zeros(3, 0, device=device), 0)
        check_codebook(torch.zeros(0, 3, device=device), 0)
        check_codebook(torch.zeros(5, device=device), 0)

    def test_every_code(self, device):
        codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1).to(device)
        for count in (1, 2, 100, 255, 256):
            for view, axis in ((codes, 0), (codes.t(), 1), (codes[0], None)):
                levels = codebook(view, axis, count)[0]
                for dtype in DTYPES:
                    assert_same(*both("codebook_dequantize", view, levels, axis=axis, dtype=dtype))

    def test_infinite_and_nan_thresholds_read_no_foreign_memory(self, device):
        x = hard_values(999).to(device)
        for count in (3, 16, 100, 256):
            for value in (float("nan"), float("inf"), -float("inf")):
                highest = torch.full((count - 1,), value, device=device)
                levels = torch.arange(count, dtype=torch.float32, device=device)
                y = ops.codebook_fake_quantize(x, levels, highest)
                assert ((y >= 0) & (y < count) | x.isnan()).all()
                assert ops.codebook_quantize(x, highest).max() <= count - 1

    def test_tables_need_not_be_contiguous(self, device):
        x = hard_tensor("contiguous", device=device)
        levels, highest = codebook(x, 1)
        wide = torch.stack([levels, levels + 1], 2)[..., 0], highest.t().contiguous().t()
        assert not wide[0].is_contiguous()
        assert not wide[1].is_contiguous()
        expected = reference.codebook_fake_quantize(x, levels, highest, axis=1)
        assert_same(ops.codebook_fake_quantize(x, *wide, axis=1), expected)

    def test_half_types_are_the_float32_result_rounded_once(self, device):
        levels, highest = codebook(torch.zeros(1), None)
        for dtype in DTYPES[1:]:
            x = hard_values(3000, dtype=dtype)
            exact = reference.codebook_fake_quantize(x.float(), levels, highest)
            got = ops.codebook_fake_quantize(x.to(device), levels.to(device), highest.to(device))
            assert_same(got.cpu(), exact.to(dtype))

    def test_any_number_of_threads_gives_the_same_bits(self, threads):
        x = hard_tensor("contiguous").repeat(40, 1, 1, 1)
        for count in (16, 200):
            for axis in (None, 1, 3):
                tables, found = codebook(x, axis, count), []
                for number in (1, 2, 3, 7):
                    threads(number)
                    found.append(ops.codebook_fake_quantize(x, *tables, axis=axis))
                for other in found[1:]:
                    assert_same(other, found[0])


class TestForms:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_out_of_any_layout(self, device, layout):
        x = hard_tensor(layout, device=device)
        tables = codebook(x, 1)
        expected = reference.codebook_fake_quantize(x, *tables, axis=1)
        for out in (torch.empty(x.shape, device=device), torch.empty(x.shape[::-1], device=device).permute(3, 2, 1, 0)):
            assert ops.codebook_fake_quantize(x, *tables, axis=1, out=out) is out
            assert_same(out.contiguous(), expected.contiguous())

    @pytest.mark.parametrize("count", [16, 100])
    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
    def test_in_place(self, device, layout, count):
        for dtype in DTYPES:
            for axis in (None, 1, 3):
                x = hard_tensor(layout, dtype, device)
                tables = codebook(x, axis, count)
                expected = reference.codebook_fake_quantize(x, *tables, axis=axis)
                assert ops.codebook_fake_quantize(x, *tables, axis=axis, out=x) is x
                assert_same(x.contiguous(), expected.contiguous())

    def test_strided_out_leaves_the_rest_alone(self, device):
        wide = torch.full((100, 10), 0.3, device=device)
        ops.codebook_fake_quantize(wide[:, ::2], *codebook(wide, None), out=wide[:, ::2])
        assert (wide[:, 1::2] == 0.3).all()
        assert (wide[:, ::2] != 0.3).all()

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_out_that_shares_memory_is_refused(self, device):
        x = torch.zeros(100, device=device)
        with pytest.raises(RuntimeError, match="not overlap"):
            ops.codebook_fake_quantize(x[:90], *codebook(x, None), out=x[10:])
        with pytest.raises(RuntimeError, match="expanded"):
            ops.codebook_fake_quantize(x, *codebook(x, None), out=torch.zeros(1, device=device).expand(100))


class TestGradient:
    """Straight-through: dx = g between the outermost levels, 0 beyond."""

    def test_closed_form(self, device):
        inf, nan = float("inf"), float("nan")
        x = torch.tensor([-2.1, -2.0, 0.3, 3.0, 3.1, inf, nan], device=device, requires_grad=True)
        levels, highest = torch.tensor([-2.0, 1.0, 3.0], device=device), torch.tensor([-0.5, 2.0], device=device)
        y = ops.codebook_fake_quantize(x, levels, highest)
        assert_same(y.detach(), reference.codebook_fake_quantize(x, levels, highest))
        y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, inf, 6.0, 7.0], device=device))
        assert x.grad.tolist() == [0, 2, 3, 4, 0, 0, 0]

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_per_channel(self, device, dtype):
        x = torch.tensor([[-1.5, 0.0, 1.5], [-1.5, 0.0, 1.5]], dtype=dtype, device=device, requires_grad=True)
        levels = torch.tensor([[-1.0, 2.0], [-2.0, 1.0]], device=device)
        ops.codebook_fake_quantize(x, levels, torch.zeros(2, 1, device=device), axis=0).sum().backward()
        assert x.grad.tolist() == [[0, 1, 1], [1, 1, 0]]

    def test_no_gradient_is_lost_in_silence(self, device):
        x = torch.ones(3, device=device, requires_grad=True)
        tables = codebook(x, None)
        with pytest.raises(InputError, match=r"with out= has no gradient .* use codebook_fake_quantize, or torch"):
            ops.codebook_fake_quantize(x, *tables, out=torch.empty(3, device=device))
        for which in (0, 1):
            needing = [table.clone().requires_grad_(i == which) for i, table in enumerate(tables)]
            with pytest.raises(InputError, match=r"(levels|highest) must not need a gradient here"):
                ops.codebook_fake_quantize(x, *needing)

    def test_autograd_notices_that_a_saved_tensor_was_overwritten(self, device):
        x = torch.ones(3, device=device, requires_grad=True)
        y = x.exp()  # saves its result
        with torch.no_grad():
            ops.codebook_fake_quantize(y.detach(), *codebook(y, None), out=y.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


class TestPyTorch:
    def test_opcheck(self, device):
        x = hard_tensor("channels_last", device=device)[:, :, :2, :3].nan_to_num(0, 0, 0)
        for axis in (None, 1):
            (levels, highest), raw_axis = codebook(x, axis), -1 if axis is None else axis
            codes = ops.codebook_quantize(x, highest, axis=axis)
            for op, arguments in (
                (raw.codebook_fake_quantize, (x, levels, highest, raw_axis)),
                (raw.codebook_fake_quantize_out, (x, levels, highest, raw_axis, torch.empty_like(x))),
                (raw.codebook_quantize, (x, highest, raw_axis)),
                (raw.codebook_dequantize, (codes, levels, raw_axis, torch.half)),
            ):
                torch.library.opcheck(op.default, arguments)

    def test_compile_fullgraph(self, device):
        x = torch.randn(4, 6, device=device, requires_grad=True)
        levels, highest = codebook(x, 1)

        def forms(x, buffer):
            y = ops.codebook_fake_quantize(x * 2, levels, highest, axis=-1).sin()
            ops.codebook_fake_quantize(x.detach(), levels, highest, axis=1, out=buffer)
            codes = ops.codebook_quantize(x, highest, axis=1)
            return y, codes, ops.codebook_dequantize(codes, levels, axis=1), buffer + 1

        buffers = [torch.zeros(4, 6, device=device) for _ in range(2)]
        compiled = torch.compile(forms, fullgraph=True, backend="aot_eager")
        results = compiled(x, buffers[0]), forms(x, buffers[1])
        for got, expected in zip(*results, strict=True):
            assert_same(got.detach(), expected.detach())
        assert_same(*buffers)
        assert_same(*[torch.autograd.grad(result[0].sum(), x)[0] for result in results])

    def test_meta_tensors_keep_shape_dtype_and_layout(self):
        for layout in LAYOUTS:
            x = hard_tensor(layout)
            meta = torch.empty_strided(x.shape, x.stride(), device="meta")
            tables, metas = codebook(x, 1), [table.to("meta") for table in codebook(x, 1)]
            real = ops.codebook_quantize(x, tables[1], axis=1)
            for got, expected in (
                (ops.codebook_fake_quantize(meta, *metas, axis=1), ops.codebook_fake_quantize(x, *tables, axis=1)),
                (ops.codebook_quantize(meta, metas[1], axis=1), real),
                (
                    ops.codebook_dequantize(real.to("meta"), metas[0], axis=1, dtype=torch.half),
                    ops.codebook_dequantize(real, tables[0], axis=1, dtype=torch.half),
                ),
            ):
                assert (got.shape, got.dtype, got.stride()) == (expected.shape, expected.dtype, expected.stride())


class TestRefusals:
    x, levels, highest = torch.zeros(2, 3), torch.zeros(4), torch.zeros(3)

    @pytest.mark.parametrize(
        ("arguments", "keywords", "message"),
        [
            ((x.double(), levels, highest), {}, r"x must be float32, .* got torch\.float64"),
            ((x, levels.half(), highest), {}, r"levels must be float32 on the tensor's device cpu, got torch\.float16"),
            ((x, levels, highest.to("meta")), {}, r"highest must be float32 on .* cpu, got torch\.float32, meta"),
            ((x, levels, levels), {}, r"highest must have an entry for each level but the last, got 4 for 4"),
            ((x, torch.zeros(0), highest), {}, r"levels must have shape \[1 to 256\], got \[0\]"),
            ((x, torch.zeros(257), torch.zeros(256)), {}, r"levels must have shape \[1 to 256\], got \[257\]"),
            ((x, torch.zeros(()), highest), {}, r"levels must have shape \[1 to 256\], got \[\]"),
            ((x, levels, highest), {"axis": 0}, r"levels must have shape \[2, 1 to 256\], got \[4\]"),
            ((x, torch.zeros(3, 4), torch.zeros(2, 3)), {"axis": 1}, r"highest .* \[3, 0 to 255\], got \[2, 3\]"),
            ((x, levels, highest), {"axis": 2}, r"axis must name one of the 2 dimensions .* got 2"),
            ((x, levels, highest), {"out": torch.zeros(3, 2)}, r"out must be like x .* got \[3, 2\]"),
        ],
    )
    def test_fake_quantize(self, arguments, keywords, message):
        with pytest.raises(InputError, match=message):
            ops.codebook_fake_quantize(*arguments, **keywords)

    def test_quantize_and_dequantize(self):
        with pytest.raises(InputError, match=r"x must be float32, .* got torch\.int64"):
            ops.codebook_quantize(self.x.long(), self.highest)
        with pytest.raises(InputError, match=r"highest must have shape \[0 to 255\], got \[256\]"):
            ops.codebook_quantize(self.x, torch.zeros(256))
        with pytest.raises(InputError, match=r"codes must be uint8, got torch\.int64"):
            ops.codebook_dequantize(self.x.long(), self.levels)
        with pytest.raises(InputError, match=r"dtype must be float32, .* got torch\.float64"):
            ops.codebook_dequantize(self.x.byte(), self.levels, dtype=torch.float64)

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_raw_ops_do_not_read_foreign_memory(self, device):
        x, levels, highest = (t.to(device) for t in (self.x, self.levels, self.highest))
        out, codes = torch.zeros_like(x), x.byte()
        for call, message in (
            (lambda: raw.codebook_fake_quantize(x, levels, highest[:2], -1), "an entry for each level but the last"),
            (lambda: raw.codebook_fake_quantize(x, levels, highest, 0), "two"),
            (lambda: raw.codebook_fake_quantize(x, levels.expand(3, 4), highest.expand(3, 3), 0), "one row a channel"),
            (lambda: raw.codebook_fake_quantize(x, levels, highest, 2), "axis must name a dimension"),
            (lambda: raw.codebook_fake_quantize(x, levels.double(), highest, -1), "levels must be float32"),
            (lambda: raw.codebook_fake_quantize(x.double(), levels, highest, -1), "can't read|takes float32"),
            (
                lambda: raw.codebook_fake_quantize_out(x, levels, highest, -1, out[:1]),
                "out must have the input's shape",
            ),
            (lambda: raw.codebook_quantize(x, torch.zeros(256, device=device), -1), "0 to 255 entries"),
            (lambda: raw.codebook_dequantize(x.int(), levels, -1, torch.float32), "codes must be uint8"),
            (lambda: raw.codebook_dequantize(codes, levels, -1, torch.float64), "can't write|takes float32"),
            (lambda: raw.codebook_dequantize(codes, levels[:0], -1, torch.float32), "1 to 256 entries"),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
