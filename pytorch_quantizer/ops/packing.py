"""Codes of 1 to 16 bits packed densely, as files hold them: pack and unpack.

A little-endian bit stream: code i occupies bits [i·bits, (i + 1)·bits), bit j is bit j % 8 of byte j // 8; signed codes
in two's complement of `bits` bits. The bits after the last code are 0.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from pytorch_quantizer.backend import raw
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.ops.arguments import CODES, check_code_dtype, mutated
from pytorch_quantizer.reference import smallest_dtype

MAX_PACKED_BITS = 16


def packed_bytes(numel: int, bits: int) -> int:
    """⌈numel·bits/8⌉: the bytes that so many codes take."""
    return -(-numel * bits // 8)


def pack(codes: Tensor, bits: int, *, out: Tensor | None = None) -> Tensor:
    """Pack codes in row-major order, whatever their layout: uint8 [⌈n·bits/8⌉].

    codes: int8, uint8, int16 or int32, any shape. Of each the low `bits` bits are kept, the others dropped unseen:
    whether the codes fit is for those to check who write files. out: written and returned, contiguous.
    Raises InputError where an argument doesn't fit.
    """
    if codes.dtype not in CODES:
        raise InputError(f"codes must be int8, uint8, int16 or int32, got {codes.dtype}")
    _check_bits(bits)
    if out is None:
        return raw.pack.default(codes, bits)
    _check_out(out, [packed_bytes(codes.numel(), bits)], torch.uint8, codes.device)
    raw.pack_out.default(codes, bits, out)
    return mutated(out)


def unpack(
    packed: Tensor,
    bits: int,
    shape: int | Sequence[int],
    *,
    signed: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Undo `pack`: the first codes of the stream, as many as a tensor of this shape has, in row-major order.

    packed: uint8, one dimension; what follows the codes is ignored. signed: codes are two's complement, else ≥ 0.
    dtype: int8, uint8, int16 or int32; None takes that of `out`, or the smallest that holds such codes.
    out: written and returned, contiguous. Raises InputError where `packed` is too short or an argument doesn't fit.
    """
    _check_bits(bits)
    shape = [shape] if isinstance(shape, int) else list(shape)
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if dtype is None:
        dtype = smallest_dtype(qmin, qmax) if out is None else out.dtype
    check_code_dtype(dtype, qmin, qmax)
    _check_packed(packed, bits, shape)
    if out is None:
        return raw.unpack.default(packed, bits, prod(shape), signed, dtype).view(shape)
    _check_out(out, shape, dtype, packed.device)
    raw.unpack_out.default(packed, bits, signed, out)
    return mutated(out)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_PACKED_BITS:
        raise InputError(f"bits must be between 1 and {MAX_PACKED_BITS}, got {bits}")


def _check_packed(packed: Tensor, bits: int, shape: list[int]) -> None:
    """Refuse what isn't a stream of bytes, or ends before the codes do."""
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise InputError(f"packed must be uint8 of one dimension, got {packed.dtype} {list(packed.shape)}")
    if min(shape, default=0) < 0:
        raise InputError(f"shape must have no negative sizes, got {shape}")
    needed = packed_bytes(prod(shape), bits)
    if packed.numel() < needed:
        raise InputError(
            f"packed must hold {needed} bytes for {bits}-bit codes of shape {shape}, got {packed.numel()}: it is cut "
            f"short, or bits or shape are not those it was packed with"
        )


def _check_out(out: Tensor, shape: list[int], dtype: torch.dtype, device: torch.device) -> None:
    """Refuse an `out` that isn't what would have been returned."""
    if list(out.shape) != shape or out.dtype != dtype or out.device != device or not out.is_contiguous():
        strides = "contiguous" if out.is_contiguous() else "not contiguous"
        raise InputError(
            f"out must be {dtype} {shape} on {device}, contiguous, "
            f"got {out.dtype} {list(out.shape)} on {out.device}, {strides}"
        )


# --- fake (meta) versions: shape and dtype without data --------------------------------------------------------------


@torch.library.register_fake("pytorch_quantizer::pack")
def _(codes: Tensor, bits: int) -> Tensor:
    return codes.new_empty(packed_bytes(codes.numel(), bits), dtype=torch.uint8)


@torch.library.register_fake("pytorch_quantizer::pack_out")
def _(codes: Tensor, bits: int, out: Tensor) -> None:
    return None


@torch.library.register_fake("pytorch_quantizer::unpack")
def _(packed: Tensor, bits: int, numel: int, signed: bool, dtype: torch.dtype) -> Tensor:
    return packed.new_empty(numel, dtype=dtype)


@torch.library.register_fake("pytorch_quantizer::unpack_out")
def _(packed: Tensor, bits: int, signed: bool, out: Tensor) -> None:
    return None
