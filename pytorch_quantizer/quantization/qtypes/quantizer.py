"""Quantizer: the interface of every number type. The types themselves are this folder's other files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from pytorch_quantizer.quantization.statistics import TensorStatistics


class Quantizer(nn.Module, ABC):
    """One number type on one tensor. ``__init__`` only stores; ``fit`` learns and returns self."""

    bits: int
    scale: Any  # Tensor [] or [C] once there is a grid; uniform types have one

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let model.half() and the like move scales and zero points, never round them."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    @abstractmethod
    def fit(self, source: Tensor | TensorStatistics) -> Self:
        """Choose the grid from a tensor or from its statistics. Raises InputError where they don't allow one."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Simulate: the same shape and dtype as x, values on the grid."""

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
