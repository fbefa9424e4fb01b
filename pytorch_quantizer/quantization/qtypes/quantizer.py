"""Quantizer: the interface of every number type. The types themselves are this folder's other files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from math import prod
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from pytorch_quantizer import ops
from pytorch_quantizer.quantization.qparams import MAX_BITS
from pytorch_quantizer.quantization.statistics import TensorStatistics

UNFITTED = "the quantizer has no grid yet; call fit(tensor or statistics) first"


class Quantizer(nn.Module, ABC):
    """One number type on one tensor. ``__init__`` only stores; ``fit`` learns and returns self.

    is_integer: its levels are whole multiples of ``scale``, so integer kernels can run it. widths: the bits that it
    comes in, a recipe's name for it being name and bits ("int4"). fixed_bits: set where it has one width, which its
    name doesn't repeat ("ternary"). needs_histogram: whether ``fit`` wants statistics that hold a histogram. blocked:
    its scales are those of blocks along what a layer sums over; an activation's channels have none of their own.
    takes_relu, takes_addition: whether ``forward`` has an argument ``relu``, ``other``, and does relu(x + other) first
    in its own pass. The graph tells ``forward`` inplace=True where nobody else reads x.
    """

    is_integer: ClassVar[bool] = False
    blocked: ClassVar[bool] = False
    takes_relu: ClassVar[bool] = False
    takes_addition: ClassVar[bool] = False
    widths: ClassVar[range] = range(1, MAX_BITS + 1)
    fixed_bits: ClassVar[int | None] = None

    bits: int
    scale: Any  # Tensor [] or [C] once there is a grid; None, always, where the levels are no multiples of one step

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let model.half() and the like move scales and zero points, never round them."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    @property
    def needs_statistics(self) -> bool:
        """Whether it is fitted before it runs; an online one takes its range from what it reads."""
        return True

    @property
    def needs_histogram(self) -> bool:
        """Whether statistics to ``fit`` to must hold a histogram."""
        return False

    @property
    def takes_gain(self) -> bool:
        """Whether ``multiply`` is possible: each channel of a weight has a scale of its own."""
        return False

    def multiply(self, gain: Tensor) -> Self:
        """Make every level of channel c gain_c times what it is, [C] positive; the codes of gain·x are those of x."""
        raise NotImplementedError(f"{type(self).__name__} has no scale of each channel")

    def code_bytes(self, shape: Iterable[int]) -> int:
        """Bytes that the codes of a tensor of this shape take, packed and filled up to whole bytes."""
        return -(-prod(shape) * self.bits // 8)

    @property
    def signed_codes(self) -> bool:
        """Whether codes can be negative: packed, they are two's complement then."""
        return False

    def pack(self, codes: Tensor) -> dict[str, Tensor]:
        """What a file holds of the codes of a tensor: dense bit streams, uint8, ``code_bytes`` in all."""
        return {"codes": ops.pack(codes, self.bits)}

    def unpack(self, packed: dict[str, Tensor], shape: Iterable[int]) -> Tensor:
        """The codes of a tensor of this shape from what ``pack`` gave. Raises InputError where bytes are missing."""
        return ops.unpack(packed["codes"], self.bits, list(shape), signed=self.signed_codes)

    @abstractmethod
    def fit(self, source: Tensor | TensorStatistics) -> Self:
        """Choose the grid from a tensor or from its statistics. Raises InputError where they don't allow one."""

    @abstractmethod
    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Simulate: the same shape and dtype as x, values on the grid; inplace: x may be overwritten."""

    @abstractmethod
    def quantize(self, x: Tensor) -> Tensor:
        """Integer codes, the shape of x."""

    @abstractmethod
    def dequantize(self, codes: Tensor) -> Tensor:
        """float32 values of codes, the shape of codes."""

    @abstractmethod
    def storage(self) -> dict[str, Tensor]:
        """What a file must hold to rebuild the quantizer, beside the codes; its bytes are part of the reported size."""

    @abstractmethod
    def restore(self, storage: dict[str, Tensor]) -> Self:
        """Take the grid back from what ``storage`` returned, instead of ``fit``; returns self."""

    @abstractmethod
    def range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest representable value, each [] or [C], float32."""

    @abstractmethod
    def describe(self) -> str:
        """The number type in a word: int4, uint4."""
