"""MXQuantizer: blocks of 32 small numbers that share a power-of-two scale (OCP Microscaling Formats, MX, v1.0).
The small float formats are float_quantizer.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.histogram import power_of_two
from pytorch_quantizer.quantization.qparams import MAX_SCALE
from pytorch_quantizer.quantization.qtypes.float_quantizer import E2M1, E2M3, E3M2, E4M3, E5M2, FloatFormat
from pytorch_quantizer.quantization.qtypes.format_quantizer import FormatQuantizer
from pytorch_quantizer.quantization.statistics import TensorStatistics, check_observed

BLOCK = 32
SCALE_BIAS = 127  # E8M0: 2^(code − 127), −127 … 127


@dataclass(frozen=True)
class FixedFormat:
    """8-bit two's complement counted in 64ths, MX's INT8: −127/64 … 127/64; −2 is left unused, so it is symmetric."""

    bits = 8
    largest = 127 / 64
    largest_exponent = 0

    def round(self, x: Tensor) -> Tensor:
        """The nearest 64th, ties to even, saturating; NaN stays."""
        return torch.round(x.clamp(-self.largest, self.largest) * 64) / 64

    def encode(self, y: Tensor) -> Tensor:
        """The byte of a value that is in the format, int32; NaN as 0."""
        return (torch.where(y.isnan(), 0.0, y) * 64).int() & 0xFF

    def decode(self, codes: Tensor) -> Tensor:
        """The values of bytes, float32."""
        return (codes - ((codes & 0x80) << 1)).float() / 64


class MXQuantizer(FormatQuantizer):
    """y = 2^k · round(x / 2^k) in the element format; k = ⌊log2 max|x|⌋ − emax of each block of 32, in −127 … 127.

    OCP MX v1.0, section 6.3; emax is the exponent of the format's largest value; elements round half to even and
    saturate. Blocks lie along what a layer sums over: with ``axis`` (weights, [out, in, kh, kw] and axis 0) along the
    other dimensions flattened, in · kh · kw; without it along dimension 1 of tensors of 4 or more dimensions
    ([N, C, H, W]), else along the last. The last block may be shorter. Each tensor brings its own k: nothing is
    fitted, ``fit`` only refuses what is not finite, and nothing but codes is stored. NaN stays NaN, counts for no k
    and has a code in fp8 elements alone (else 0); an infinite value counts as the largest float32 and saturates.
    Codes, int32: (k + 127)·256 + the element's code; packed they take the element's bits and a byte a block.
    ``range()`` is what the widest scale reaches; the gradient goes straight through everywhere.
    """

    blocked = True
    clippings = ("minmax",)
    why_clippings = "each block has the scale that its largest value asks for"
    element: ClassVar[FloatFormat | FixedFormat]

    def _fit(self, statistics: TensorStatistics, x: Tensor | None) -> None:
        check_observed(statistics)

    @classmethod
    def family(cls) -> str:
        """mxfp8_e4m3, mxfp4, mxint8 …"""
        if isinstance(cls.element, FixedFormat):
            return "mxint8"
        suffix = f"_e{cls.element.exponent_bits}m{cls.element.mantissa_bits}" if cls.element.bits > 4 else ""
        return f"mxfp{cls.element.bits}{suffix}"

    def _simulate(self, x: Tensor) -> Tensor:
        blocks = self._blocks(x)
        scale = power_of_two(self._shared_exponent(blocks)).float()
        return self._from_blocks(self.element.round(blocks / scale) * scale, x.shape)

    def quantize(self, x: Tensor) -> Tensor:
        """(k + 127)·256 + the element's code, int32."""
        blocks = self._blocks(x.detach().float())
        exponent = self._shared_exponent(blocks)
        elements = self.element.encode(self.element.round(blocks / power_of_two(exponent).float()))
        return self._from_blocks(((exponent.int() + SCALE_BIAS) << 8) | elements, x.shape)

    def dequantize(self, codes: Tensor) -> Tensor:
        """The element's value · 2^k, float32."""
        scale = power_of_two((codes >> 8) - SCALE_BIAS).float()
        return self.element.decode(codes & 0xFF) * scale

    def pack(self, codes: Tensor) -> dict[str, Tensor]:
        """The elements at their bits, and k + 127 of each block, a byte; blocks in the order in which they lie."""
        scales = self._blocks(codes)[..., 0] >> 8
        return {**super().pack(codes & 0xFF), "block_scales": scales.flatten().to(torch.uint8)}

    def unpack(self, packed: dict[str, Tensor], shape: Iterable[int]) -> Tensor:
        """Both put together again, int32."""
        shape = torch.Size(shape)
        elements = super().unpack(packed, shape).to(torch.int32)
        blocks = self._blocks(elements)
        scales = packed["block_scales"].to(torch.int32)
        if scales.numel() != blocks[..., 0].numel():
            raise InputError(
                f"block_scales must be {blocks[..., 0].numel()} for shape {list(shape)}, got {scales.numel()}"
            )
        spread = scales.reshape(blocks.shape[:-1]).unsqueeze(-1).expand(blocks.shape)
        return elements | (self._from_blocks(spread, shape) << 8)

    def range(self) -> tuple[Tensor, Tensor]:
        """± the element's largest value times the largest k that a float32 asks for."""
        high = torch.tensor(self.element.largest * 2.0 ** (127 - self.element.largest_exponent))
        return -high, high

    def code_bytes(self, shape: Iterable[int]) -> int:
        """The elements, packed and filled up to whole bytes, and a byte for each block's scale."""
        shape = tuple(shape)
        length = (
            prod(shape) // max(shape[self.axis], 1) if self.axis is not None else shape[_summed(shape)] if shape else 1
        )
        blocks = prod(shape) // length * -(-length // BLOCK) if length else 0
        return super().code_bytes(shape) + blocks

    def _shared_exponent(self, blocks: Tensor) -> Tensor:
        """k of each block, int64 […, 1]."""
        magnitude = torch.where(blocks.isnan(), 0.0, blocks.abs()).clamp(max=MAX_SCALE)
        largest = magnitude.amax(-1, keepdim=True)
        exponent = torch.frexp(largest).exponent.long() - 1 - self.element.largest_exponent
        return torch.where(largest > 0, exponent, -SCALE_BIAS).clamp(-SCALE_BIAS, SCALE_BIAS)

    def _lines(self, x: Tensor) -> Tensor:
        """x with what a layer sums over as its last dimension, contiguous."""
        if self.axis is not None:
            return self._rows(x)
        return (x.movedim(_summed(x.shape), -1) if x.dim() else x.reshape(1)).contiguous()

    def _blocks(self, x: Tensor) -> Tensor:
        """[…, blocks, 32], the last block filled up with zeros."""
        lines = self._lines(x)
        return pad(lines, (0, -lines.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))

    def _from_blocks(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        """What ``_blocks`` made of a tensor of this shape, back in that shape."""
        filled = blocks.flatten(-2)
        if self.axis is not None:
            return self._from_rows(filled[:, : prod(shape) // shape[self.axis]], shape)
        if not shape:
            return filled[0]
        dimension = _summed(shape)
        return filled[..., : shape[dimension]].movedim(-1, dimension)


def _summed(shape: Iterable[int]) -> int:
    """The dimension that blocks lie along where no axis is given."""
    return 1 if len(tuple(shape)) >= 4 else -1


class MXFP8E4M3Quantizer(MXQuantizer):
    """Elements E4M3."""

    widths, fixed_bits, element = range(8, 9), 8, E4M3


class MXFP8E5M2Quantizer(MXQuantizer):
    """Elements E5M2."""

    widths, fixed_bits, element = range(8, 9), 8, E5M2


class MXFP6E3M2Quantizer(MXQuantizer):
    """Elements E3M2: largest 28."""

    widths, fixed_bits, element = range(6, 7), 6, E3M2


class MXFP6E2M3Quantizer(MXQuantizer):
    """Elements E2M3: largest 7.5."""

    widths, fixed_bits, element = range(6, 7), 6, E2M3


class MXFP4Quantizer(MXQuantizer):
    """Elements E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6."""

    widths, fixed_bits, element = range(4, 5), 4, E2M1


class MXINT8Quantizer(MXQuantizer):
    """Elements 8-bit whole numbers of 64ths."""

    widths, fixed_bits, element = range(8, 9), 8, FixedFormat()
