"""pack and unpack: every value of every width, against the reference and against numpy's packbits."""

import numpy as np
import pytest
import torch
from hard_inputs import LAYOUTS, assert_same
from op_checks import raw

from pytorch_quantizer import InputError, ops, reference
from pytorch_quantizer.backend import module_path

WIDTHS = range(1, 17)
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32)
SIZES = (*range(35), 255, 256, 257, 2047, 2048, 2049, 65_541)


def limits(bits, signed):
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def holds(dtype, bits, signed):
    low, high = limits(bits, signed)
    return torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max


def numpy_pack(codes, bits):
    """The stream bit by bit."""
    flat = codes.cpu().numpy().astype(np.int64).reshape(-1)
    places = (flat[:, None] >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(places.astype(np.uint8).reshape(-1), bitorder="little"))


def random_codes(n, bits, signed, dtype, seed=0):
    low, high = limits(bits, signed)
    return torch.randint(low, high + 1, (n,), generator=torch.Generator().manual_seed(seed)).to(dtype)


def check_round_trip(codes, bits, signed):
    """pack as numpy and the reference do, and back, in both forms."""
    packed = ops.pack(codes, bits)
    assert_same(packed, reference.pack(codes, bits))
    assert torch.equal(packed.cpu(), numpy_pack(codes, bits))
    keywords = {"signed": signed, "dtype": codes.dtype}
    assert_same(ops.unpack(packed, bits, codes.shape, **keywords), codes.contiguous())
    assert_same(reference.unpack(packed, bits, codes.numel(), **keywords), codes.flatten())
    out = torch.full_like(packed, 255)
    assert ops.pack(codes, bits, out=out) is out
    assert_same(out, packed)
    back = torch.full(codes.shape, 77, dtype=codes.dtype, device=codes.device)
    assert ops.unpack(packed, bits, codes.shape, signed=signed, out=back) is back
    assert_same(back, codes.contiguous())


class TestEveryValue:
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("bits", WIDTHS)
    def test_comes_back(self, device, bits, signed):
        low, high = limits(bits, signed)
        for dtype in (dtype for dtype in DTYPES if holds(dtype, bits, signed)):
            codes = torch.arange(low, high + 1).to(dtype)
            codes = torch.cat([codes, codes.flip(0), codes[: len(codes) // 2]]).to(device)
            check_round_trip(codes, bits, signed)

    def test_the_layout_is_as_promised(self):
        assert ops.pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]
        assert ops.pack(torch.tensor([-1, 1, -2], dtype=torch.int8), 3).tolist() == [0b10_001_111, 0b1]
        assert ops.pack(torch.tensor([0x123, 0x456], dtype=torch.int16), 12).tolist() == [0x23, 0x61, 0x45]
        assert ops.pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 1], dtype=torch.uint8), 1).tolist() == [1, 1]

    @pytest.mark.parametrize("bits", WIDTHS)
    def test_upper_bits_are_dropped(self, device, bits):
        for dtype in DTYPES:
            info = torch.iinfo(dtype)
            codes = torch.randint(info.min, info.max + 1, (77,), generator=torch.Generator().manual_seed(1)).to(dtype)
            assert_same(ops.pack(codes.to(device), bits).cpu(), numpy_pack(codes, bits))


class TestParity:
    @pytest.mark.parametrize("bits", WIDTHS)
    def test_instruction_sets_and_sizes(self, isa, bits):
        for n in SIZES:
            for signed in (False, True):
                for dtype in (dtype for dtype in DTYPES if holds(dtype, bits, signed)):
                    check_round_trip(random_codes(n, bits, signed, dtype, n), bits, signed)

    @pytest.mark.parametrize("bits", WIDTHS)
    def test_sizes(self, device, bits):
        for n in SIZES:
            check_round_trip(random_codes(n, bits, True, torch.int32, n).to(device), bits, True)
            dtype = reference.smallest_dtype(*limits(bits, False))
            check_round_trip(random_codes(n, bits, False, dtype, n).to(device), bits, False)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_any_layout_is_packed_in_row_major_order(self, device, layout):
        for dtype in DTYPES:
            codes = LAYOUTS[layout](random_codes(3 * 19 * 5 * 23, 4, False, dtype).view(3, 19, 5, 23).to(device))
            for bits in (3, 4, 5):
                check_round_trip(codes & 2**bits - 1, bits, False)
                assert_same(ops.pack(codes, bits), reference.pack(codes.contiguous(), bits))

    def test_misaligned_memory(self, device):
        for bits in (1, 4, 7, 12):
            for dtype in (torch.int8, torch.int16, torch.int32)[bits > 8 :]:
                codes = random_codes(5001, bits, True, dtype).to(device)[1:]
                packed = torch.cat([ops.pack(codes, bits)[:1], ops.pack(codes, bits)])[1:]
                got = torch.zeros(5001, dtype=dtype, device=device)
                ops.unpack(packed, bits, 5000, signed=True, out=got[1:])
                assert_same(got[1:], codes)
                assert got[0] == 0
                bytes_ = torch.zeros(len(packed) + 1, dtype=torch.uint8, device=device)
                ops.pack(codes, bits, out=bytes_[1:])
                assert_same(bytes_[1:], packed)
                assert bytes_[0] == 0

    def test_bytes_apart_and_bytes_that_follow(self, device):
        codes = random_codes(100, 5, False, torch.uint8).to(device)
        packed = ops.pack(codes, 5)
        apart = torch.stack([packed, packed + 1], 1)[:, 0]
        assert apart.stride() == (2,)
        assert_same(ops.unpack(apart, 5, (10, 10)), codes.view(10, 10))
        longer = torch.cat([packed, torch.full((9,), 255, dtype=torch.uint8, device=device)])
        assert_same(ops.unpack(longer, 5, 100), codes)

    def test_empty_and_scalar(self, device):
        for bits in (1, 4, 11):
            for shape in ((0,), (0, 3), (), (1, 1)):
                check_round_trip(torch.ones(shape, dtype=torch.int32, device=device), bits, False)

    def test_any_number_of_threads(self, threads):
        for bits in (1, 3, 4, 9):
            codes = random_codes(200_003, bits, False, torch.int16)
            for number in (1, 2, 3, 7):
                threads(number)
                check_round_trip(codes, bits, False)

    def test_dtype_is_the_smallest_that_holds_the_codes(self):
        packed = torch.zeros(32, dtype=torch.uint8)
        for bits in WIDTHS:
            for signed in (False, True):
                found = ops.unpack(packed, bits, 9, signed=signed).dtype
                assert found == reference.smallest_dtype(*limits(bits, signed))


class TestPyTorch:
    def test_autograd_is_told_that_out_was_written(self, device):
        codes = random_codes(45, 5, True, torch.int16).to(device)
        packed, back = torch.empty(ops.packed_bytes(45, 5), dtype=torch.uint8, device=device), torch.empty_like(codes)
        for write, out in (
            (lambda: ops.pack(codes, 5, out=packed), packed),
            (lambda: ops.unpack(packed, 5, 45, signed=True, out=back), back),
        ):
            before = out._version
            write()
            assert out._version > before

    def test_opcheck(self, device):
        codes = random_codes(45, 5, True, torch.int16).to(device)
        packed = ops.pack(codes, 5)
        for op, arguments in (
            (raw.pack, (codes, 5)),
            (raw.pack_out, (codes, 5, torch.empty_like(packed))),
            (raw.unpack, (packed, 5, 45, True, torch.int16)),
            (raw.unpack_out, (packed, 5, True, torch.empty_like(codes))),
        ):
            torch.library.opcheck(op.default, arguments)

    def test_compile_fullgraph(self, device):
        codes = random_codes(45, 5, True, torch.int8).to(device).view(5, 9)

        def forms(codes, bytes_, buffer):
            packed = ops.pack(codes, 5)
            ops.pack(codes, 3, out=bytes_)
            ops.unpack(packed, 5, codes.shape, signed=True, out=buffer)
            return packed, ops.unpack(packed, 5, (5, 9), signed=True), bytes_ + 1, buffer + 1

        compiled = torch.compile(forms, fullgraph=True, backend="aot_eager")
        buffers = [
            (torch.zeros(ops.packed_bytes(45, 3), dtype=torch.uint8, device=device), torch.zeros_like(codes))
            for _ in range(2)
        ]
        for got, expected in zip(compiled(codes, *buffers[0]), forms(codes, *buffers[1]), strict=True):
            assert_same(got, expected)
        assert_same(buffers[0][1], codes)

    def test_meta_tensors_keep_shape_and_dtype(self):
        for bits, signed in ((3, False), (4, True), (12, False), (16, False)):
            packed = ops.pack(torch.zeros(3, 7, dtype=torch.int32, device="meta"), bits)
            assert (packed.shape, packed.dtype) == ((ops.packed_bytes(21, bits),), torch.uint8)
            codes = ops.unpack(packed, bits, (3, 7), signed=signed)
            assert (codes.shape, codes.device.type) == ((3, 7), "meta")
            assert codes.dtype == reference.smallest_dtype(*limits(bits, signed))


class TestRefusals:
    codes, packed = torch.zeros(6, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)

    def test_pack(self):
        for bits in (0, 17, -1):
            with pytest.raises(InputError, match=rf"bits must be between 1 and 16, got {bits}"):
                ops.pack(self.codes, bits)
        with pytest.raises(InputError, match=r"codes must be int8, .* got torch\.int64"):
            ops.pack(self.codes.long(), 4)
        for out, found in (
            (torch.zeros(4, dtype=torch.uint8), r"torch\.uint8 \[4\] on cpu, contiguous"),
            (torch.zeros(3, dtype=torch.int8), r"torch\.int8 \[3\]"),
            (torch.zeros(6, dtype=torch.uint8)[::2], r"\[3\] on cpu, not contiguous"),
        ):
            with pytest.raises(InputError, match=rf"out must be torch\.uint8 \[3\] on cpu, contiguous, got .*{found}"):
                ops.pack(self.codes, 4, out=out)

    def test_unpack(self):
        message = r"packed must hold 4 bytes for 4-bit codes of shape \[7\], got 3: it is cut short"
        with pytest.raises(InputError, match=message):
            ops.unpack(self.packed, 4, 7)
        for bits in (0, 17):
            with pytest.raises(InputError, match=rf"bits must be between 1 and 16, got {bits}"):
                ops.unpack(self.packed, bits, 1)
        for wrong in (self.packed.view(1, 3), self.packed.char()):
            with pytest.raises(InputError, match=r"packed must be uint8 of one dimension, got"):
                ops.unpack(wrong, 4, 6)
        with pytest.raises(InputError, match=r"shape must have no negative sizes, got \[-2, -3\]"):
            ops.unpack(self.packed, 4, (-2, -3))
        with pytest.raises(InputError, match=r"dtype must hold \[qmin, qmax\] = \[0, 255\], got torch\.int8"):
            ops.unpack(self.packed, 8, 3, dtype=torch.int8)
        with pytest.raises(InputError, match=r"dtype must be int8, .* got torch\.int64"):
            ops.unpack(self.packed, 8, 3, dtype=torch.int64)
        with pytest.raises(InputError, match=r"out must be torch\.uint8 \[6\] on cpu, contiguous, got .* \[2, 3\]"):
            ops.unpack(self.packed, 4, 6, out=torch.zeros(2, 3, dtype=torch.uint8))

    @pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
    def test_raw_ops_do_not_reach_foreign_memory(self, device):
        codes, packed = self.codes.to(device), self.packed.to(device)
        both = torch.zeros(32, dtype=torch.uint8, device=device)
        for call, message in (
            (lambda: raw.pack(codes, 0), "bits must be between 1 and 16"),
            (lambda: raw.pack(codes.float(), 4), "codes must be int8"),
            (lambda: raw.pack_out(codes, 4, packed[:2]), "6 codes of 4 bits take 3 bytes, packed has 2"),
            (lambda: raw.pack_out(codes, 2, packed), "as many bytes"),
            (lambda: raw.pack_out(codes, 4, both[:6:2]), "out must be contiguous"),
            (lambda: raw.pack_out(both[:6], 4, both[4:7]), "not overlap"),
            (lambda: raw.unpack(packed, 4, 7, False, torch.uint8), "7 codes of 4 bits take 4 bytes, packed has 3"),
            (lambda: raw.unpack(packed, 4, -1, False, torch.uint8), "there can't be -1 codes"),
            (lambda: raw.unpack(packed, 16, 2**62, False, torch.int32), "there can't be"),
            (lambda: raw.unpack(packed, 17, 1, False, torch.int32), "bits must be between 1 and 16"),
            (lambda: raw.unpack(packed.view(1, 3), 4, 6, False, torch.uint8), "one dimension"),
            (lambda: raw.unpack(packed, 4, 6, False, torch.float32), "codes must be int8"),
            (lambda: raw.unpack_out(packed, 4, False, both[:7]), "7 codes of 4 bits"),
            (lambda: raw.unpack_out(both[:3], 4, False, both[2:8]), "not overlap"),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
