"""BiasQuantizer: a layer's bias on the int32 grid s_x · s_w[c] of its accumulators, where integer kernels add it."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Self

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.qtypes.quantizer import Quantizer
from pytorch_quantizer.quantization.statistics import TensorStatistics

INT32 = torch.iinfo(torch.int32)


class BiasQuantizer(Quantizer):
    """q = clamp(round(bias / (s_x·s_w))) in int32, z = 0; y = q · (s_x·s_w).

    input_scale: [], the scale of the tensor that the layer reads. weight_scale: [] or [C], the weight's. Their product
    is rounded to float32 once, as an integer runtime holds it.
    """

    bits = 32
    scale: Tensor
    input_scale: Tensor

    def __init__(self, input_scale: Tensor, weight_scale: Tensor) -> None:
        super().__init__()
        if input_scale.dim() != 0:
            raise InputError(f"a bias grid needs a per-tensor input scale, got shape {list(input_scale.shape)}")
        self.register_buffer("input_scale", input_scale.float(), persistent=False)
        self.rescale(weight_scale)

    def rescale(self, weight_scale: Tensor) -> Self:
        """Take the grid of another weight scale, [] or [C]."""
        self.register_buffer("scale", self.input_scale * weight_scale.float())
        return self

    def code_bytes(self, shape: Iterable[int]) -> int:
        """Four a code."""
        return 4 * prod(shape)

    def pack(self, codes: Tensor) -> dict[str, Tensor]:
        """int32 as it is."""
        return {"codes": codes.to(torch.int32)}

    def unpack(self, packed: dict[str, Tensor], shape: Iterable[int]) -> Tensor:
        """The same back. Raises InputError where they are not as many, or no int32."""
        codes, shape = packed["codes"], list(shape)
        if codes.dtype != torch.int32 or codes.numel() != prod(shape):
            raise InputError(f"codes of a bias must be int32 {shape}, got {codes.dtype} {list(codes.shape)}")
        return codes.reshape(shape)

    def fit(self, source: Tensor | TensorStatistics) -> Self:
        """Nothing to learn: the grid follows from the layer's other two."""
        return self

    def quantize(self, x: Tensor) -> Tensor:
        """int32 codes of a bias [C]; round half to even in float64, saturating."""
        codes = torch.round(x.double() / self.scale.double())
        return codes.clamp(INT32.min, INT32.max).to(torch.int32)

    def dequantize(self, codes: Tensor) -> Tensor:
        """q · (s_x·s_w), float32, computed in float64 and rounded once."""
        return (codes.double() * self.scale.double()).float()

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Simulate, in x's dtype. ``inplace`` is of no use: biases are small."""
        return self.dequantize(self.quantize(x)).to(x.dtype)

    def storage(self) -> dict[str, Tensor]:
        """Nothing: both factors are stored already."""
        return {}

    def restore(self, storage: dict[str, Tensor]) -> Self:
        """Nothing to take back: both factors came with ``__init__``."""
        return self

    def range(self) -> tuple[Tensor, Tensor]:
        """What int32 codes can represent."""
        return INT32.min * self.scale, INT32.max * self.scale

    def describe(self) -> str:
        """int32."""
        return "int32"
